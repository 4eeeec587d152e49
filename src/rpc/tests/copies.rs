//! Snapshots by difference, and large change sets.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::fake_store::{Blob, name};
use super::nodes::{Node, Replica, relay};
use crate::ltx::BlobRef;
use crate::store::{NameEntry, NameList};
use crate::types::{Attributes, LogIndex, MountPath};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_joiner_takes_a_snapshot_and_goes_on_from_it() {
    let node = Node::start().await;
    for byte in 1..20 {
        node.commit("a", &[(1, byte)]);
        node.commit("b/c", &[(1, byte)]);
    }
    node.purge(3);
    let entry = |uid, mode| NameEntry {
        attributes: Attributes::new(uid, 100, mode),
        changed_ms: 1_700_000_000_000,
        index: LogIndex::new(2),
    };
    let directory = |number: u32| MountPath::Directory(name(&format!("d{number}")));
    let mut names = vec![
        (MountPath::Root, entry(0, 0o755)),
        (MountPath::Database(name("a")), entry(1000, 0o600)),
        (MountPath::Database(name("empty")), entry(1000, 0o2640)),
    ];
    // More than one message holds.
    names.extend((0..2500).map(|number| (directory(number), entry(number, 0o700))));
    node.store.lock().names = NameList { names };
    let replica = Replica::follow(2, &[&node.addr], Arc::default());
    // Not in the cluster: a snapshot of the whole set removes it.
    replica.store.lock().dbs.insert(name("stray"), Default::default());
    replica.store.lock().names =
        NameList { names: vec![(MountPath::Directory(name("stray")), entry(1, 0o700))] };
    replica.follower.wait_synced().await.unwrap();
    replica.reach(LogIndex::new(38)).await;
    assert_eq!(replica.store.dbs(), node.store.dbs());
    assert_eq!(replica.store.lock().names, node.store.lock().names);
    let last = node.commit("a", &[(1, 99)]);
    replica.reach(last).await;
    assert_eq!(replica.store.dbs(), node.store.dbs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_pages_that_differ_travel() {
    let node = Node::start().await;
    let pages: Vec<(u32, u8)> = (1..=4000).map(|pgno| (pgno, pgno as u8)).collect();
    let first = node.commit("big", &pages);
    let replica = Replica::follow(2, &[&node.addr], Arc::default());
    replica.reach(first).await;
    let store = replica.store.clone();
    drop(replica);
    let mut last = first;
    for byte in 0..10u8 {
        last = node.commit("big", &[(7 + u32::from(byte) * 300, byte ^ 0x55)]);
    }
    node.purge(2);
    let (addr, bytes) = relay(node.addr.clone(), |_| u64::MAX).await;
    let replica = Replica::follow(2, &[&addr], store);
    replica.reach(last).await;
    assert_eq!(replica.store.dbs(), node.store.dbs());
    assert_eq!(replica.store.lock().installed_pages, 10);
    let bytes = bytes.load(Ordering::Relaxed);
    assert!(bytes < 20_000, "{bytes} bytes for ten pages of a 2 MB database");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_cut_off_changes_nothing_and_is_taken_again() {
    let node = Node::start().await;
    let pages: Vec<(u32, u8)> = (1..=2000).map(|pgno| (pgno, pgno as u8)).collect();
    let last = node.commit("big", &pages);
    node.purge(0);
    let (addr, _) = relay(node.addr.clone(), |number| if number < 3 { 200_000 } else { u64::MAX }).await;
    let replica = Replica::follow(2, &[&addr], Arc::default());
    replica.reach(last).await;
    assert_eq!(replica.store.dbs(), node.store.dbs());
    assert_eq!(replica.store.lock().installs, 1);
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_of_100_mib_arrives_in_bounded_memory_before_its_entry_is_applied() {
    let node = Node::start().await;
    let blob = BlobRef { digest: 0x1234_5678_9abc_def0, size_bytes: (100 << 20) + 13 };
    node.store.blobs.lock().unwrap().insert(blob, Blob { size: blob.size_bytes, tail: blob.digest });
    let replica = Replica::follow(2, &[&node.addr], Arc::default());
    replica.follower.wait_synced().await.unwrap();
    let before = resident_bytes();
    node.commit_blob("a", blob);
    let last = node.commit("a", &[(2, 1)]);
    replica.reach(last).await;
    let grown = resident_bytes().saturating_sub(before);
    assert_eq!(replica.store.dbs(), node.store.dbs());
    assert_eq!(replica.follower.status().borrow().resyncs, 0);
    // Other tests of this process run meanwhile, so the bound is generous; the blob is larger still.
    assert!(grown < 80 << 20, "{grown} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_is_gone_or_damaged_upstream_is_not_kept() {
    let node = Node::start().await;
    let (gone, wrong) = (BlobRef { digest: 1, size_bytes: 100 }, BlobRef { digest: 2, size_bytes: 100 });
    node.store
        .blobs
        .lock()
        .unwrap()
        .extend([(gone, Blob { size: 100, tail: 1 }), (wrong, Blob { size: 100, tail: 3 })]);
    node.commit_blob("a", gone);
    let last = node.commit("a", &[(2, 5)]);
    node.store.blobs.lock().unwrap().remove(&gone);
    let replica = Replica::follow(2, &[&node.addr], Arc::default());
    // Gone: the difference is fetched instead.
    replica.reach(last).await;
    assert_eq!(replica.store.dbs(), node.store.dbs());
    // Damaged: never kept, so the entry waits.
    let damaged = node.commit_blob("b", wrong);
    let other = node.commit("c", &[(1, 1)]);
    super::nodes::until("other databases go on", || replica.store.dbs().contains_key(&name("c"))).await;
    assert!(damaged < other && replica.store.blobs.lock().unwrap().is_empty());
    node.store.blobs.lock().unwrap().insert(wrong, Blob { size: 100, tail: 2 });
    replica.reach(other).await;
    assert_eq!(replica.store.dbs(), node.store.dbs());
}
