//! What the log and its large change sets take on disk is bounded, on every node.

use std::time::{Duration, SystemTime};

use rusqlite::Connection;

use crate::harness::{
    Cluster, Node, Options, Settings, SmallDisk, Voters, eventually, http, needs_skein, skip, sql,
};

const MIB: u64 = 1 << 20;

/// Bytes of the files directly in a directory of a node's data.
fn bytes_in(node: &Node, directory: &str) -> u64 {
    let entries = std::fs::read_dir(node.data().join(directory)).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.len()).sum()
}

fn metric(node: &Node, name: &str) -> Option<f64> {
    let text = http::request(node.http, "GET", "/metrics", &[]).ok()?.text();
    let line = text.lines().find(|line| line.split(' ').next() == Some(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Writes one transaction of about so many bytes; the database does not grow.
fn rewrite(db: &Connection, bytes: u64) {
    let statements = format!("BEGIN; DELETE FROM t; INSERT INTO t VALUES(randomblob({bytes})); COMMIT");
    db.execute_batch(&statements).unwrap();
}

fn large(node: &Node) -> Connection {
    let db = sql::create(&node.path("large.db"), "wal", 4096);
    db.busy_timeout(Duration::from_secs(30)).unwrap();
    sql::run(&db, "CREATE TABLE t(v)");
    db
}

#[test]
fn large_change_sets_go_when_more_of_the_log_is_there_than_is_kept_on_the_primary_and_a_replica() {
    if !needs_skein() {
        return;
    }
    let mut options = Options::replicas(1);
    options.env = vec![("SKEIN_LIMITS_LOG_KEEP".into(), "24MiB".into())];
    let Some(mut cluster) = Cluster::start(&options) else { return };
    let db = large(&cluster.primary);
    for _ in 0..20 {
        rewrite(&db, 8 * MIB);
    }
    cluster.converge("large.db");
    let bounded = |node: &Node, most: u64| bytes_in(node, "blobs") <= most;
    eventually("the primary gives up what is over the bound", || {
        bounded(&cluster.primary, 34 * MIB).then_some(())
    });
    // Its own bound: what it passes on to nodes that follow it.
    eventually("the replica, too", || bounded(&cluster.replicas[0], 74 * MIB).then_some(()));
    eventually("the metric says what it takes", || {
        let (said, is) = (metric(&cluster.primary, "skein_blob_bytes")?, bytes_in(&cluster.primary, "blobs"));
        ((said - is as f64).abs() < 1.0 && metric(&cluster.primary, "skein_log_bytes")? > 0.0).then_some(())
    });
    // Who comes now fetches the database, not all that was ever written.
    cluster.add_replica();
    cluster.converge("large.db");
    assert!(bounded(&cluster.replicas[1], 34 * MIB), "{}", bytes_in(&cluster.replicas[1], "blobs"));
    // A replica can fetch again what it needs, and begins with nothing.
    drop(db);
    cluster.replicas[0].restart();
    cluster.converge("large.db");
    assert!(bounded(&cluster.replicas[0], 34 * MIB), "{}", bytes_in(&cluster.replicas[0], "blobs"));
}

#[test]
fn a_new_replica_fetches_the_databases_where_that_is_less_than_the_log() {
    if !needs_skein() {
        return;
    }
    let Some(mut cluster) = Cluster::start(&Options::replicas(0)) else { return };
    let db = large(&cluster.primary);
    for _ in 0..6 {
        rewrite(&db, 5 * MIB);
    }
    sql::run(&db, "DELETE FROM t; VACUUM; INSERT INTO t VALUES('small')");
    assert!(bytes_in(&cluster.primary, "blobs") > 20 * MIB, "the log is larger than the database");
    cluster.add_replica();
    cluster.converge("large.db");
    let replica = &cluster.replicas[0];
    assert_eq!(sql::text(&sql::open(&replica.path("large.db")), "SELECT v FROM t"), "small");
    assert!(bytes_in(replica, "blobs") < MIB, "{}", bytes_in(replica, "blobs"));
    assert!(replica.log().contains("fetching the difference"), "{}", replica.log());
}

#[test]
fn a_node_that_is_started_often_does_not_take_more_and_more_for_its_log() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(dir.path(), Settings::primary("n1"));
    node.must_start();
    sql::run(&sql::create(&node.path("app.db"), "delete", 4096), "CREATE TABLE t(v)");
    for start in 0..5 {
        node.restart();
        sql::run(&sql::open(&node.path("app.db")), &format!("INSERT INTO t VALUES({start})"));
    }
    let taken = bytes_in(&node, "raft");
    assert!(taken < 40 * MIB, "{taken} bytes after five starts");
    assert_eq!(sql::number(&sql::open(&node.path("app.db")), "SELECT count(*) FROM t"), 5);
}

#[test]
fn large_change_sets_that_no_entry_names_go_when_they_are_old() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(dir.path(), Settings::primary("n1"));
    node.must_start();
    let db = large(&node);
    rewrite(&db, 3 * MIB);
    drop(db);
    node.terminate();
    let blobs = node.data().join("blobs");
    let (old, new) =
        (blobs.join(format!("{:016x}-{:016x}", 7, 9)), blobs.join(format!("{:016x}-{:016x}", 8, 9)));
    for (path, age) in [(&old, 7200), (&new, 0)] {
        std::fs::write(path, b"123456789").unwrap();
        let at = SystemTime::now() - Duration::from_secs(age);
        std::fs::File::options().append(true).open(path).unwrap().set_modified(at).unwrap();
    }
    node.must_start();
    eventually("the old one is removed", || (!old.exists()).then_some(()));
    assert!(new.exists(), "a proposal may still come to name it");
    assert!(bytes_in(&node, "blobs") > 3 * MIB, "what the log names stays");
}

#[test]
fn a_small_disk_is_not_filled_by_the_log_of_a_small_database() {
    if !needs_skein() {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        return skip("mounting a small disk needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&dir.path().join("small"), 160);
    let mut settings = Settings::primary("n1");
    settings.data = Some(disk.path().join("data"));
    let mut node = Node::new(dir.path(), settings);
    node.must_start();
    let db = large(&node);
    // Twice what the disk holds. A commit may have to wait until the log has been given up.
    for round in 0..64 {
        eventually("the write goes on", || {
            let _ended = db.execute_batch("ROLLBACK");
            db.execute_batch(&format!(
                "BEGIN; DELETE FROM t; INSERT INTO t VALUES(randomblob({})); COMMIT",
                5 * MIB
            ))
            .ok()
        });
        assert!(node.is_running(), "round {round}\n{}", node.log());
    }
    sql::check_integrity(&db);
    drop(db);
    node.restart();
    assert_eq!(sql::number(&sql::open(&node.path("large.db")), "SELECT count(*) FROM t"), 1);
}

#[test]
fn a_voter_whose_disk_is_full_leaves_the_election_to_others_and_goes_on() {
    if !needs_skein() {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        return skip("mounting a small disk needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&dir.path().join("small"), 200);
    let mut nodes = vec![Node::new(dir.path(), Settings::primary("n1"))];
    nodes[0].must_start();
    for (name, data) in [("n2", Some(disk.path().join("data"))), ("n3", None)] {
        let mut settings = Settings::primary(name);
        (settings.bootstrap, settings.join, settings.data) = (false, vec![nodes[0].listen], data);
        let mut node = Node::new(dir.path(), settings);
        node.must_start();
        nodes.push(node);
    }
    let mut voters = Voters::of(nodes, tempfile::tempdir().unwrap());
    voters.wait_voting(3);
    if voters.primary() != 0 {
        voters.hand_to(0);
    }
    let ballast = disk.path().join("ballast");
    eventually("it sees that its disk is full", || {
        // The log may have been given up meanwhile.
        disk.fill(&ballast);
        voters.nodes[1].log().contains("does not stand for election").then_some(())
    });
    voters.nodes[0].kill9();
    assert_eq!(voters.primary_among(&[1, 2]), 2);
    assert!(voters.nodes[1].is_running(), "{}", voters.nodes[1].log());
    std::fs::remove_file(&ballast).unwrap();
    eventually("it may be primary again", || {
        voters.nodes[1].log().contains("enough to be primary again").then_some(())
    });
    drop(voters);
}
