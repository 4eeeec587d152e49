//! Voters with long lines between them, and one whose disk is full.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::harness::delay::DelayingProxy;
use crate::harness::{Node, Settings, Voters, eventually, free_address, needs_skein, sql};

/// One way; so a round trip is twice that.
const DELAY: Duration = Duration::from_millis(20);

/// A voter that others reach over a long line only.
fn far(dir: &std::path::Path, name: &str, join: Option<SocketAddr>) -> (Node, DelayingProxy) {
    let mut settings = Settings::primary(name);
    settings.bootstrap = join.is_none();
    settings.join = join.into_iter().collect();
    let mut node = Node::new(dir, settings);
    node.listen = free_address();
    let line = DelayingProxy::start(node.listen, DELAY);
    let advertise = line.addr.to_string();
    let times = ["--heartbeat", "100ms", "--election-timeout", "500ms", "--advertise", &advertise];
    node.settings.extra = times.iter().map(ToString::to_string).collect();
    (node, line)
}

#[test]
fn voters_far_apart_commit_in_one_round_trip_and_elect_another_primary() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut first, line) = far(dir.path(), "n1", None);
    first.must_start();
    let (mut nodes, mut lines) = (vec![first], vec![line]);
    for name in ["n2", "n3"] {
        let (mut node, line) = far(dir.path(), name, Some(lines[0].addr));
        node.must_start();
        nodes.push(node);
        lines.push(line);
    }
    let voters = Voters::of(nodes, dir);
    voters.wait_voting(3);
    let primary = voters.primary();
    let writer = sql::create(&voters.nodes[primary].path("a.db"), "wal", 4096);
    sql::run(&writer, "CREATE TABLE t(v)");
    let start = Instant::now();
    for _ in 0..20 {
        sql::run(&writer, "INSERT INTO t VALUES('x')");
    }
    let each = start.elapsed() / 20;
    assert!(each >= DELAY * 2, "a commit took {each:?}: it was acknowledged before a quorum had it");
    assert!(each < DELAY * 4, "a commit took {each:?}, more than a round trip of {:?} and a sync", DELAY * 2);
    drop(writer);
    voters.same_bytes("a.db");
    let mut voters = voters;
    voters.nodes[primary].kill9();
    let others: Vec<usize> = (0..3).filter(|which| *which != primary).collect();
    let (_, took) = voters.first_write("a.db", "INSERT INTO t VALUES('y')", &others);
    assert!(took < Duration::from_secs(10), "{took:?}");
    voters.nodes[primary].must_start();
    voters.same_bytes("a.db");
}

#[test]
fn a_voter_with_a_full_disk_ends_and_the_others_go_on() {
    if !needs_skein() {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        crate::harness::skip("a small tmpfs needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let small = crate::harness::SmallDisk::mount(&dir.path().join("small"), 120);
    let mut first = Node::new(dir.path(), Settings::primary("n1"));
    first.must_start();
    let join = first.listen;
    let mut nodes = vec![first];
    for name in ["n2", "n3"] {
        let mut settings = Settings::primary(name);
        (settings.bootstrap, settings.join) = (false, vec![join]);
        if name == "n3" {
            settings.data = Some(small.path().join("data"));
            std::fs::create_dir(small.path().join("data")).unwrap();
        }
        let mut node = Node::new(dir.path(), settings);
        node.must_start();
        nodes.push(node);
    }
    let mut voters = Voters::of(nodes, dir);
    voters.wait_voting(3);
    let primary = voters.primary_among(&[0, 1]);
    let writer = sql::create(&voters.nodes[primary].path("a.db"), "wal", 4096);
    sql::run(&writer, "CREATE TABLE t(v)");
    // Somebody else fills it.
    let ballast = small.path().join("ballast");
    small.fill(&ballast);
    let mut rows = 0;
    eventually("the voter notices", || {
        sql::run(&writer, "INSERT INTO t VALUES(randomblob(60000))");
        rows += 1;
        (!voters.nodes[2].is_running()).then_some(())
    });
    let log = voters.nodes[2].log();
    assert!(log.contains("No space left") || log.contains("no space"), "{log}");
    sql::run(&writer, "INSERT INTO t VALUES('after')");
    drop(writer);
    std::fs::remove_file(&ballast).unwrap();
    let _ended = voters.nodes[2].wait_for_end(Duration::from_secs(5));
    voters.nodes[2].must_start();
    voters.wait_voting(3);
    voters.same_bytes("a.db");
    assert_eq!(sql::number(&voters.open(2, "a.db"), "SELECT count(*) FROM t"), rows + 1);
}
