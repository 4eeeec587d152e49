//! One voter: proposals, restarts, refusals, and the log's end.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::{Recorder, change};
use crate::db::CommitError;
use crate::io::blobs::BlobStore;
use crate::raft::{Beginning, RaftError, RaftNode, RaftOptions};
use crate::types::{LogIndex, NodeId};

const SOON: Duration = Duration::from_secs(20);

fn start(dir: &Path, target: &Arc<Recorder>, bootstrap: bool) -> Result<Arc<RaftNode>, RaftError> {
    start_with(dir, target, |options| {
        options.beginning = if bootstrap { Beginning::Found } else { Beginning::Never };
    })
}

fn start_with(
    dir: &Path,
    target: &Arc<Recorder>,
    set: impl FnOnce(&mut RaftOptions),
) -> Result<Arc<RaftNode>, RaftError> {
    let mut options = RaftOptions::new("c".into(), NodeId::new(1), "n1".parse().unwrap(), dir.join("raft"));
    options.segment_bytes = 64 * 1024;
    set(&mut options);
    let blobs = Arc::new(BlobStore::open(dir.join("blobs")).unwrap());
    RaftNode::start(options, target.clone(), blobs)
}

/// Proposes changes named `first`.. and gives their fates in the order they were told.
fn propose(
    node: &RaftNode,
    run: u64,
    names: impl Iterator<Item = u64>,
) -> Vec<(u64, Result<LogIndex, CommitError>)> {
    let sink = node.sink();
    let (sender, told) = mpsc::channel();
    let mut count = 0;
    for number in names {
        let sender = sender.clone();
        count += 1;
        sink.propose(
            change(run, number, &format!("d{number}")),
            Box::new(move |fate| sender.send((number, fate)).unwrap()),
        );
    }
    (0..count).map(|_| told.recv_timeout(SOON).unwrap()).collect()
}

#[test]
fn own_proposals_are_told_in_log_order_and_share_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let target = Arc::new(Recorder::default());
    let node = start(dir.path(), &target, true).unwrap();
    let before = node.syncs();
    let fates = propose(&node, 7, 0..500);
    let mut last = LogIndex::ZERO;
    for (number, (told, fate)) in fates.into_iter().enumerate() {
        assert_eq!(told, number as u64);
        let index = fate.unwrap();
        assert!(index > last);
        last = index;
    }
    let syncs = node.syncs() - before;
    assert!(syncs < 250, "{syncs} syncs for 500 proposals made at once");
    // They were told to their proposer, and so are not applied as foreign ones.
    assert!(target.names().is_empty());
    node.shutdown();
}

#[test]
fn a_thread_that_waits_for_its_commit_decides_it_itself() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), &Arc::default(), true).unwrap();
    let sink = node.sink();
    let own = std::thread::current().id();
    let mut here = 0;
    for number in 0..200 {
        let (sender, told) = mpsc::channel();
        let done = move |fate: Result<LogIndex, CommitError>| {
            sender.send((fate, std::thread::current().id())).unwrap();
        };
        sink.propose(change(7, number, "d"), Box::new(done));
        sink.drive();
        let (fate, by) = told.recv_timeout(SOON).unwrap();
        assert!(fate.is_ok(), "{fate:?}");
        here += usize::from(by == own);
    }
    assert!(here > 0, "Raft's own thread never leaves it to the one that waits");
    // And it comes back for those who do not drive.
    let other = std::thread::spawn(move || {
        let fates = propose(&node, 8, 0..3);
        node.shutdown();
        fates
    });
    assert!(other.join().unwrap().iter().all(|(_, fate)| fate.is_ok()));
}

#[test]
fn threads_that_drive_and_threads_that_do_not_lose_no_proposal() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), &Arc::default(), true).unwrap();
    std::thread::scope(|scope| {
        for run in 1..=6 {
            let sink = node.sink();
            scope.spawn(move || {
                let mut last = LogIndex::ZERO;
                for number in 0..150 {
                    let (sender, told) = mpsc::channel();
                    sink.propose(change(run, number, "d"), Box::new(move |fate| sender.send(fate).unwrap()));
                    if run % 2 == 0 {
                        sink.drive();
                    }
                    let index = told.recv_timeout(SOON).unwrap().unwrap();
                    assert!(index > last);
                    last = index;
                }
            });
        }
    });
    assert!(node.log().read(node.log().first_index(), usize::MAX).unwrap().len() >= 900);
    node.shutdown();
}

#[test]
fn a_restart_applies_again_what_is_not_durable_in_the_databases() {
    let dir = tempfile::tempdir().unwrap();
    let target = Arc::new(Recorder::default());
    let node = start(dir.path(), &target, true).unwrap();
    let fates = propose(&node, 7, 0..10);
    let fourth = fates[4].1.clone().unwrap();
    node.shutdown();
    *target.durable.lock().unwrap() = fourth;
    let again = start(dir.path(), &target, false).unwrap();
    assert_eq!(target.names(), ["d5", "d6", "d7", "d8", "d9"]);
    assert!(again.term() > 0);
    let more = propose(&again, 8, 10..11);
    assert!(more[0].1.clone().unwrap() > fates[9].1.clone().unwrap());
    again.shutdown();
}

#[test]
fn the_members_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let target = Arc::new(Recorder::default());
    for bootstrap in [true, false] {
        let node = start(dir.path(), &target, bootstrap).unwrap();
        let members = node.members();
        assert_eq!(members.len(), 1);
        assert_eq!(members[0].name.to_string(), "n1");
        assert!(members[0].healthy);
        node.shutdown();
    }
}

#[test]
fn a_node_without_a_cluster_says_how_to_get_one() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = start(dir.path(), &Arc::default(), false).err().unwrap().to_string();
    assert!(refusal.contains("--bootstrap") && refusal.contains("--join"), "{refusal}");
}

#[test]
fn databases_ahead_of_the_log_are_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let target = Arc::new(Recorder::default());
    start(dir.path(), &target, true).unwrap().shutdown();
    *target.durable.lock().unwrap() = LogIndex::new(1_000_000);
    let refusal = start(dir.path(), &target, false).err().unwrap().to_string();
    assert!(refusal.contains("the log ends at"), "{refusal}");
}

#[test]
fn proposals_after_the_end_have_no_known_success() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path(), &Arc::default(), true).unwrap();
    node.shutdown();
    for (_, fate) in propose(&node, 7, 0..3) {
        assert!(fate.is_err());
    }
}

#[test]
fn the_log_is_purged_behind_the_databases_and_keeps_what_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let target = Arc::new(Recorder::default());
    let node = start_with(dir.path(), &target, |options| {
        options.beginning = Beginning::Found;
        options.retention_bytes = 128 * 1024;
    })
    .unwrap();
    let mut last = LogIndex::ZERO;
    for round in 0..40 {
        last = propose(&node, 7, round * 200..(round + 1) * 200).pop().unwrap().1.unwrap();
    }
    let log = node.log();
    assert!(log.first_index() <= LogIndex::new(1), "nothing is durable in the databases yet");
    *target.durable.lock().unwrap() = last;
    let purged = || log.first_index() > LogIndex::new(1);
    let deadline = std::time::Instant::now() + SOON;
    while !purged() && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(purged(), "the log is never purged");
    assert!(log.read(log.first_index(), usize::MAX).is_ok());
    assert!(log.read(LogIndex::new(1), usize::MAX).is_err(), "purged entries are named as such");
    node.shutdown();
    let kept: u64 = std::fs::read_dir(dir.path().join("raft"))
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!(kept < 1 << 20, "{kept} bytes kept of about 128 KiB");
    // And the log that is left is one that can be started from.
    let again = start(dir.path(), &target, false).unwrap();
    assert!(propose(&again, 8, 0..1)[0].1.is_ok());
    again.shutdown();
}
