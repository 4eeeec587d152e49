//! Connections that have a database for themselves (`locking_mode=EXCLUSIVE`): every commit is captured as it is made.

use std::path::Path;

use nix::sys::signal::Signal;
use rusqlite::Connection;

use crate::harness::{Cluster, Node, Options, Voters, eventually, sql};

const ROLLBACK_MODES: [&str; 3] = ["delete", "truncate", "persist"];
const SYNCHRONOUS: [&str; 3] = ["OFF", "NORMAL", "FULL"];

/// A primary with a replica, with passthrough and without.
fn clusters() -> impl Iterator<Item = Cluster> {
    let options = [Options::replicas(1), Options::replicas(1).without_passthrough()];
    options.into_iter().filter_map(|options| Cluster::start(&options))
}

fn txid(node: &Node, db: &str) -> u64 {
    u64::from_str_radix(&node.pos(db).expect("the database is there").0, 16).unwrap()
}

#[track_caller]
fn count(path: &Path) -> i64 {
    sql::number(&sql::open(path), "SELECT count(*) FROM t")
}

/// A database whose journals so far were removed, and synced.
fn made_before(path: &Path) {
    let connection = sql::create(path, "delete", 4096);
    sql::run(&connection, "CREATE TABLE t(v); INSERT INTO t VALUES('before')");
}

/// A connection that keeps the database locked.
fn exclusive(path: &Path, journal: &str, synchronous: &str) -> Connection {
    let connection = sql::open(path);
    sql::run(&connection, &format!("PRAGMA synchronous={synchronous}; PRAGMA locking_mode=EXCLUSIVE"));
    assert_eq!(sql::text(&connection, &format!("PRAGMA journal_mode={journal}")), journal);
    connection
}

#[test]
fn each_commit_of_an_open_connection_is_captured_in_every_rollback_mode() {
    for cluster in clusters() {
        for (journal, synchronous) in
            ROLLBACK_MODES.iter().flat_map(|journal| SYNCHRONOUS.map(|synchronous| (journal, synchronous)))
        {
            let what = format!("{journal}, {synchronous}");
            let db = format!("{journal}-{synchronous}.db");
            let (path, copy) = (cluster.primary.path(&db), cluster.replicas[0].path(&db));
            made_before(&path);
            let connection = exclusive(&path, journal, synchronous);
            let before = txid(&cluster.primary, &db);
            // Without syncs the end of a journal that the kernel writes by itself is found a moment later.
            let at_once = synchronous != "OFF" || !cluster.primary.passthrough();
            for row in 1..=5 {
                sql::run(&connection, &format!("INSERT INTO t VALUES({row})"));
                if at_once {
                    assert_eq!(txid(&cluster.primary, &db), before + row, "{what}");
                }
            }
            eventually("the position has moved with each commit", || {
                (txid(&cluster.primary, &db) == before + 5).then_some(())
            });
            eventually("the replica has all of them", || (count(&copy) == 6).then_some(()));
            // Pages that a small cache writes before the end, and take-backs.
            let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 50) INSERT INTO t SELECT randomblob(3000) FROM n";
            sql::run(&connection, &format!("PRAGMA cache_size=5; BEGIN; {fill}; ROLLBACK; {fill}"));
            sql::run(&connection, "DELETE FROM t WHERE rowid % 3 = 0");
            sql::check_integrity(&connection);
            let rows = sql::number(&connection, "SELECT count(*) FROM t");
            eventually("two more commits", || (txid(&cluster.primary, &db) == before + 7).then_some(()));
            drop(connection);
            assert_eq!(count(&path), rows, "{what}");
            let bytes = cluster.same_bytes(&db);
            assert_eq!(bytes, std::fs::read(&path).unwrap(), "{what}");
            sql::check_integrity(&sql::open(&copy));
        }
    }
}

#[test]
fn a_connection_whose_unsynced_commit_is_lost_writes_nothing_on_top_of_it() {
    let Some(voters) = Voters::three() else { return };
    let first = voters.primary();
    let path = voters.nodes[first].path("a.db");
    eventually("the database is made", || {
        let connection = sql::try_open(&path).ok()?;
        connection.execute_batch("CREATE TABLE IF NOT EXISTS t(v); INSERT INTO t VALUES(0)").ok()
    });
    let connection = exclusive(&path, "delete", "OFF");
    sql::run(&connection, "INSERT INTO t VALUES(1)");
    let others: Vec<usize> = (0..3).filter(|which| *which != first).collect();
    others.iter().for_each(|which| voters.signal(*which, Signal::SIGSTOP));
    eventually("its commits fail", || {
        connection.execute("INSERT INTO t VALUES(2)", []).is_err().then_some(())
    });
    others.iter().for_each(|which| voters.signal(*which, Signal::SIGCONT));
    voters.wait_voting(3);
    drop(connection);
    let primary = voters.primary();
    let again =
        eventually("the database is opened", || sql::try_open(&voters.nodes[primary].path("a.db")).ok());
    eventually("the database is written again", || again.execute("INSERT INTO t VALUES(3)", []).ok());
    sql::check_integrity(&again);
    drop(again);
    voters.same_bytes("a.db");
}
