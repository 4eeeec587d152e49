//! Members of the group: who votes, who receives the log, and who leads.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{ChangeMembers, ReadPolicy, ServerState};

use super::handle::change_membership;
use super::node::RaftNode;
use super::options::RaftOptions;
use super::promotion::{Members, Metrics, is_heard, matched};
use super::types::{Peer, TypeConfig};
use crate::store::{Candidate, ClusterError, Member, MemberChange, Standing};
use crate::types::{NodeName, Role};

impl RaftNode {
    /// The members of the group as this node knows them; how others stand is known to the leader only.
    pub fn members(&self) -> Vec<Member> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let own = self.options.node.get();
        membership.nodes().filter_map(|(id, peer)| member(&metrics, membership, own, *id, peer)).collect()
    }

    /// HOST:PORT of the other members, the leader first.
    pub fn peers(&self) -> Vec<String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let own = self.options.node.get();
        let members = metrics.membership_config.membership();
        let mut peers: Vec<(u64, &Peer)> =
            members.nodes().filter(|(id, _)| **id != own).map(|(id, peer)| (*id, peer)).collect();
        peers.sort_by_key(|(id, _)| metrics.current_leader != Some(*id));
        let addr = |(id, peer): (u64, &Peer)| self.options.book.get(id).unwrap_or_else(|| peer.addr.clone());
        peers.into_iter().map(addr).collect()
    }

    /// How many voters there are, and how many of them are this node or at one of the addresses `answering`.
    pub fn count_voters(&self, answering: &BTreeSet<String>) -> (usize, usize) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let members = metrics.membership_config.membership();
        let own = self.options.node.get();
        let at = |id: u64| {
            let known = || members.get_node(&id).map(|peer| peer.addr.clone()).unwrap_or_default();
            self.options.book.get(id).unwrap_or_else(known)
        };
        let there = |id: &u64| *id == own || answering.contains(&at(*id));
        (members.voter_ids().count(), members.voter_ids().filter(there).count())
    }

    /// Whether this node has ever got anything of the log.
    pub fn has_log(&self) -> bool {
        self.raft.metrics().borrow_watched().last_log_index.is_some()
    }

    /// Makes a node a member that receives the log, or notes its new addresses; it votes once it is close behind and
    /// the number of voters stays odd. The leader's task.
    ///
    /// # Errors
    /// `Refused` where another node has the name, `Removed` where it was a member before and is none now.
    pub async fn enlist(&self, candidate: Candidate) -> Result<(), ClusterError> {
        let members = self.led_members()?;
        let id = candidate.node.get();
        let Candidate { name, addr, http, returning, .. } = candidate;
        let mut same_name = members.nodes().filter(|(_, peer)| peer.name == name.as_str());
        if let Some((other, _)) = same_name.find(|(other, _)| **other != id) {
            return Err(ClusterError::Refused(format!(
                "a voter named {name} is a member already (node {other:016x}): give this one another --name, or remove the old one first with skein members remove {name}"
            )));
        }
        let known = members.get_node(&id);
        if known.is_none() && returning {
            let RaftOptions { http: url, addr: primary, .. } = &self.options;
            return Err(ClusterError::Removed(format!(
                "{name} was removed from the cluster: let it in again with skein members add {addr} --url {url}, or stop it, empty its data directory, and start it with --join {primary}"
            )));
        }
        let votes = known.is_none_or(|peer| peer.votes);
        let peer = Peer { name: name.to_string(), addr, http, votes };
        match known {
            Some(known) if *known == peer => return Ok(()),
            Some(_) => {
                self.change(ChangeMembers::SetNodes(BTreeMap::from([(id, peer)])), true).await?;
                tracing::info!(node = %name, "a member has new addresses");
            }
            None => {
                self.change(ChangeMembers::AddNodes(BTreeMap::from([(id, peer)])), true).await?;
                tracing::info!(node = %name, "a node joins the voters; it receives the log first");
            }
        }
        Ok(())
    }

    /// Does what an operator wants, and waits until it is so. The leader's task.
    ///
    /// # Errors
    /// `Refused` where it would leave the group without a voter, or names no member.
    pub async fn change_member(&self, change: MemberChange) -> Result<(), ClusterError> {
        let members = self.led_members()?;
        let (MemberChange::Remove(name) | MemberChange::Promote(name) | MemberChange::Demote(name)) = &change;
        let (id, peer) = self.find(&members, name)?;
        let voter = members.voter_ids().any(|voter| voter == id);
        if id == self.options.node.get() && !matches!(change, MemberChange::Promote(_)) {
            return Err(ClusterError::Refused(format!(
                "{name} is the primary: move it first with skein handoff"
            )));
        }
        match change {
            MemberChange::Remove(_) if voter => {
                self.remove_voter(id, false).await?;
            }
            MemberChange::Remove(_) => {
                self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id])), false).await?;
            }
            MemberChange::Demote(_) => {
                let peer = Peer { votes: false, ..peer };
                self.change(ChangeMembers::SetNodes(BTreeMap::from([(id, peer)])), true).await?;
                if voter {
                    self.remove_voter(id, true).await?;
                }
            }
            MemberChange::Promote(_) => {
                let peer = Peer { votes: true, ..peer };
                self.change(ChangeMembers::SetNodes(BTreeMap::from([(id, peer)])), true).await?;
            }
        }
        tracing::info!(node = %name, "members changed");
        Ok(())
    }

    /// Whether a planned move of the primary to `to` can begin here.
    ///
    /// # Errors
    /// `NotPrimary` where another node leads; `Refused` and `Unavailable` where nobody can take over.
    pub fn check_handoff(&self, to: Option<&NodeName>) -> Result<(), ClusterError> {
        let members = self.led_members()?;
        match to {
            Some(name) => self.may_succeed(&members, self.find(&members, name)?.0),
            None => self.best_successor(&members).map(drop),
        }
    }

    /// Whether this node leads, as far as it knows.
    ///
    /// # Errors
    /// `NotPrimary` where it does not.
    pub fn check_leading(&self) -> Result<(), ClusterError> {
        self.led_members().map(drop)
    }

    /// Gives up leading in favour of `to`, or of the voter that is the least behind; returns who leads then.
    ///
    /// # Errors
    /// `Unavailable` where nobody takes over in time: this node still leads then, or somebody else was elected.
    pub async fn transfer(&self, to: Option<&NodeName>) -> Result<NodeName, ClusterError> {
        let members = self.led_members()?;
        let id = match to {
            Some(name) => self.find(&members, name)?.0,
            None => self.best_successor(&members)?,
        };
        self.may_succeed(&members, id)?;
        let ended = |error: openraft::error::Fatal<TypeConfig>| ClusterError::Unavailable(error.to_string());
        self.raft.trigger().transfer_leader(id).await.map_err(ended)?;
        let leads = move |metrics: &Metrics| metrics.current_leader == Some(id);
        let wait = self.raft.wait(Some(self.options.lease() * 2)).metrics(leads, "handed off").await;
        let name = members.get_node(&id).map(|peer| peer.name.clone()).unwrap_or_default();
        match wait {
            Ok(_) => name.parse().map_err(|_| ClusterError::Unavailable("the successor has no name".into())),
            Err(_) => Err(ClusterError::Unavailable(format!("{name} did not take over in time"))),
        }
    }

    /// Makes sure with a quorum that this node leads: what it has committed is the newest there is.
    ///
    /// # Errors
    /// `NotPrimary` where another node leads, `Unavailable` where no quorum answers.
    pub async fn confirm_leading(&self) -> Result<(), ClusterError> {
        let asked = tokio::time::Instant::now();
        let confirmed = async {
            let read = self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await;
            if read.is_ok() {
                // openraft may have taken an older answer for one to what it has just sent.
                let (term, configs) = self.term_and_configs();
                self.acks.confirmed_since(asked, self.options.node.get(), term, &configs).await;
            }
            read
        };
        match tokio::time::timeout(self.options.lease() * 2, confirmed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => match self.led_members() {
                Ok(_) => Err(ClusterError::Unavailable(error.to_string())),
                Err(other) => Err(other),
            },
            Err(_) => Err(ClusterError::Unavailable("no quorum answers".into())),
        }
    }

    fn term_and_configs(&self) -> (u64, Vec<BTreeSet<u64>>) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        (metrics.current_term, metrics.membership_config.membership().get_joint_config().clone())
    }

    /// The members, where this node leads.
    fn led_members(&self) -> Result<Members, ClusterError> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let members = metrics.membership_config.membership().clone();
        if metrics.state == ServerState::Leader {
            return Ok(members);
        }
        let leader = metrics.current_leader.and_then(|id| members.get_node(&id));
        Err(ClusterError::NotPrimary(leader.map(|peer| peer.addr.clone())))
    }

    fn find(&self, members: &Members, name: &NodeName) -> Result<(u64, Peer), ClusterError> {
        let mut nodes = members.nodes();
        let found = nodes.find(|(_, peer)| peer.name == name.as_str());
        found.map(|(id, peer)| (*id, peer.clone())).ok_or_else(|| {
            ClusterError::Refused(format!(
                "no voter or standby is named {name}, and no replica that has left; see skein members list"
            ))
        })
    }

    async fn change(&self, change: ChangeMembers<u64, Peer>, retain: bool) -> Result<(), ClusterError> {
        change_membership(&self.raft, change, retain).await.map_err(|error| self.why_not_changed(error))
    }

    async fn remove_voter(&self, id: u64, retain: bool) -> Result<(), ClusterError> {
        let fewer = ChangeMembers::RemoveVoters(BTreeSet::from([id]));
        self.holders.change_voters(fewer, retain).await.map_err(|error| self.why_not_changed(error))
    }

    fn why_not_changed(&self, error: String) -> ClusterError {
        match self.led_members() {
            Ok(_) => ClusterError::Unavailable(error),
            Err(other) => other,
        }
    }

    fn best_successor(&self, members: &Members) -> Result<u64, ClusterError> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let own = self.options.node.get();
        let others = members.voter_ids().filter(|id| *id != own && is_heard(&metrics, *id));
        let best = others.max_by_key(|id| matched(&metrics, *id));
        best.ok_or_else(|| ClusterError::Refused("no other voter is there to take over".into()))
    }

    fn may_succeed(&self, members: &Members, id: u64) -> Result<(), ClusterError> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let name = members.get_node(&id).map(|peer| peer.name.clone()).unwrap_or_default();
        if id == self.options.node.get() {
            return Err(ClusterError::Refused(format!("{name} is the primary already")));
        }
        if !members.voter_ids().any(|voter| voter == id) {
            return Err(ClusterError::Refused(format!("{name} does not vote, so it cannot be primary")));
        }
        if !is_heard(&metrics, id) {
            return Err(ClusterError::Unavailable(format!("{name} does not answer")));
        }
        Ok(())
    }
}

fn member(metrics: &Metrics, members: &Members, own: u64, id: u64, peer: &Peer) -> Option<Member> {
    let last = metrics.last_log_index.unwrap_or(0);
    let standing = match (members.voter_ids().any(|voter| voter == id), peer.votes) {
        (true, _) => Standing::Votes,
        (false, true) => Standing::Joining,
        (false, false) => Standing::Standby,
    };
    let leads = metrics.state == ServerState::Leader;
    let index = if id == own { last } else { matched(metrics, id) };
    let healthy = id == own || (leads && is_heard(metrics, id)) || metrics.current_leader == Some(id);
    let known = id == own || leads;
    Some(Member {
        name: peer.name.parse().ok()?,
        role: Role::Voter,
        addr: peer.addr.clone(),
        healthy,
        // What a node that does not answer has got since is not known.
        lag: (known && healthy && index == last).then_some(Duration::ZERO),
        lag_entries: if known { last.saturating_sub(index) } else { 0 },
        standing,
    })
}
