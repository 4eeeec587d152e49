//! The sentences of `src/docs/guarantees.md`, each proved by the test that quotes it.

use std::time::{Duration, Instant};

use crate::harness::sql::{self, JOURNAL_MODES};
use crate::harness::{App, Cluster, Node, Options, eventually, is_plain, needs_skein};

const PAGE: &str = include_str!("../../src/docs/guarantees.md");

pub fn quote(sentence: &str) {
    assert!(PAGE.contains(sentence), "the guarantees page no longer says: {sentence}");
}

fn clusters(replicas: usize) -> impl Iterator<Item = Cluster> {
    let options = [Options::replicas(replicas), Options::replicas(replicas).without_passthrough()];
    options.into_iter().filter_map(|options| Cluster::start(&options))
}

/// Kills the daemon and its applications while they write, starts it again, gives what was acknowledged.
fn crash_while_writing(node: &mut Node, db: &str, journal: &str, synchronous: &str) -> usize {
    let arguments = ["--journal", journal, "--synchronous", synchronous];
    let mut app = App::transfer(&node.path(db), &arguments);
    assert!(app.wait_for("commit", 25, Duration::from_secs(20)), "{:?}", app.end());
    node.kill9();
    let acknowledged = app.kill9().iter().filter(|line| line.starts_with("commit")).count();
    node.must_start();
    acknowledged
}

fn transactions(node: &Node, db: &str) -> i64 {
    let connection = sql::open(&node.path(db));
    sql::check_integrity(&connection);
    let (count, last) = ("SELECT count(*) FROM ledger", "SELECT max(seq) FROM ledger");
    assert_eq!(sql::number(&connection, count), sql::number(&connection, last), "a transaction is missing");
    assert_eq!(sql::number(&connection, "SELECT sum(balance) FROM account"), 20_000, "money was lost");
    sql::number(&connection, count)
}

#[test]
fn a_commit_with_full_that_returned_survives() {
    quote(
        "With `synchronous=FULL` (SQLite's default) or `EXTRA`, a commit that returned is held by a quorum",
    );
    for mut cluster in clusters(1) {
        for synchronous in ["full", "extra"] {
            let db = format!("{synchronous}.db");
            let acknowledged = crash_while_writing(&mut cluster.primary, &db, "wal", synchronous);
            let kept = transactions(&cluster.primary, &db);
            assert!(kept >= i64::try_from(acknowledged).unwrap(), "{kept} kept, {acknowledged} acknowledged");
            cluster.same_bytes(&db);
        }
    }
}

#[test]
fn a_commit_with_normal_leaves_a_prefix() {
    quote("after a crash the database holds a prefix of the commits, in their order");
    for mut cluster in clusters(1) {
        crash_while_writing(&mut cluster.primary, "normal.db", "wal", "normal");
        // One client: the prefix is 1..=n without a gap, which `transactions` checks.
        transactions(&cluster.primary, "normal.db");
        cluster.same_bytes("normal.db");
    }
}

#[test]
fn a_log_of_sqlite_that_a_power_cut_left_behind_the_commits_reverts_none_of_them() {
    quote("a commit that returned is held by a quorum of the voters and survives");
    for mut cluster in clusters(1) {
        let path = cluster.primary.path("app.db");
        let writer = sql::create(&path, "wal", 4096);
        sql::run(
            &writer,
            "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(id INTEGER PRIMARY KEY, v)",
        );
        sql::run(&writer, "INSERT INTO t VALUES(1, 0)");
        let log = cluster.primary.data().join("dbs/app.db/database-wal");
        for value in 1..=20 {
            sql::run(&writer, &format!("UPDATE t SET v = {value}"));
        }
        let pos = cluster.primary.pos("app.db");
        cluster.primary.kill9();
        drop(writer);
        // Nobody has synced the log of SQLite: after a power cut any of its pages may be older.
        let length = std::fs::metadata(&log).unwrap().len();
        std::fs::File::options().write(true).open(&log).unwrap().set_len(length / 2).unwrap();
        cluster.primary.must_start();
        assert_eq!(sql::number(&sql::open(&path), "SELECT v FROM t"), 20);
        assert_eq!(cluster.primary.pos("app.db"), pos, "a start is no transaction");
        cluster.same_bytes("app.db");
    }
}

#[test]
fn a_commit_in_a_rollback_mode_that_returned_survives() {
    quote(
        "In the rollback journal modes DELETE, TRUNCATE and PERSIST, a commit that returned is always held",
    );
    for mut cluster in clusters(1) {
        for journal in ["delete", "truncate", "persist"] {
            for synchronous in ["off", "full"] {
                let db = format!("{journal}-{synchronous}.db");
                let acknowledged = crash_while_writing(&mut cluster.primary, &db, journal, synchronous);
                let kept = transactions(&cluster.primary, &db);
                assert!(
                    kept >= i64::try_from(acknowledged).unwrap(),
                    "{kept} kept, {acknowledged} acknowledged"
                );
                cluster.same_bytes(&db);
            }
        }
    }
}

#[test]
fn a_transaction_whose_application_died_is_never_seen() {
    quote("A transaction that was rolled back, or whose application died before its commit, is never seen");
    for cluster in clusters(1) {
        for journal in JOURNAL_MODES {
            let db = format!("{journal}.db");
            for round in 0..4 {
                let arguments = ["--journal", journal, "--note", "2000", "--seed", &round.to_string()];
                let mut app = App::transfer(&cluster.primary.path(&db), &arguments);
                assert!(app.wait_for("commit", 5 + round, Duration::from_secs(20)), "{:?}", app.end());
                app.kill9();
            }
            // Rolls back what the dead application left behind, then all nodes agree.
            transactions(&cluster.primary, &db);
            cluster.same_bytes(&db);
            transactions(cluster.replicas.first().unwrap_or(&cluster.primary), &db);
        }
    }
}

#[test]
fn readers_see_whole_transactions_in_their_order() {
    quote("A reader on any node sees a state that the database had on the primary after some commit");
    quote("A reader never sees history go backwards.");
    for cluster in clusters(2) {
        for (journal, synchronous) in
            [("wal", "normal"), ("wal", "full"), ("delete", "full"), ("persist", "full")]
        {
            let db = format!("{journal}-{synchronous}.db");
            let arguments =
                ["--journal", journal, "--synchronous", synchronous, "--count", "150", "--note", "500"];
            let nodes = std::iter::once(&cluster.primary).chain(&cluster.replicas);
            let mut founder =
                App::transfer(&cluster.primary.path(&db), &["--journal", journal, "--count", "0"]);
            assert!(founder.end().0.success());
            let mut watchers: Vec<_> =
                nodes.map(|node| App::transfer(&node.path(&db), &["--watch", "--seconds", "120"])).collect();
            let (status, _, errors) = App::transfer(&cluster.primary.path(&db), &arguments).end();
            assert!(status.success(), "{journal} {synchronous}: {errors}");
            let last = format!("seen {}", transactions(&cluster.primary, &db));
            for watcher in &mut watchers {
                assert!(
                    watcher.wait_for(&last, 1, Duration::from_secs(30)),
                    "{last}: {:?}",
                    watcher.lines().last()
                );
                let said = watcher.kill9();
                assert!(!said.iter().any(|line| line.starts_with("broken")), "{said:?}");
            }
        }
    }
}

#[test]
fn a_reader_on_a_replica_is_never_blocked_and_blocks_nothing() {
    quote(
        "A reader on a replica is never blocked by replication, and never blocks it, whatever it holds open.",
    );
    for cluster in clusters(1) {
        let writer = sql::create(&cluster.primary.path("app.db"), "wal", 4096);
        sql::run(&writer, "CREATE TABLE t(v); INSERT INTO t VALUES(0)");
        cluster.converge("app.db");
        let replica = cluster.replicas[0].path("app.db");
        eventually("the database is there", || {
            sql::try_open(&replica).ok()?.prepare("SELECT v FROM t").ok().map(drop)
        });
        let (held, reader) = (sql::open(&replica), sql::open(&replica));
        // Not one read may wait: with no busy timeout a block is an error.
        reader.busy_timeout(Duration::ZERO).unwrap();
        sql::run(&held, "BEGIN; SELECT count(*) FROM t");
        assert_eq!(sql::number(&held, "SELECT count(*) FROM t"), 1);
        let mut seen = 0;
        for round in 1..=300 {
            sql::run(&writer, &format!("INSERT INTO t VALUES({round})"));
            let now = sql::number(&reader, "SELECT max(v) FROM t");
            assert!(now >= seen, "{now} after {seen}");
            seen = now;
        }
        eventually("the other reader sees the last row", || {
            (sql::number(&reader, "SELECT max(v) FROM t") == 300).then_some(())
        });
        assert_eq!(sql::number(&held, "SELECT max(v) FROM t"), 0);
    }
}

#[test]
fn an_unknown_outcome_is_an_error_or_on_the_cluster() {
    quote("An unknown outcome is never reported as success, and never silently dropped");
    if !needs_skein() {
        return;
    }
    for mut cluster in clusters(1) {
        let mut app = App::transfer(&cluster.primary.path("app.db"), &["--count", "100000"]);
        assert!(app.wait_for("commit", 10, Duration::from_secs(20)), "{:?}", app.end());
        cluster.primary.kill9();
        let (status, said, errors) = app.end();
        assert!(!status.success(), "the application goes on without its filesystem");
        assert!(errors.contains("app.db"), "no error was reported: {errors:?}");
        let acknowledged = said.iter().filter(|line| line.starts_with("commit")).count();
        cluster.primary.must_start();
        let kept = usize::try_from(transactions(&cluster.primary, "app.db")).unwrap();
        // At most the one commit whose answer got lost is there beyond what was acknowledged.
        assert!(
            (acknowledged..=acknowledged + 1).contains(&kept),
            "{kept} kept, {acknowledged} acknowledged"
        );
    }
}

#[test]
fn a_writer_on_a_replica_gets_an_error_and_loses_nothing() {
    quote(
        "A node that may not write refuses the writer with an error; it never accepts a write that would be lost.",
    );
    if !needs_skein() {
        return;
    }
    for mut cluster in clusters(1) {
        let mut app = App::transfer(&cluster.primary.path("app.db"), &["--count", "20"]);
        assert!(app.end().0.success());
        cluster.converge("app.db");
        let on_replica = |cluster: &Cluster| {
            let mut app = App::transfer(&cluster.replicas[0].path("app.db"), &["--id", "r", "--count", "5"]);
            let (status, said, _) = app.end();
            let accepted: Vec<_> = said.iter().filter(|line| line.starts_with("commit")).collect();
            assert!(!status.success() && accepted.is_empty(), "a replica accepted {accepted:?}");
        };
        on_replica(&cluster);
        cluster.primary.kill9();
        on_replica(&cluster);
        cluster.primary.must_start();
        assert_eq!(transactions(&cluster.primary, "app.db"), 18);
        cluster.same_bytes("app.db");
    }
}

#[test]
fn the_same_position_means_the_same_bytes() {
    quote("Nodes with the same position of a database hold the same bytes.");
    quote(
        "After `skein wait` has returned for a transaction, every reader that starts on that node sees it.",
    );
    for cluster in clusters(2) {
        for journal in JOURNAL_MODES {
            let db = format!("{journal}.db");
            let mut app = App::transfer(&cluster.primary.path(&db), &["--journal", journal, "--count", "60"]);
            assert!(app.end().0.success());
            let start = Instant::now();
            let bytes = cluster.same_bytes(&db);
            assert!(start.elapsed() < Duration::from_secs(20));
            if !is_plain() {
                let positions: Vec<_> = cluster.replicas.iter().map(|node| node.pos(&db)).collect();
                assert!(positions.iter().all(|pos| *pos == cluster.primary.pos(&db)), "{positions:?}");
            }
            assert!(bytes.starts_with(b"SQLite format 3\0"));
            assert_eq!(transactions(&cluster.replicas[0], &db), 52);
        }
    }
}
