//! A node whose disk is full: what it serves stays whole, and it catches up when there is space.

use std::time::Duration;

use crate::harness::{Cluster, Options, SmallDisk, eventually, needs_skein, skip, sql};

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
