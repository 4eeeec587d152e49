//! A node whose disk is full: what it serves stays whole, and it catches up when there is space.

use std::time::Duration;

use crate::harness::{Cluster, Node, Options, Settings, SmallDisk, eventually, needs_skein, skip, sql};

#[test]
fn readers_of_a_replica_whose_disk_is_full_see_whole_transactions_and_then_all_of_them() {
    if !needs_skein() {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        return skip("mounting a small disk needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    for journal in ["delete", "persist", "wal"] {
        let disk = SmallDisk::mount(&dir.path().join(journal), 64);
        let options = Options { replica_data: Some(disk.path().join("data")), ..Options::replicas(1) };
        let Some(cluster) = Cluster::start(&options) else { return };
        let writer = sql::create(&cluster.primary.path("app.db"), journal, 4096);
        sql::run(&writer, "CREATE TABLE t(v); INSERT INTO t VALUES(randomblob(10000))");
        let copy = cluster.replicas[0].path("app.db");
        let rows = |db: &rusqlite::Connection| sql::number(db, "SELECT count(*) FROM t");
        let reader = eventually("the replica has the table", || {
            let db = rusqlite::Connection::open(&copy).ok()?;
            db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).ok()?;
            Some(db)
        });
        reader.busy_timeout(Duration::from_secs(30)).unwrap();
        let ballast = disk.path().join("ballast");
        disk.fill(&ballast);
        for _ in 0..6 {
            sql::run(
                &writer,
                "INSERT INTO t WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50)
                 SELECT randomblob(10000) FROM n",
            );
            let seen = rows(&reader);
            assert_eq!((seen - 1) % 50, 0, "{journal}: a part of a transaction: {seen} rows");
            sql::check_integrity(&reader);
        }
        eventually("the replica says that its disk is full", || {
            sql::check_integrity(&reader);
            cluster.replicas[0].log().contains("No space left on device").then_some(())
        });
        std::fs::remove_file(&ballast).unwrap();
        let last = rows(&writer);
        eventually("the replica has all transactions", || {
            let db = rusqlite::Connection::open(&copy).ok()?;
            let seen = db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).ok()?;
            (seen == last).then_some(())
        });
        sql::check_integrity(&rusqlite::Connection::open(&copy).unwrap());
    }
}

/// A database `old.db` with a row, open in WAL mode, on a node whose disk is full when the next database ends.
fn about_to_end(dir: &std::path::Path) -> (Node, rusqlite::Connection) {
    let mut settings = Settings::primary("n1");
    settings.env = vec![("SKEIN_FAULT".into(), "end_note:1:full".into())];
    let mut node = Node::new(dir, settings);
    node.must_start();
    let writer = sql::create(&node.path("old.db"), "wal", 4096);
    sql::run(&writer, "CREATE TABLE t(v); INSERT INTO t VALUES('old')");
    (node, writer)
}

#[test]
fn a_drop_that_is_in_the_log_is_done_when_the_disk_can_take_it_and_nothing_is_committed_meanwhile() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut node, writer) = about_to_end(dir.path());
    writer.busy_timeout(Duration::from_millis(100)).unwrap();
    std::fs::remove_file(node.path("old.db")).expect_err("the disk is full");
    // On all other nodes the database has ended with that entry: what came behind it would be nowhere.
    let written = writer.execute_batch("INSERT INTO t VALUES('lost')");
    eventually("the database is gone", || (!node.path("old.db").exists()).then_some(()));
    assert!(written.is_err(), "a commit behind the end of its database was acknowledged");
    drop(writer);
    node.restart();
    assert!(!node.path("old.db").exists());
    sql::run(&sql::create(&node.path("old.db"), "wal", 4096), "CREATE TABLE t(v)");
}

#[test]
fn a_rename_that_is_in_the_log_is_done_when_the_disk_can_take_it() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut node, writer) = about_to_end(dir.path());
    drop(writer);
    eventually("the connection is closed", || {
        let renamed = std::fs::rename(node.path("old.db"), node.path("new.db"));
        renamed.is_err_and(|error| error.raw_os_error() != Some(nix::libc::EBUSY)).then_some(())
    });
    eventually("the database has its new name", || node.path("new.db").exists().then_some(()));
    let value = |node: &Node| sql::text(&sql::open(&node.path("new.db")), "SELECT v FROM t");
    assert_eq!(value(&node), "old");
    sql::run(&sql::open(&node.path("new.db")), "INSERT INTO t VALUES('new')");
    node.restart();
    assert!(!node.path("old.db").exists());
    assert_eq!(value(&node), "old");
}

#[test]
fn a_database_that_cannot_be_made_is_not_there_and_can_be_made_when_there_is_space() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::primary("n1");
    settings.env = vec![("SKEIN_FAULT".into(), "recover:1:full".into())];
    let mut node = Node::new(dir.path(), settings);
    node.must_start();
    let path = node.path("new.db");
    let refused = std::fs::File::create(&path).expect_err("the disk is full");
    assert_eq!(refused.raw_os_error(), Some(nix::libc::ENOSPC));
    assert!(!path.exists(), "a file that is no database is left");
    sql::run(&sql::create(&path, "wal", 4096), "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
    node.settings.env.clear();
    node.restart();
    assert_eq!(sql::number(&sql::open(&path), "SELECT count(*) FROM t"), 1);
}
