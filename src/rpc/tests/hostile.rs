//! What a peer may send that it must not.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;

use super::nodes::{Node, Replica, until};
use crate::rpc::wire::replication_client::ReplicationClient;
use crate::rpc::{endpoint, wire};

async fn client(addr: &str) -> ReplicationClient<tonic::transport::Channel> {
    ReplicationClient::new(endpoint(addr).unwrap().connect().await.unwrap())
}

fn hello() -> wire::Hello {
    wire::Hello {
        cluster_id: "c1".into(),
        protocol_version: 1,
        node_name: "x".into(),
        node_id: 7,
        from_index: 1,
        ..wire::Hello::default()
    }
}

async fn follow(addr: &str, hello: wire::Hello) -> Result<wire::FollowFrame, tonic::Status> {
    let first = wire::FollowMessage { kind: Some(wire::follow_message::Kind::Hello(hello)) };
    let messages = futures::StreamExt::chain(tokio_stream::once(first), tokio_stream::pending());
    let mut frames = client(addr).await.follow(messages).await?.into_inner();
    frames.message().await.map(Option::unwrap)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_close_the_connection_and_the_node_serves_on() {
    let node = Node::start().await;
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    for round in 0..20 {
        let mut stream = TcpStream::connect(&node.addr).await.unwrap();
        let mut garbage: Vec<u8> =
            if round % 2 == 0 { b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec() } else { vec![] };
        for _ in 0..4096 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            garbage.push((seed >> 56) as u8);
        }
        // The node may close before everything is written.
        let _ = stream.write_all(&garbage).await;
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "the connection is closed");
    }
    assert!(follow(&node.addr, hello()).await.unwrap().heartbeat.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_break_the_protocol_are_answered_with_an_error() {
    let node = Node::start().await;
    node.commit("a", &[(1, 1)]);
    let code = async |hello| follow(&node.addr, hello).await.unwrap_err().code();
    assert_eq!(code(wire::Hello { cluster_id: "other".into(), ..hello() }).await, Code::FailedPrecondition);
    assert_eq!(code(wire::Hello { protocol_version: 2, ..hello() }).await, Code::FailedPrecondition);
    assert_eq!(code(wire::Hello { node_name: "a b".into(), ..hello() }).await, Code::InvalidArgument);
    assert_eq!(code(wire::Hello { globs: vec!["*".into(); 1000], ..hello() }).await, Code::InvalidArgument);
    assert_eq!(code(wire::Hello { node_id: 1, ..hello() }).await, Code::InvalidArgument);
    let mut client = client(&node.addr).await;
    let ack =
        wire::FollowMessage { kind: Some(wire::follow_message::Kind::Ack(wire::Ack { applied_index: 5 })) };
    let early = client.follow(tokio_stream::once(ack)).await.unwrap_err();
    assert_eq!(early.code(), Code::InvalidArgument);
    let nothing = client.follow(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(nothing.code(), Code::InvalidArgument);
    for name in ["../../etc/passwd", "", "a-wal", "/a", ".primary"] {
        let request = wire::SnapshotRequest { name: name.into(), ..Default::default() };
        let refused = client.snapshot(tokio_stream::once(request)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{name:?}");
    }
    let request = wire::SnapshotRequest { name: "nope".into(), ..Default::default() };
    let mut frames = client.snapshot(tokio_stream::once(request)).await.unwrap().into_inner();
    assert_eq!(frames.message().await.unwrap_err().code(), Code::NotFound);
    let blob = wire::FetchBlobRequest { digest: 1, size_bytes: u64::MAX };
    let mut chunks = client.fetch_blob(blob).await.unwrap().into_inner();
    assert_eq!(chunks.message().await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_messages_and_huge_counts_are_refused() {
    let node = Node::start().await;
    node.commit("a", &[(1, 1), (2, 2)]);
    let mut client = client(&node.addr).await;
    let huge = wire::SnapshotRequest { name: "a".into(), checksums: vec![1; 2 << 20], ..Default::default() };
    let refused = client.snapshot(tokio_stream::once(huge)).await.unwrap_err();
    assert!(matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted), "{refused}");
    let many = wire::SnapshotRequest { name: "a".into(), checksums: vec![1; 70_000], ..Default::default() };
    let mut frames = client.snapshot(tokio_stream::once(many)).await.unwrap().into_inner();
    let ended = loop {
        match frames.message().await {
            Ok(Some(_)) => {}
            ended => break ended.unwrap_err(),
        }
    };
    assert_eq!(ended.code(), Code::InvalidArgument);
    // More checksums than the database has pages are no harm.
    let part = wire::SnapshotRequest { name: "a".into(), checksums: vec![1; 65536], ..Default::default() };
    let endless = futures::StreamExt::take(futures::stream::repeat(part), 50);
    let mut frames = client.snapshot(endless).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(_frame) = frames.message().await.unwrap() {
        count += 1;
    }
    assert_eq!(count, 3, "header, pages, end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_survives_an_upstream_that_talks_nonsense() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let liar = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(&[0xff; 10_000]).await;
        }
    });
    let node = Node::start().await;
    let last = node.commit("a", &[(1, 1)]);
    let replica = Replica::follow(2, &[&liar, &node.addr], Arc::default());
    replica.reach(last).await;
    assert_eq!(replica.store.dbs(), node.store.dbs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_entry_that_is_no_change_is_never_applied() {
    let node = Node::start().await;
    let good = node.commit("a", &[(1, 1)]);
    node.push_raw(vec![0xee; 100].into());
    let replica = Replica::follow(2, &[&node.addr], Arc::default());
    until("the follower says what is wrong", || {
        let status = replica.follower.status();
        let error = status.borrow().last_error.clone().unwrap_or_default();
        error.contains("entry 2")
    })
    .await;
    assert_eq!(replica.follower.status().borrow().applied, good);
    assert_eq!(replica.store.dbs(), node.store.dbs());
}
