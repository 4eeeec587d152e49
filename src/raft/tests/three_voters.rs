//! Three voters in one process, over real connections on loopback.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use openraft::async_runtime::WatchReceiver;

use super::{Recorder, change};
use crate::db::CommitError;
use crate::io::blobs::BlobStore;
use crate::raft::handle::change_membership;
use crate::raft::types::Peer;
use crate::raft::{Beginning, RaftNode, RaftOptions};
use crate::store::{Candidate, ClusterError, MemberChange, Standing};
use crate::types::{LogIndex, NodeId};

const SOON: Duration = Duration::from_secs(20);

/// One voter with its server.
struct Voter {
    id: u64,
    dir: TempDir,
    target: Arc<Recorder>,
    node: Option<(Arc<RaftNode>, CancellationToken)>,
    blobs: Option<Arc<BlobStore>>,
    addr: SocketAddr,
}

/// The voters and what serves them.
struct Group {
    voters: Vec<Voter>,
    servers: tokio::runtime::Runtime,
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Group {
    /// One founder, and `others` that have joined it.
    fn of(others: u64) -> Self {
        let servers =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut group = Self { voters: Vec::new(), servers };
        group.add(Beginning::Found);
        for _ in 0..others {
            let new = group.add(Beginning::Wait);
            group.join(new);
        }
        group.wait_voting(1 + others as usize);
        group
    }

    fn add(&mut self, beginning: Beginning) -> usize {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, id) = (listener.local_addr().unwrap(), self.voters.len() as u64 + 1);
        drop(listener);
        let (dir, target) = (tempfile::tempdir().unwrap(), Arc::default());
        self.voters.push(Voter { id, dir, target, node: None, blobs: None, addr });
        self.start(id as usize - 1, beginning);
        id as usize - 1
    }

    fn start(&mut self, which: usize, beginning: Beginning) {
        let voter = &mut self.voters[which];
        let name = format!("n{}", voter.id).parse().unwrap();
        let (id, dir) = (NodeId::new(voter.id), voter.dir.path());
        let mut options = RaftOptions::new("c".into(), id, name, dir.join("raft"));
        options.addr = voter.addr.to_string();
        options.segment_bytes = 64 * 1024;
        options.commit_timeout = Duration::from_secs(2);
        options.retention_bytes = 128 * 1024;
        options.beginning = beginning;
        let blobs = Arc::new(BlobStore::open(dir.join("blobs")).unwrap());
        voter.blobs = Some(blobs.clone());
        let node = RaftNode::start(options, voter.target.clone(), blobs).unwrap();
        let (routes, stop, addr) = (Routes::new(node.service()), CancellationToken::new(), voter.addr);
        let (connections, stopped) = (node.connections(), stop.clone());
        self.servers.spawn(async move {
            let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
            let peering = crate::security::Peering::default();
            let elsewhere = crate::rpc::Elsewhere { raft: Some(connections), ..Default::default() };
            crate::rpc::serve(listener, routes, elsewhere, peering, stopped).await.unwrap();
        });
        voter.node = Some((node, stop));
    }

    fn stop(&mut self, which: usize) {
        let (node, stop) = self.voters[which].node.take().unwrap();
        stop.cancel();
        node.shutdown();
    }

    fn node(&self, which: usize) -> &Arc<RaftNode> {
        &self.voters[which].node.as_ref().unwrap().0
    }

    fn blobs(&self, which: usize) -> &BlobStore {
        self.voters[which].blobs.as_ref().unwrap()
    }

    /// Gives every voter a copy of a large change set, has one refuse it, and waits until all copies are gone.
    fn refuse_large(&self, which: usize, digest: u8) {
        let all = 0..self.voters.len();
        all.clone().for_each(|each| keep_large(self.blobs(each), digest));
        self.blobs(which).refuse([(digest.into(), 8)]);
        eventually("all copies are removed", || {
            all.clone().all(|each| !self.blobs(each).contains((digest.into(), 8))).then_some(())
        });
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.voters.len()).filter(|which| self.voters[*which].node.is_some())
    }

    fn candidate(&self, which: usize, name: &str, returning: bool) -> Candidate {
        let voter = &self.voters[which];
        Candidate {
            node: NodeId::new(voter.id),
            name: name.parse().unwrap(),
            addr: voter.addr.to_string(),
            http: String::new(),
            returning,
        }
    }

    fn join(&self, which: usize) {
        let candidate = self.candidate(which, &format!("n{}", which + 1), false);
        let leader = self.primary();
        self.servers.block_on(self.node(leader).enlist(candidate)).unwrap();
    }

    /// The one that is primary, by its own word.
    fn primary(&self) -> usize {
        eventually("a primary", || {
            self.running().find(|which| {
                let state = self.node(*which).watch_primary().borrow().clone();
                state.is_self && state.until.is_none_or(|until| until > Instant::now())
            })
        })
    }

    fn wait_voting(&self, count: usize) {
        eventually("all vote", || {
            let members = self.node(self.primary()).members();
            (members.iter().filter(|member| member.standing == Standing::Votes).count() == count)
                .then_some(())
        });
    }

    /// Proposes changes named `d<number>` on one node; their fates in order of the numbers.
    fn propose(&self, which: usize, numbers: std::ops::Range<u64>) -> Vec<Result<LogIndex, CommitError>> {
        let (sink, (sender, told)) = (self.node(which).sink(), mpsc::channel());
        for number in numbers.clone() {
            let sender = sender.clone();
            let mut proposal = change(which as u64 + 1, number, &format!("d{number}"));
            proposal.origin.node = NodeId::new(self.voters[which].id);
            sink.propose(proposal, Box::new(move |fate| sender.send((number, fate)).unwrap()));
        }
        let mut fates: Vec<_> = numbers.map(|_| told.recv_timeout(SOON).unwrap()).collect();
        fates.sort_by_key(|(number, _)| *number);
        fates.into_iter().map(|(_, fate)| fate).collect()
    }

    /// Waits until a node has been told `names` in this order, its own proposals left out.
    fn wait_told(&self, which: usize, names: &[String]) {
        eventually("all entries are applied", || (self.voters[which].target.names() == names).then_some(()));
    }
}

fn keep_large(blobs: &BlobStore, digest: u8) {
    let mut blob = blobs.create().unwrap();
    blob.write_all(&[0, 0, 0, 0, 0, 0, 0, digest]).unwrap();
    blobs.keep(blob, (digest.into(), 8)).unwrap();
}

fn names(numbers: impl Iterator<Item = u64>) -> Vec<String> {
    numbers.map(|number| format!("d{number}")).collect()
}

#[test]
fn proposals_reach_every_voter_in_the_order_they_were_told() {
    let group = Group::of(2);
    let primary = group.primary();
    let fates = group.propose(primary, 0..200);
    assert!(fates.iter().all(Result::is_ok), "{fates:?}");
    for which in group.running().filter(|which| *which != primary) {
        group.wait_told(which, &names(0..200));
        let refused = group.propose(which, 900..901).pop().unwrap();
        assert!(matches!(refused, Err(CommitError::Refused(_))), "{refused:?}");
    }
}

#[test]
fn voters_remove_their_copies_of_a_refused_change_set_and_tell_nobody_else_of_it() {
    let group = Group::of(2);
    group.refuse_large(0, 1);
    // Who heard of it told no others, whose word would reach this one now.
    keep_large(group.blobs(0), 1);
    // What was on its way is taken together with this, or before it.
    group.refuse_large(1, 2);
    assert!(group.blobs(0).contains((1, 8)));
}

#[test]
fn another_voter_leads_after_the_primary_and_has_everything() {
    let mut group = Group::of(2);
    let first = group.primary();
    assert!(group.propose(first, 0..50).iter().all(Result::is_ok));
    group.stop(first);
    let second = group.primary();
    assert_ne!(first, second);
    assert!(group.propose(second, 50..100).iter().all(Result::is_ok));
    let third = group.running().find(|which| *which != second).unwrap();
    group.wait_told(third, &names(0..100));
    group.start(first, Beginning::Never);
    group.wait_told(first, &names(0..100));
}

#[test]
fn without_a_quorum_nothing_is_confirmed_and_the_primary_knows_it() {
    let mut group = Group::of(2);
    let primary = group.primary();
    let others: Vec<usize> = group.running().filter(|which| *which != primary).collect();
    others.iter().for_each(|which| group.stop(*which));
    let fate = group.propose(primary, 0..1).pop().unwrap();
    assert!(fate.is_err(), "{fate:?}");
    let expired = |state: &crate::raft::PrimaryState| state.until.is_none_or(|until| until <= Instant::now());
    eventually("its time as primary is over", || {
        let state = group.node(primary).watch_primary().borrow().clone();
        (!state.is_self || expired(&state)).then_some(())
    });
    let confirmed = group.servers.block_on(group.node(primary).confirm_leading());
    assert!(confirmed.is_err());
    // With a quorum it is settled one way or the other, and alike everywhere.
    others.iter().for_each(|which| group.start(*which, Beginning::Never));
    let leader = group.primary();
    assert!(group.propose(leader, 10..11)[0].is_ok());
    group.servers.block_on(group.node(leader).confirm_leading()).unwrap();
}

#[test]
fn the_primary_moves_when_asked_to() {
    let group = Group::of(2);
    let first = group.primary();
    assert!(group.propose(first, 0..10).iter().all(Result::is_ok));
    let to = group.running().find(|which| *which != first).unwrap();
    let name = format!("n{}", to + 1).parse().unwrap();
    let moved = group.servers.block_on(group.node(first).transfer(Some(&name))).unwrap();
    assert_eq!(moved, name);
    assert_eq!(eventually("it is primary", || Some(group.primary()).filter(|now| *now == to)), to);
    assert!(group.propose(to, 10..20).iter().all(Result::is_ok));
    group.wait_told(first, &names(10..20));
    let unknown = group.servers.block_on(group.node(to).transfer(Some(&"n9".parse().unwrap())));
    assert!(matches!(unknown, Err(ClusterError::Refused(_))), "{unknown:?}");
}

#[test]
fn members_come_and_go_one_at_a_time_and_an_even_one_waits() {
    let mut group = Group::of(2);
    let fourth = group.add(Beginning::Wait);
    group.join(fourth);
    let primary = group.primary();
    let standing = |group: &Group, name: &str| {
        let members = group.node(group.primary()).members();
        members.into_iter().find(|member| member.name.as_str() == name).map(|member| member.standing)
    };
    assert!(group.propose(primary, 0..20).iter().all(Result::is_ok));
    group.wait_told(fourth, &names(0..20));
    assert_eq!(standing(&group, "n4"), Some(Standing::Joining), "a fourth voter is of no use");
    let change =
        |group: &Group, change| group.servers.block_on(group.node(group.primary()).change_member(change));
    let victim = group.running().find(|which| *which != primary && *which != fourth).unwrap();
    let name: crate::types::NodeName = format!("n{}", victim + 1).parse().unwrap();
    change(&group, MemberChange::Demote(name.clone())).unwrap();
    eventually("the one that waited votes", || (standing(&group, "n4")? == Standing::Votes).then_some(()));
    assert_eq!(standing(&group, name.as_str()), Some(Standing::Standby));
    change(&group, MemberChange::Remove(name.clone())).unwrap();
    assert_eq!(standing(&group, name.as_str()), None);
    let own = format!("n{}", primary + 1).parse().unwrap();
    assert!(matches!(change(&group, MemberChange::Remove(own)), Err(ClusterError::Refused(_))));
    // A removed one does not come back by itself, nor does another under a name in use.
    let control = |candidate| group.servers.block_on(group.node(group.primary()).enlist(candidate));
    let back = control(group.candidate(victim, name.as_str(), true)).unwrap_err();
    assert!(back.to_string().contains("was removed"), "{back}");
    let twin = control(group.candidate(victim, "n4", false)).unwrap_err();
    assert!(twin.to_string().contains("members remove n4"), "{twin}");
}

/// More than one while the voters change.
fn sets_of_voters(group: &Group, which: usize) -> Vec<std::collections::BTreeSet<u64>> {
    let metrics = group.node(which).raft.metrics().borrow_watched().clone();
    metrics.membership_config.membership().get_joint_config().clone()
}

#[test]
fn a_change_of_the_voters_that_its_leader_left_in_the_middle_is_completed() {
    let mut group = Group::of(2);
    let primary = group.primary();
    let away = group.running().find(|which| *which != primary).unwrap();
    group.stop(away);
    // Two that never ran are to vote: two of five can confirm nothing, so the change ends after its first step.
    let raft = group.node(primary).raft.clone();
    let never: std::collections::BTreeMap<u64, Peer> = [8, 9]
        .map(|id| {
            (id, Peer { name: format!("n{id}"), addr: String::new(), http: String::new(), votes: true })
        })
        .into();
    let voters = openraft::ChangeMembers::AddVoters(never);
    let change = group.servers.spawn(async move { change_membership(&raft, voters, true).await });
    eventually("two sets of voters, one of them of five", || {
        let sets = sets_of_voters(&group, primary);
        (sets.len() == 2 && sets[1].len() == 5).then_some(())
    });
    change.abort();
    assert!(group.servers.block_on(change).unwrap_err().is_cancelled());
    group.start(away, Beginning::Never);
    eventually("one set of voters", || {
        let sets = sets_of_voters(&group, group.primary());
        (sets.len() == 1 && sets[0].len() == 5).then_some(())
    });
    assert!(group.propose(group.primary(), 0..5).iter().all(Result::is_ok));
}

#[test]
fn a_voter_that_was_away_for_too_long_fetches_what_differs() {
    let mut group = Group::of(2);
    let primary = group.primary();
    let away = group.running().find(|which| *which != primary).unwrap();
    group.stop(away);
    let mut next = 0;
    eventually("the log is purged", || {
        let fates = group.propose(primary, next..next + 500);
        next += 500;
        let last = *fates.last().unwrap().as_ref().unwrap();
        for which in group.running() {
            *group.voters[which].target.durable.lock().unwrap() = last;
        }
        (group.node(primary).log().first_index() > LogIndex::new(100)).then_some(())
    });
    // As it is before the fetch, for later.
    let (log, before) = (group.voters[away].dir.path().join("raft"), tempfile::tempdir().unwrap());
    copy_files(&log, before.path());
    group.start(away, Beginning::Never);
    eventually("it fetched", || {
        (!group.voters[away].target.fetched.lock().unwrap().is_empty()).then_some(())
    });
    assert!(group.propose(primary, next..next + 1)[0].is_ok());
    eventually("it goes on with the log", || {
        let names = group.voters[away].target.names();
        (names.last() == Some(&format!("d{next}"))).then_some(())
    });

    // The same once more, had it died between the fetch and the moment its log gave up what the fetch replaces. The leader
    // starts anew, too: it remembers how far this node has come since, and in the case that is built it had not.
    group.stop(away);
    group.stop(primary);
    let fetched = *group.voters[away].target.fetched.lock().unwrap().last().unwrap();
    *group.voters[away].target.durable.lock().unwrap() = fetched;
    std::fs::copy(log.join("fetched"), before.path().join("fetched")).unwrap();
    std::fs::remove_dir_all(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    copy_files(before.path(), &log);
    group.start(primary, Beginning::Never);
    group.start(away, Beginning::Never);
    assert!(group.propose(group.primary(), next + 1..next + 2)[0].is_ok());
    eventually("it goes on behind what it fetched", || {
        let names = group.voters[away].target.names();
        (names.last() == Some(&format!("d{}", next + 1))).then_some(())
    });
}

fn copy_files(from: &std::path::Path, to: &std::path::Path) {
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}
