//! Transactions over several databases: one entry of the log whatever path the application sees, and of any size.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::harness::sql;
use crate::harness::{Cluster, Options, Voters, eventually, needs_skein, skip};

const ROLLBACK_MODES: [&str; 3] = ["delete", "truncate", "persist"];

/// A directory that shows another one; ends when dropped.
struct Bound(PathBuf);

impl Bound {
    fn new(from: &Path, at: PathBuf) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip("a bind mount needs root");
            return None;
        }
        fs::create_dir(&at).unwrap();
        mount(Some(from), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        Some(Self(at))
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn index(cluster: &Cluster) -> u64 {
    cluster.primary.status().unwrap()["index"].as_u64().unwrap()
}

#[test]
fn a_transaction_through_a_bind_mount_or_a_link_is_one_entry() {
    if !needs_skein() {
        return;
    }
    for options in [Options::replicas(1), Options::replicas(1).without_passthrough()] {
        let Some(cluster) = Cluster::start(&options) else { return };
        fs::create_dir(cluster.primary.path("sub")).unwrap();
        let link = cluster.dir().join("link");
        std::os::unix::fs::symlink(cluster.primary.mount(), &link).unwrap();
        let bound = Bound::new(&cluster.primary.mount(), cluster.dir().join("bound"));
        let below = Bound::new(&cluster.primary.path("sub"), cluster.dir().join("below"));
        let bound = bound.iter().chain(&below).map(|bound| bound.0.clone());
        for (number, dir) in [link].into_iter().chain(bound).enumerate() {
            for journal in ROLLBACK_MODES {
                let (one, two) = (format!("a-{number}-{journal}.db"), format!("b-{number}-{journal}.db"));
                sql::run(&sql::create(&dir.join(&two), journal, 4096), "CREATE TABLE t(v)");
                let connection = sql::create(&dir.join(&one), journal, 4096);
                sql::run(
                    &connection,
                    &format!("CREATE TABLE t(v); ATTACH '{}' AS b", dir.join(&two).display()),
                );
                sql::run(&connection, &format!("PRAGMA b.journal_mode={journal}"));
                let before = index(&cluster);
                for _ in 0..10 {
                    sql::run(
                        &connection,
                        "BEGIN; INSERT INTO main.t VALUES(1); INSERT INTO b.t VALUES(2); COMMIT",
                    );
                }
                // What is shown may lack the last entry.
                let entries = index(&cluster) - before;
                assert!((9..=11).contains(&entries), "{entries} entries, {journal} below {}", dir.display());
                sql::run(&connection, "BEGIN; DELETE FROM main.t; DELETE FROM b.t; ROLLBACK");
                sql::run(&connection, "INSERT INTO b.t VALUES(3)");
                let prefix = if dir.ends_with("below") { "sub/" } else { "" };
                for (db, sum) in [(one, 10), (two, 23)] {
                    let db = format!("{prefix}{db}");
                    cluster.converge(&db);
                    let reader = sql::open(&cluster.replicas[0].path(&db));
                    assert_eq!(sql::number(&reader, "SELECT sum(v) FROM t"), sum, "{db}");
                    sql::check_integrity(&reader);
                }
            }
        }
    }
}

#[test]
fn a_transaction_whose_main_database_is_elsewhere_fails_and_changes_nothing() {
    if !needs_skein() {
        return;
    }
    for options in [Options::replicas(0), Options::replicas(0).without_passthrough()] {
        let Some(cluster) = Cluster::start(&options) else { return };
        for (number, journal) in ROLLBACK_MODES.into_iter().enumerate() {
            let (elsewhere, db) = (cluster.dir().join(format!("m{number}.db")), format!("a{number}.db"));
            let attached = cluster.primary.path(&db);
            sql::run(&sql::create(&attached, journal, 4096), "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
            let connection = sql::create(&elsewhere, journal, 4096);
            sql::run(&connection, &format!("CREATE TABLE t(v); ATTACH '{}' AS a", attached.display()));
            sql::run(&connection, &format!("PRAGMA a.journal_mode={journal}"));
            let before = cluster.primary.pos(&db);
            let refused = connection
                .execute_batch("BEGIN; INSERT INTO main.t VALUES(1); INSERT INTO a.t VALUES(2); COMMIT");
            assert!(refused.is_err(), "{journal}: it was committed");
            let _ = connection.execute_batch("ROLLBACK");
            assert_eq!(cluster.primary.pos(&db), before, "{journal}");
            assert_eq!(sql::number(&connection, "SELECT count(*) FROM main.t"), 0, "{journal}");
            // By itself it goes on.
            sql::run(&connection, "INSERT INTO a.t VALUES(3); INSERT INTO main.t VALUES(4)");
            drop(connection);
            let after = sql::open(&attached);
            assert_eq!(sql::number(&after, "SELECT sum(v) FROM t"), 4, "{journal}");
            sql::check_integrity(&after);
        }
        assert!(
            cluster.primary.log().contains("main database that is not on this mount"),
            "no reason in the log"
        );
    }
}

#[test]
fn a_transaction_over_ten_databases_is_committed_whatever_its_size() {
    let Some(voters) = Voters::three() else { return };
    let primary = &voters.nodes[voters.primary()];
    let connection = sql::create(&primary.path("main.db"), "delete", 4096);
    connection.busy_timeout(Duration::from_secs(30)).unwrap();
    sql::run(&connection, "CREATE TABLE t(v)");
    for number in 0..10 {
        let path = primary.path(&format!("d{number}.db"));
        sql::run(&sql::create(&path, "delete", 4096), "CREATE TABLE t(v)");
        sql::run(&connection, &format!("ATTACH '{}' AS d{number}", path.display()));
    }
    for size in [900_000, 3_000_000] {
        let inserts: String =
            (0..10).map(|number| format!("INSERT INTO d{number}.t VALUES(randomblob({size}));")).collect();
        sql::run(
            &connection,
            &format!("BEGIN; INSERT INTO main.t VALUES(randomblob({size})); {inserts} COMMIT"),
        );
    }
    sql::run(&connection, "INSERT INTO main.t VALUES(1)");
    for (db, rows) in (0..10).map(|number| (format!("d{number}.db"), 2)).chain([("main.db".to_owned(), 3)]) {
        for node in &voters.nodes {
            eventually("the node has the transaction", || {
                let pos = primary.pos(&db)?;
                (node.pos(&db)? == pos).then_some(())
            });
            let reader = sql::open(&node.path(&db));
            assert_eq!(
                sql::number(&reader, "SELECT count(*) FROM t"),
                rows,
                "{db} on {}",
                node.settings.name
            );
        }
    }
}
