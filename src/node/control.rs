//! What is asked of the cluster as a whole: done here where this node is primary, passed on where it is not.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::followers_of_voters::OtherVoters;
use super::holds::Holds;
use super::preparing::Preparing;
use crate::proxy::WriteGate;
use crate::raft::RaftNode;
use crate::rpc::RemoteCluster;
use crate::store::{
    Candidate, ClusterAnswer, ClusterControl, ClusterError, Member, MemberChange, Preparation, Standing,
    Store,
};
use crate::stream::Serving;
use crate::types::{DbName, NodeName, Pos};

/// A planned move of the primary, and who waits for it.
pub(super) struct HandoffOrder {
    /// Who shall be primary; `None`: whoever is the least behind.
    pub(super) to: Option<NodeName>,
    /// Hears of the outcome.
    pub(super) done: oneshot::Sender<Result<NodeName, ClusterError>>,
}

/// What a voter does itself.
pub(super) struct VoterControl {
    pub(super) raft: Arc<RaftNode>,
    pub(super) store: Arc<Store>,
    pub(super) serving: Arc<Serving>,
    /// Those who follow other voters, and which of those answer.
    pub(super) elsewhere: watch::Receiver<OtherVoters>,
    pub(super) handoffs: mpsc::Sender<HandoffOrder>,
    /// Followers that were removed and have not come back, although another voter may still list them.
    pub(super) forgotten: Mutex<BTreeSet<NodeName>>,
    /// What applications hold.
    pub(super) holds: Holds,
    /// What the application needs done before it starts.
    pub(super) preparing: Preparing,
    /// Through which the proxy lets writes in.
    pub(super) gate: WriteGate,
    /// How long a planned move waits for those that are inside.
    pub(super) drain_timeout: Duration,
}

/// How long a promotion is waited for.
const PROMOTION_MAX: Duration = Duration::from_secs(30);

impl ClusterControl for VoterControl {
    fn enlist(&self, candidate: Candidate) -> ClusterAnswer<'_, ()> {
        Box::pin(self.raft.enlist(candidate))
    }

    fn change_member(&self, change: MemberChange) -> ClusterAnswer<'_, ()> {
        Box::pin(async move {
            // Who follows is no member of the group: it is listed, and no more.
            if let MemberChange::Remove(name) = &change
                && self.raft.check_leading().is_ok()
                && self.forget_follower(name)
            {
                return Ok(());
            }
            self.raft.change_member(change.clone()).await?;
            match change {
                MemberChange::Promote(name) => self.wait_voting(&name).await,
                MemberChange::Remove(_) | MemberChange::Demote(_) => Ok(()),
            }
        })
    }

    fn hand_off(&self, to: Option<NodeName>) -> ClusterAnswer<'_, NodeName> {
        Box::pin(async move {
            self.raft.check_handoff(to.as_ref())?;
            if let Some(release) = self.preparing.under_way() {
                return Err(ClusterError::Unavailable(format!(
                    "exec.before of release {release:?} is running on the primary; try again when it has ended"
                )));
            }
            let _moving = self.holds.begin_move().map_err(|(db, left)| {
                ClusterError::Unavailable(format!(
                    "an application of the primary holds the write lease of {db}; try again when it has given it back, in {left:.1?} at most"
                ))
            })?;
            // Before the databases are fenced: what an application has begun, it ends here.
            let _closed = self.gate.pause(self.drain_timeout).await;
            let (done, answer) = oneshot::channel();
            let ending = || ClusterError::Unavailable("the node is shutting down".into());
            self.handoffs.send(HandoffOrder { to, done }).await.map_err(|_| ending())?;
            answer.await.map_err(|_| ending())?
        })
    }

    fn newest(&self, db: DbName) -> ClusterAnswer<'_, Pos> {
        Box::pin(async move {
            self.raft.confirm_leading().await?;
            Ok(self.store.get(&db).map_or(Pos::ZERO, |database| database.pos()))
        })
    }

    fn preparation(&self) -> ClusterAnswer<'_, Preparation> {
        Box::pin(async move {
            self.raft.check_leading()?;
            Ok(self.preparing.now())
        })
    }

    fn members(&self) -> ClusterAnswer<'_, Vec<Member>> {
        Box::pin(async move {
            self.raft.check_leading()?;
            Ok(self.nodes())
        })
    }
}

impl VoterControl {
    /// Does not list a follower any more that has left; whether there was one of that name.
    fn forget_follower(&self, name: &NodeName) -> bool {
        let mut forgotten = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        let gone =
            |known: &Member| known.name == *name && !known.healthy && known.standing == Standing::Follows;
        if !self.elsewhere.borrow().followers.iter().chain(&self.serving.members()).any(gone) {
            return false;
        }
        self.serving.followers().forget(name);
        forgotten.insert(name.clone());
        true
    }

    /// Whether a node that answers, and is another one than that at `addr`, has this name.
    pub(super) fn is_name_taken(&self, name: &NodeName, addr: &str) -> bool {
        let members = self.raft.members();
        let elsewhere = self.elsewhere.borrow();
        let follows = elsewhere.followers.iter().filter(|other| other.healthy);
        members.iter().chain(follows).any(|other| other.name == *name && other.addr != addr)
    }

    /// All nodes of the cluster, as this one knows them.
    pub(super) fn nodes(&self) -> Vec<Member> {
        let mut followers = self.serving.members();
        followers.extend_from_slice(&self.elsewhere.borrow().followers);
        let mut forgotten = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has come back is listed again.
        forgotten.retain(|name| !followers.iter().any(|known| known.healthy && known.name == *name));
        followers.retain(|known| !forgotten.contains(&known.name));
        drop(forgotten);
        with_followers(self.raft.members(), followers)
    }

    async fn wait_voting(&self, name: &NodeName) -> Result<(), ClusterError> {
        let mut states = self.raft.watch_primary();
        let votes = || {
            let members = self.raft.members();
            members.iter().any(|member| member.name == *name && member.standing == Standing::Votes)
        };
        let waited = tokio::time::timeout(PROMOTION_MAX, async {
            while !votes() {
                // The deadline of this node as primary moves with every heartbeat.
                if states.changed().await.is_err() {
                    return;
                }
            }
        });
        let late = || {
            ClusterError::Unavailable(format!(
                "{name} does not vote yet: it votes once it is close behind and the number of voters stays odd"
            ))
        };
        waited.await.map_err(|_| late())
    }
}

/// Members and those who follow them, each once: one that went from one node to another is known to both for a while.
pub(super) fn with_followers(mut members: Vec<Member>, mut followers: Vec<Member>) -> Vec<Member> {
    followers.sort_by(|a, b| (&a.name, b.healthy).cmp(&(&b.name, a.healthy)));
    followers.dedup_by(|later, first| later.name == first.name);
    followers.retain(|follower| !members.iter().any(|known| known.name == follower.name));
    members.extend(followers);
    members
}

/// The cluster as this node's operator reaches it.
pub(super) struct Control {
    /// This node, where it is a voter.
    pub(super) local: Option<Arc<VoterControl>>,
    /// The others.
    pub(super) remote: Arc<RemoteCluster>,
}

/// Asks this node, then the others.
macro_rules! local_or_remote {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        Box::pin(async move {
            if let Some(local) = &$self.local {
                match local.$method($($argument.clone()),*).await {
                    Err(ClusterError::NotPrimary(_)) => {}
                    answer => return answer,
                }
            }
            $self.remote.$method($($argument),*).await
        })
    };
}

impl ClusterControl for Control {
    fn enlist(&self, candidate: Candidate) -> ClusterAnswer<'_, ()> {
        local_or_remote!(self.enlist(candidate))
    }

    fn change_member(&self, change: MemberChange) -> ClusterAnswer<'_, ()> {
        local_or_remote!(self.change_member(change))
    }

    fn hand_off(&self, to: Option<NodeName>) -> ClusterAnswer<'_, NodeName> {
        local_or_remote!(self.hand_off(to))
    }

    fn newest(&self, db: DbName) -> ClusterAnswer<'_, Pos> {
        local_or_remote!(self.newest(db))
    }

    fn preparation(&self) -> ClusterAnswer<'_, Preparation> {
        local_or_remote!(self.preparation())
    }

    fn members(&self) -> ClusterAnswer<'_, Vec<Member>> {
        local_or_remote!(self.members())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Role;

    fn follower(name: &str, healthy: bool) -> Member {
        Member {
            name: name.parse().unwrap(),
            role: Role::Replica,
            addr: String::new(),
            healthy,
            lag: None,
            lag_entries: 0,
            standing: Standing::Follows,
        }
    }

    #[test]
    fn a_node_known_to_several_is_listed_once_as_who_has_it_now_knows_it() {
        let members = vec![Member { role: Role::Voter, standing: Standing::Votes, ..follower("n1", true) }];
        let followers =
            vec![follower("r2", false), follower("r1", true), follower("n1", false), follower("r2", true)];
        let all = with_followers(members.clone(), followers);
        assert_eq!(all, [members[0].clone(), follower("r1", true), follower("r2", true)]);
    }
}
