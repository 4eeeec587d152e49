//! Following entry by entry.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tokio_util::sync::CancellationToken;

use super::fake_store::{FakeStore, name};
use super::nodes::{Node, Replica, identity, relay, until};
use crate::db::SnapshotHeader;
use crate::ltx::BlobRef;
use crate::rpc::{Compression, GrpcConnector};
use crate::store::{Change, ChangeKind, Origin};
use crate::stream::{
    Acks, Connector, FollowOptions, Follower, Frame, Globs, Hello, Listing, PageStream, PeerIdentity,
    StreamError, Upstream,
};
use crate::types::{Checksum, DbName, LogIndex, NodeId, Role};

fn change(kind: ChangeKind) -> Change {
    Change { origin: Origin { node: NodeId::new(1), run: 0, seq: 0 }, timestamp_ms: 0, kind }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_followers_get_everything_and_are_listed_with_their_lag() {
    let node = Node::start().await;
    let one = Replica::follow(2, &[&node.addr], Arc::default());
    let two = Replica::with(3, &["127.0.0.1:1", &node.addr], Arc::default(), Compression::On, |_| {});
    for byte in 1..50 {
        node.commit("a/b.db", &[(1, byte), (u32::from(byte % 7 + 2).min(u32::from(byte) + 1), byte)]);
    }
    node.commit("c", &[(1, 1)]);
    node.log_change(&change(ChangeKind::Rename { from: name("c"), to: name("d") }));
    node.commit("e", &[(1, 1)]);
    let last = node.log_change(&change(ChangeKind::Drop(name("e"))));
    for replica in [&one, &two] {
        replica.follower.wait_synced().await.unwrap();
        replica.reach(last).await;
        assert_eq!(replica.store.dbs(), node.store.dbs());
        assert_eq!(replica.store.lock().primary.as_ref().unwrap().http, "http://n1");
        assert_eq!(replica.follower.status().borrow().resyncs, 0);
    }
    until("both are listed, healthy and without lag", || {
        let members = node.serving.members();
        members.len() == 2
            && members.iter().all(|m| m.healthy && m.lag_entries == 0 && m.lag == Some(Duration::ZERO))
    })
    .await;
    drop(one);
    until("one left", || node.serving.members().iter().filter(|m| m.healthy).count() == 1).await;
}

/// Entry numbers in the order they were applied.
fn applied_order(store: &FakeStore) -> Vec<u64> {
    store.lock().seen.iter().map(|(index, _)| index.get()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_resumes_after_connections_cut_at_many_bytes() {
    let node = Node::start().await;
    let (addr, _) = relay(node.addr.clone(), |number| 3000 + number * 1777).await;
    let replica = Replica::follow(2, &[&addr], Arc::default());
    let mut last = LogIndex::ZERO;
    for byte in 1..60 {
        last = node.commit("app", &[(1, byte)]);
        // Spread, so that cuts fall between and within messages.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    replica.reach(last).await;
    assert_eq!(replica.store.dbs(), node.store.dbs());
    assert_eq!(applied_order(&replica.store), (1..=last.get()).collect::<Vec<_>>(), "each once, in order");
    assert_eq!(replica.follower.status().borrow().resyncs, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_resumes_after_a_break_behind_each_entry() {
    let node = Node::start().await;
    let mut last = LogIndex::ZERO;
    for byte in 1..=12 {
        last = node.commit("app", &[(1, byte)]);
    }
    let connects = Arc::new(AtomicU64::new(0));
    let connector = OneEntryEach { connects: connects.clone() };
    let (store, stop) = (Arc::<FakeStore>::default(), CancellationToken::new());
    let options = FollowOptions::new(vec![node.addr.clone()], NodeId::new(2), "n2".parse().unwrap());
    let follower = Follower::start(options, store.clone(), Arc::new(connector), stop.clone()).unwrap();
    until("every entry is applied", || follower.status().borrow().applied == last).await;
    follower.stop();
    assert_eq!(store.dbs(), node.store.dbs());
    assert_eq!(applied_order(&store), (1..=12).collect::<Vec<_>>());
    assert!(connects.load(Ordering::Relaxed) >= 12);
}

/// Connections that break behind their first entry.
struct OneEntryEach {
    connects: Arc<AtomicU64>,
}

struct OneEntry(Arc<dyn Upstream>);

impl Connector for OneEntryEach {
    fn connect(&self, addr: &str) -> BoxFuture<'static, Result<Arc<dyn Upstream>, StreamError>> {
        self.connects.fetch_add(1, Ordering::Relaxed);
        let connect = GrpcConnector::new(Compression::On).connect(addr);
        async move { Ok(Arc::new(OneEntry(connect.await?)) as Arc<dyn Upstream>) }.boxed()
    }
}

impl Upstream for OneEntry {
    fn identify(&self) -> BoxFuture<'_, Result<PeerIdentity, StreamError>> {
        self.0.identify()
    }

    fn follow(
        &self,
        hello: Hello,
        acks: Acks,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Frame, StreamError>>, StreamError>> {
        async move {
            let first_only = |frame: Result<Frame, _>| {
                frame.map(|mut frame: Frame| {
                    frame.entries.truncate(1);
                    frame
                })
            };
            let broken = Err(StreamError::Unavailable("broken on purpose".into()));
            let frames = self.0.follow(hello, acks).await?.map(first_only).take(2);
            Ok(frames.chain(futures::stream::iter([broken])).boxed())
        }
        .boxed()
    }

    fn fetch_blob(
        &self,
        blob: BlobRef,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Bytes, StreamError>>, StreamError>> {
        self.0.fetch_blob(blob)
    }

    fn list(&self, globs: Globs) -> BoxFuture<'_, Result<Listing, StreamError>> {
        self.0.list(globs)
    }

    fn snapshot(
        &self,
        name: DbName,
        have: Vec<Checksum>,
    ) -> BoxFuture<'_, Result<(SnapshotHeader, PageStream), StreamError>> {
        self.0.snapshot(name, have)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_serves_others_and_nobody_follows_itself() {
    let node = Node::start().await;
    let first = node.commit("a", &[(1, 1)]);
    let middle = Replica::follow(2, &[&node.addr], Arc::default());
    let (serving, addr) = middle.serve(identity("c1", 2, Role::Replica)).await;
    let leaf = Replica::follow(3, &[&addr], Arc::default());
    middle.reach(first).await;
    leaf.reach(first).await;
    let last = node.commit("a", &[(1, 2)]);
    leaf.reach(last).await;
    assert_eq!(leaf.store.dbs(), node.store.dbs());
    assert_eq!(leaf.follower.status().borrow().view.path, [NodeId::new(2), NodeId::new(1)]);
    assert_eq!(serving.members()[0].name.as_str(), "n3");
    let loop_back = Replica::follow(2, &[&addr], Arc::default());
    until("a node that would follow itself says so", || {
        let status = loop_back.follower.status();
        let error = status.borrow().last_error.clone().unwrap_or_default();
        error.contains("this node itself")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_leaves_a_node_that_was_removed_from_the_cluster_for_another_one() {
    let (one, two) = (Node::start().await, Node::of(identity("c1", 4, Role::Voter)).await);
    let (removed, told) = tokio::sync::watch::channel(None);
    one.serving.set_removed(told);
    let first = one.commit("a", &[(1, 1)]);
    two.commit("a", &[(1, 1)]);
    let replica = Replica::follow(2, &[&one.addr, &two.addr], Arc::default());
    replica.reach(first).await;
    removed.send_replace(Some("skein members add".to_owned()));
    let last = two.commit("a", &[(1, 2)]);
    replica.reach(last).await;
    let status = replica.follower.status().borrow().clone();
    assert_eq!((status.upstream.as_deref(), status.connected), (Some(&*two.addr), true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_database_does_not_delay_others_nor_reorder_itself() {
    let node = Node::start().await;
    let replica = Replica::follow(2, &[&node.addr], Arc::default());
    let before = node.commit("slow", &[(1, 1)]);
    replica.reach(before).await;
    replica.store.block("slow");
    for byte in 2..6 {
        node.commit("slow", &[(1, byte)]);
        node.commit("fast", &[(1, byte)]);
    }
    // An entry of both waits for the slow one; the other database keeps its order behind it.
    let both = node.store.change(&[("slow", &[(1, 50)]), ("third", &[(1, 50)])], None);
    node.log_change(&both);
    let last = node.commit("third", &[(1, 51)]);
    until("the fast database is complete", || {
        replica.store.dbs().get(&name("fast")) == node.store.dbs().get(&name("fast"))
    })
    .await;
    let status = replica.follower.status();
    assert_eq!(status.borrow().applied, before, "nothing behind a waiting entry counts as applied");
    assert!(!replica.store.dbs().contains_key(&name("third")));
    replica.store.unblock("slow");
    replica.reach(last).await;
    assert_eq!(replica.store.dbs(), node.store.dbs());
    assert_eq!(status.borrow().resyncs, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_too_long_is_fetched_by_difference() {
    let node = Node::start().await;
    let replica =
        Replica::with(2, &[&node.addr], Arc::default(), Compression::Auto, |o| o.queue_bytes_max = 20_000);
    let before = node.commit("slow", &[(1, 1), (2, 1), (3, 1)]);
    replica.reach(before).await;
    replica.store.block("slow");
    for byte in 2..100 {
        node.commit("slow", &[(1, byte)]);
    }
    let fast = node.commit("fast", &[(1, 1)]);
    until("the other database goes on", || replica.store.dbs().contains_key(&name("fast"))).await;
    replica.store.unblock("slow");
    replica.reach(fast).await;
    assert_eq!(replica.store.dbs(), node.store.dbs());
    let state = replica.store.lock();
    assert!(state.installs >= 1 && state.installed_pages <= state.installs, "only page 1 differs");
    assert!(state.seen.len() < 60, "{} entries were applied one by one", state.seen.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_out_of_step_is_repaired_without_an_operator() {
    let node = Node::start().await;
    let replica = Replica::follow(2, &[&node.addr], Arc::default());
    let first = node.commit("a", &[(1, 1), (2, 2)]);
    replica.reach(first).await;
    replica.store.lock().dbs.get_mut(&name("a")).unwrap().pages.insert(2, vec![99; 512].into());
    let last = node.commit("a", &[(1, 3)]);
    replica.reach(last).await;
    assert_eq!(replica.store.dbs(), node.store.dbs());
    assert_eq!(replica.follower.status().borrow().resyncs, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_with_patterns_gets_those_databases_only() {
    let node = Node::start().await;
    let replica = Replica::with(2, &[&node.addr], Arc::default(), Compression::Auto, |o| {
        o.globs = Globs::new(vec!["in/*".into()]).unwrap();
    });
    node.commit("out/a", &[(1, 1)]);
    node.commit("in/a", &[(1, 2)]);
    node.log_change(&node.store.change(&[("in/a", &[(1, 3)]), ("out/a", &[(1, 3)])], None));
    // One comes in from outside, one leaves.
    node.log_change(&change(ChangeKind::Rename { from: name("out/a"), to: name("in/b") }));
    let last = node.log_change(&change(ChangeKind::Rename { from: name("in/a"), to: name("out/c") }));
    replica.reach(last).await;
    let (ours, theirs) = (replica.store.dbs(), node.store.dbs());
    assert_eq!(ours.keys().map(ToString::to_string).collect::<Vec<_>>(), ["in/b"]);
    assert_eq!(ours[&name("in/b")].pages, theirs[&name("in/b")].pages);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_cluster_is_refused_and_touches_nothing() {
    let node = Node::of(identity("other", 1, Role::Voter)).await;
    node.commit("theirs", &[(1, 9)]);
    let store: Arc<FakeStore> = Arc::default();
    let ours = Node::start().await;
    ours.commit("ours", &[(1, 1)]);
    store.lock().dbs = ours.store.dbs();
    let replica = Replica::with(2, &[&node.addr], store, Compression::Auto, |o| {
        o.cluster = Some("c1".parse().unwrap());
    });
    let refused = replica.follower.wait_synced().await.unwrap_err();
    assert!(
        matches!(&*refused, StreamError::ForeignCluster { ours, theirs } if ours == "c1" && theirs == "other")
    );
    assert_eq!(replica.store.dbs(), ours.store.dbs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_protocol_is_refused_and_the_cluster_is_adopted_before_anything_else() {
    let newer = crate::stream::PeerIdentity { protocol_version: 99, ..identity("c1", 1, Role::Voter) };
    let node = Node::of(newer).await;
    let replica = Replica::follow(2, &[&node.addr], Arc::default());
    let refused = replica.follower.wait_synced().await.unwrap_err();
    assert!(matches!(&*refused, StreamError::Protocol { theirs: 99, .. }), "{refused}");

    let node = Node::start().await;
    node.commit("a", &[(1, 1)]);
    let adopted = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (noted, store) = (adopted.clone(), Arc::<FakeStore>::default());
    let watched = store.clone();
    let replica = Replica::with(2, &[&node.addr], store, Compression::Auto, |o| {
        o.adopt = Box::new(move |cluster| {
            assert!(watched.dbs().is_empty());
            noted.lock().unwrap().push(cluster.to_string());
            Ok(())
        });
    });
    replica.follower.wait_synced().await.unwrap();
    assert_eq!(*adopted.lock().unwrap(), ["c1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_arrives_within_moments_of_its_commit() {
    let node = Node::start().await;
    let replica = Replica::follow(2, &[&node.addr], Arc::default());
    replica.follower.wait_synced().await.unwrap();
    let mut delays = Vec::new();
    for round in 0..200u32 {
        let start = Instant::now();
        let index = node.commit("a", &[(1, round as u8)]);
        replica.reach(index).await;
        let (seen, at) = *replica.store.lock().seen.last().unwrap();
        assert_eq!(seen, index);
        delays.push(at.duration_since(start));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    delays.sort();
    println!("commit to applied: p50 {:?}, p90 {:?}, max {:?}", delays[100], delays[180], delays[199]);
    assert_eq!(replica.follower.status().borrow().lag(), Some(Duration::ZERO));
}
