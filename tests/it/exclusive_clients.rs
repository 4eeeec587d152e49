//! Connections that have a database for themselves (`locking_mode=EXCLUSIVE`): every commit is captured as it is made.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

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

/// How a connection comes to keep the wal-index to itself.
#[derive(Clone, Copy, Debug)]
enum Unshared {
    /// `locking_mode=EXCLUSIVE` before the first read.
    Existing,
    /// The same in a database that does not exist yet.
    New,
    /// The VFS that locks the file for good.
    Vfs,
}

const UNSHARED: [Unshared; 3] = [Unshared::Existing, Unshared::New, Unshared::Vfs];

impl Unshared {
    fn open(self, path: &Path, synchronous: &str) -> Connection {
        if !matches!(self, Self::New) {
            sql::run(&sql::create(path, "wal", 4096), "CREATE TABLE t(v)");
        }
        let connection = match self {
            Self::Vfs => sql::try_open(Path::new(&format!("file:{}?vfs=unix-excl", path.display()))).unwrap(),
            Self::Existing | Self::New => sql::open(path),
        };
        if !matches!(self, Self::Vfs) {
            sql::run(&connection, "PRAGMA locking_mode=EXCLUSIVE");
        }
        sql::run(&connection, &format!("PRAGMA synchronous={synchronous}"));
        assert_eq!(sql::text(&connection, "PRAGMA journal_mode=wal"), "wal", "{self:?}");
        sql::run(&connection, "CREATE TABLE IF NOT EXISTS t(v)");
        connection
    }
}

fn side_files(path: &Path) -> Vec<String> {
    let name = path.file_name().unwrap().to_str().unwrap();
    let listed = std::fs::read_dir(path.parent().unwrap()).unwrap();
    let names = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|found| found.starts_with(&format!("{name}-"))).collect()
}

#[test]
fn a_connection_that_keeps_the_wal_index_to_itself_is_captured_commit_by_commit() {
    for cluster in clusters() {
        for (unshared, synchronous) in
            UNSHARED.iter().flat_map(|unshared| SYNCHRONOUS.map(|synchronous| (unshared, synchronous)))
        {
            let what = format!("{unshared:?}, {synchronous}");
            let db = format!("{unshared:?}-{synchronous}.db");
            let (path, copy) = (cluster.primary.path(&db), cluster.replicas[0].path(&db));
            let connection = unshared.open(&path, synchronous);
            let before = txid(&cluster.primary, &db);
            for row in 1..=5 {
                sql::run(&connection, &format!("INSERT INTO t VALUES({row})"));
                assert_eq!(txid(&cluster.primary, &db), before + row, "{what}");
            }
            eventually("the replica has all of them", || (count(&copy) == 5).then_some(()));
            // The log begins anew, is cut, and has pages written twice by one transaction.
            let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 50) INSERT INTO t SELECT randomblob(3000) FROM n";
            sql::run(&connection, &format!("PRAGMA cache_size=5; BEGIN; {fill}; ROLLBACK; {fill}"));
            for checkpoint in ["PASSIVE", "RESTART", "TRUNCATE"] {
                sql::run(
                    &connection,
                    &format!("PRAGMA wal_checkpoint({checkpoint}); BEGIN; UPDATE t SET v=randomblob(2000) WHERE rowid > 20;
                              UPDATE t SET v=randomblob(2500) WHERE rowid > 10; COMMIT; INSERT INTO t VALUES('{checkpoint}')"),
                );
            }
            sql::run(&connection, "PRAGMA wal_autocheckpoint=3");
            for row in 0..20 {
                sql::run(
                    &connection,
                    &format!("INSERT INTO t VALUES({row}); DELETE FROM t WHERE rowid={row}"),
                );
            }
            sql::check_integrity(&connection);
            let rows = sql::number(&connection, "SELECT count(*) FROM t");
            cluster.converge(&db);
            assert_eq!(count(&copy), rows, "{what}");
            drop(connection);
            assert_eq!(side_files(&path), Vec::<String>::new(), "{what}");
            assert_eq!(count(&path), rows, "{what}");
            sql::run(&sql::open(&path), "INSERT INTO t VALUES('shared again')");
            let bytes = cluster.same_bytes(&db);
            assert_eq!(bytes, std::fs::read(&path).unwrap(), "{what}");
            cluster.primary.must_client(&["db", "verify", &db]);
        }
    }
}

#[test]
fn a_connection_that_keeps_the_wal_index_to_itself_leaves_wal_mode() {
    for cluster in clusters() {
        let path = cluster.primary.path("a.db");
        let connection = Unshared::Existing.open(&path, "FULL");
        sql::run(&connection, "INSERT INTO t VALUES(1)");
        assert_eq!(sql::text(&connection, "PRAGMA journal_mode=delete"), "delete");
        sql::run(&connection, "INSERT INTO t VALUES(2); INSERT INTO t VALUES(3)");
        cluster.converge("a.db");
        assert_eq!(count(&cluster.replicas[0].path("a.db")), 3);
        drop(connection);
        assert_eq!((count(&path), side_files(&path)), (3, Vec::new()));
        assert_eq!(cluster.same_bytes("a.db"), std::fs::read(&path).unwrap());
    }
}

#[test]
fn a_connection_that_keeps_the_wal_index_to_itself_is_killed_and_loses_nothing() {
    for cluster in clusters() {
        let path = cluster.primary.path("a.db");
        sql::run(&sql::create(&path, "wal", 4096), "CREATE TABLE t(v)");
        let script = "PRAGMA locking_mode=EXCLUSIVE; PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint=0;
                      INSERT INTO t VALUES(1); INSERT INTO t VALUES(2); BEGIN; INSERT INTO t VALUES(3);
                      SELECT count(*) FROM t, t AS u, t AS w, generate_series(1,1000000000)";
        let mut app = std::process::Command::new("sqlite3")
            .args([path.to_str().unwrap(), script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        eventually("it has written", || (txid(&cluster.primary, "a.db") == 4).then_some(()));
        app.kill().unwrap();
        app.wait().unwrap();
        assert_eq!(count(&path), 2);
        eventually("its files are gone", || side_files(&path).is_empty().then_some(()));
        assert_eq!(cluster.same_bytes("a.db"), std::fs::read(&path).unwrap());
    }
}

#[test]
fn a_connection_that_keeps_the_wal_index_to_itself_fails_on_a_node_that_loses_the_primary() {
    let Some(voters) = Voters::three() else { return };
    let first = voters.primary();
    let path = voters.nodes[first].path("a.db");
    eventually("the database is made", || {
        let connection = sql::try_open(&path).ok()?;
        connection.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t(v)").ok()
    });
    let connection = sql::open(&path);
    sql::run(
        &connection,
        "PRAGMA locking_mode=EXCLUSIVE; PRAGMA synchronous=NORMAL; INSERT INTO t VALUES(0)",
    );
    // A planned move does not make an application fail: it is refused while the application is there.
    assert!(!voters.nodes[first].client(&["handoff"]).status.success());
    let others: Vec<usize> = (0..3).filter(|which| *which != first).collect();
    others.iter().for_each(|which| voters.signal(*which, Signal::SIGSTOP));
    eventually("its commits fail", || {
        connection.execute("INSERT INTO t VALUES(1)", []).is_err().then_some(())
    });
    others.iter().for_each(|which| voters.signal(*which, Signal::SIGCONT));
    voters.wait_voting(3);
    // Whoever is primary by now: what it holds may not be what the log has.
    assert!(connection.execute("INSERT INTO t VALUES(1)", []).is_err());
    drop(connection);
    let primary = voters.primary();
    let again =
        eventually("the database is opened", || sql::try_open(&voters.nodes[primary].path("a.db")).ok());
    eventually("the database is written again", || again.execute("INSERT INTO t VALUES(2)", []).ok());
    drop(again);
    voters.same_bytes("a.db");
    for node in &voters.nodes {
        sql::check_integrity(&sql::open(&node.path("a.db")));
    }
}

#[test]
fn a_header_that_an_exclusive_connection_is_writing_is_not_taken_for_one_of_a_dead_writer() {
    // Where the kernel passes files through, what is written to the files of the data directory is what the mount shows.
    let Some(cluster) = Cluster::primary_and_replicas(0).filter(|cluster| cluster.primary.passthrough())
    else {
        return;
    };
    let path = cluster.primary.path("a.db");
    let connection = sql::create(&path, "wal", 4096);
    // Read first: the wal-index is shared, but none of its locks is taken from here on.
    sql::run(&connection, "CREATE TABLE t(v); PRAGMA locking_mode=EXCLUSIVE; INSERT INTO t VALUES(1)");
    let file = |name: &str| {
        let path = cluster.primary.data().join("dbs/a.db").join(name);
        std::fs::File::options().read(true).write(true).open(path).unwrap()
    };
    let (index, log) = (file("database-shm"), file("database-wal"));
    let mut header = [0; 48];
    index.read_exact_at(&mut header, 0).unwrap();
    // In the middle of publishing: the two copies differ.
    index.write_all_at(&[0xff; 4], 8).unwrap();
    let end = log.metadata().unwrap().len();
    for _ in 0..20 {
        // The daemon hears that the log was written, and looks.
        log.write_all_at(&[0], end).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    index.write_all_at(&header, 0).unwrap();
    sql::run(&connection, "INSERT INTO t VALUES(2)");
    sql::check_integrity(&connection);
    drop(connection);
    assert_eq!(count(&path), 2);
    assert!(!cluster.primary.log().contains("made a wal-index anew"), "{}", cluster.primary.log());
}
