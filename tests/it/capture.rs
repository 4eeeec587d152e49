//! What is captured, checkpointed and copied is exactly what was committed, whoever is in the middle of what.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::Value;

use crate::harness::sql;
use crate::harness::{
    App, Cluster, Node, Options, PATIENCE, Voters, eventually, example, http, needs_skein, skip, within,
};

fn clusters(replicas: usize) -> impl Iterator<Item = Cluster> {
    let options = [Options::replicas(replicas), Options::replicas(replicas).without_passthrough()];
    options.into_iter().filter_map(|options| Cluster::start(&options))
}

/// The log of a database in the data directory.
fn backing(node: &Node, file: &str) -> PathBuf {
    node.data().join("dbs/app.db").join(file)
}

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

/// Position and checksums of a node's copy: the one it must have, and that of the pages it has.
fn check(node: &Node, db: &str) -> (String, Value, Value) {
    let path = format!("/v1/databases/{db}/check");
    let found = http::get_json(node.http, &path).unwrap_or_else(|error| panic!("{error}"));
    (found["txid"].to_string(), found["checksum"].clone(), found["computed"].clone())
}

/// A node's copy as a database of its own.
fn export(node: &Node, db: &str) -> (tempfile::TempDir, Connection) {
    let bytes = node.export(db).unwrap_or_else(|error| panic!("{}: {error}", node.settings.name));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("copy.db");
    std::fs::write(&path, bytes).unwrap();
    let copy = sql::open(&path);
    sql::check_integrity(&copy);
    (dir, copy)
}

/// Builds the library that makes syncs late; none where there is no compiler.
fn delayed_sync(dir: &Path) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/delayed_sync.c");
    let library = dir.join("delayed_sync.so");
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl").output();
    match built {
        Ok(output) if output.status.success() => Some(library),
        Ok(output) => panic!("cc: {}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => {
            skip("there is no C compiler (cc) for the library that makes syncs late");
            None
        }
    }
}

/// `transfer` with late syncs, which commits once with `synchronous=FULL`.
fn late_writer(library: &Path, database: &Path, delays: &[(&str, u64)]) -> App {
    let mut command = Command::new(example("transfer"));
    command.arg(database).args(["--count", "1", "--id", "late"]).env("LD_PRELOAD", library);
    command.envs(delays.iter().map(|(name, ms)| (name, ms.to_string())));
    App::spawn(&mut command)
}

#[test]
fn a_database_is_removed_or_renamed_while_the_node_checkpoints_it() {
    if !needs_skein() {
        return;
    }
    for cluster in clusters(0) {
        let node = &cluster.primary;
        for round in 0..6 {
            let path = node.path("app.db");
            {
                let connection = sql::create(&path, "wal", 4096);
                sql::run(
                    &connection,
                    "PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(v)",
                );
                sql::run(
                    &connection,
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<3000)
                     INSERT INTO t SELECT randomblob(4000) FROM n",
                );
            }
            // The node checkpoints a database about a second after its last change.
            std::thread::sleep(Duration::from_millis(900 + 40 * round));
            let (from, to) = (path.to_str().unwrap(), node.path("other.db"));
            let words =
                if round % 2 == 0 { vec!["rm", from] } else { vec!["mv", from, to.to_str().unwrap()] };
            eventually("it is removed or renamed", || {
                let mut app = App::spawn(Command::new(words[0]).args(&words[1..]));
                assert!(within(PATIENCE, || app.has_ended().then_some(())).is_some(), "{words:?} hangs");
                let (status, _, errors) = app.end();
                // On a slow machine what was written last may still be on its way through the log.
                assert!(status.success() || errors.contains("busy"), "{words:?}: {errors}");
                status.success().then_some(())
            });
            assert!(node.status().is_ok(), "the node does not answer");
        }
    }
}

#[test]
fn a_copy_is_exact_whatever_the_last_checkpoint_did_to_the_log() {
    if !needs_skein() {
        return;
    }
    for cluster in clusters(1) {
        let connection = sql::create(&cluster.primary.path("app.db"), "wal", 4096);
        sql::run(&connection, "CREATE TABLE t(v)");
        cluster.converge("app.db");
        let replica = sql::open(&cluster.replicas[0].path("app.db"));
        for (rows, mode) in (1..).zip(["TRUNCATE", "RESTART", "FULL", "PASSIVE", "TRUNCATE"]) {
            sql::run(&connection, "INSERT INTO t VALUES(randomblob(3000))");
            cluster.converge("app.db");
            assert_eq!(sql::number(&replica, "SELECT count(*) FROM t"), rows);
            let sql = format!("PRAGMA wal_checkpoint({mode})");
            connection.query_row(&sql, [], |_| Ok(())).unwrap();
            for node in [&cluster.primary, &cluster.replicas[0]] {
                let (_dir, copy) = export(node, "app.db");
                assert_eq!(sql::number(&copy, "SELECT count(*) FROM t"), rows, "after {mode}");
                let (txid, checksum, computed) = check(node, "app.db");
                assert_eq!(checksum, computed, "{} at {txid} after {mode}", node.settings.name);
            }
        }
        cluster.primary.must_client(&["db", "verify"]);
    }
}

#[test]
fn a_copy_is_exact_while_a_writer_begins_the_log_anew_again_and_again() {
    if !needs_skein() {
        return;
    }
    let Some(cluster) = Cluster::primary_and_replicas(0) else { return };
    let path = cluster.primary.path("app.db");
    let connection = sql::create(&path, "wal", 4096);
    sql::run(&connection, "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)");
    sql::run(
        &connection,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<3000)
         INSERT INTO t SELECT i, randomblob(300) FROM n",
    );
    let (writes, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (counted, ended) = (writes.clone(), over.clone());
    let writer = std::thread::spawn(move || {
        sql::run(&connection, "PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=200");
        while !ended.load(Ordering::SeqCst) {
            let id = counted.fetch_add(1, Ordering::SeqCst) * 7919 % 3000 + 1;
            sql::run(&connection, &format!("UPDATE t SET v=randomblob(300) WHERE id={id}"));
        }
    });
    let (begun, mut checks) = (Instant::now(), 0);
    // Enough of both that the log has begun anew between two checks, and in the middle of some.
    while checks < 20 || writes.load(Ordering::SeqCst) < 1000 {
        let (txid, checksum, computed) = check(&cluster.primary, "app.db");
        assert_eq!(checksum, computed, "check {checks} at {txid}");
        export(&cluster.primary, "app.db");
        checks += 1;
        let writes = writes.load(Ordering::SeqCst);
        assert!(begun.elapsed() < Duration::from_secs(120), "only {checks} checks beside {writes} writes");
    }
    over.store(true, Ordering::SeqCst);
    writer.join().unwrap();
}

#[test]
fn a_copy_has_the_transaction_that_its_writer_has_not_published_yet() {
    if !needs_skein() {
        return;
    }
    for cluster in clusters(0) {
        let Some(library) = delayed_sync(cluster.dir()) else { return };
        let node = &cluster.primary;
        let path = node.path("app.db");
        assert!(App::transfer(&path, &["--count", "3"]).end().0.success());
        let reader = sql::open(&path);
        assert_eq!(sql::number(&reader, "SELECT count(*) FROM ledger"), 3);
        let before = node.pos("app.db");
        let mut writer = late_writer(&library, &path, &[("AFTER_MS", 4000)]);
        eventually("its transaction is in the log", || (node.pos("app.db") != before).then_some(()));
        let (_dir, copy) = export(node, "app.db");
        let (_, checksum, computed) = check(node, "app.db");
        assert_eq!(checksum, computed);
        assert_eq!(sql::number(&copy, "SELECT count(*) FROM ledger"), 4);
        assert_eq!(sql::number(&reader, "SELECT count(*) FROM ledger"), 3, "it was published too early");
        assert_eq!(writer.end().1.last().map(String::as_str), Some("commit late 1"));
    }
}

#[test]
fn a_commit_fails_that_a_checkpoint_of_another_connection_could_not_capture() {
    if !needs_skein() {
        return;
    }
    for mut cluster in clusters(0) {
        let Some(library) = delayed_sync(cluster.dir()) else { return };
        let path = cluster.primary.path("app.db");
        assert!(App::transfer(&path, &["--count", "3"]).end().0.success());
        cluster.primary.settings.env.push(("SKEIN_FAULT".into(), "capture_encode:2:error".into()));
        cluster.primary.restart();
        let other = sql::open(&path);
        // The first capture. While somebody reads what was before it, it stays in the log, where the checkpoint finds it.
        let reader = sql::open(&path);
        sql::run(&reader, "BEGIN");
        assert_eq!(sql::number(&reader, "SELECT count(*) FROM ledger"), 3);
        sql::run(&other, "UPDATE account SET balance=balance+1 WHERE id=0");
        let log = backing(&cluster.primary, "database-wal");
        let before = length(&log);
        let mut writer = late_writer(&library, &path, &[("BEFORE_MS", 4000)]);
        eventually("it has written its frames", || (length(&log) > before).then_some(()));
        // Frames are written one by one; the last is there when the log has been quiet.
        let mut seen = 0;
        eventually("it has written all of them", || {
            let now = length(&log);
            std::thread::sleep(Duration::from_millis(100));
            (std::mem::replace(&mut seen, now) == now).then_some(())
        });
        drop(reader);
        // One that meets the node's own checkpoint does nothing, and is no error.
        let checkpoint = || other.query_row("PRAGMA wal_checkpoint", [], |_| Ok(()));
        let failed = within(Duration::from_secs(3), || checkpoint().is_err().then_some(()));
        assert!(failed.is_some(), "the capture by the checkpoint did not fail");
        let (status, lines, errors) = writer.end();
        assert!(!status.success(), "it was told that it had committed: {lines:?}");
        assert!(errors.contains("disk I/O error"), "{errors}");
        drop(other);
        // What counts is the same before and after a crash, and for those who write next.
        cluster.primary.kill9();
        cluster.primary.settings.env.clear();
        cluster.primary.must_start();
        assert!(App::transfer(&path, &["--count", "2"]).end().0.success());
        let reader = sql::open(&path);
        assert_eq!(sql::number(&reader, "SELECT count(*) FROM ledger"), 5);
        assert_eq!(sql::number(&reader, "SELECT count(*) FROM ledger WHERE client='late'"), 0);
    }
}

#[test]
fn acknowledged_commits_stay_when_their_writer_dies_while_it_publishes() {
    if !needs_skein() {
        return;
    }
    for synchronous in ["full", "normal"] {
        let Some(cluster) = Cluster::primary_and_replicas(1) else { return };
        if !cluster.primary.passthrough() {
            return skip("without passthrough the wal-index is not to be reached behind the mount");
        }
        let path = cluster.primary.path("app.db");
        let mut writer = App::transfer(&path, &["--synchronous", synchronous, "--pause-ms", "5"]);
        assert!(writer.wait_for("commit", 30, PATIENCE));
        // The node does not let go of the database before its wal-index is as this test wants it.
        let open = std::fs::File::open(&path).unwrap();
        let acknowledged = writer.kill9().iter().filter(|line| line.starts_with("commit")).count();
        // As it is left by a writer that dies between the two copies of the header.
        let index = backing(&cluster.primary, "database-shm");
        let header = std::fs::read(&index).unwrap();
        let changed: Vec<u8> = header[..48].iter().map(|byte| byte ^ 1).collect();
        let shm = std::fs::File::options().write(true).open(&index).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&shm, &changed, 48).unwrap();
        drop((shm, open));
        // Nobody opens it until the node has let go of it.
        let log = backing(&cluster.primary, "database-wal");
        eventually("the node has closed the database", || (!log.exists()).then_some(()));
        let rows = |node: &Node| sql::number(&sql::open(&node.path("app.db")), "SELECT count(*) FROM ledger");
        let found = usize::try_from(rows(&cluster.primary)).unwrap();
        // The last may have been committed while nobody could be told.
        assert!(
            (acknowledged..=acknowledged + 1).contains(&found),
            "{found} of {acknowledged} ({synchronous})"
        );
        sql::run(&sql::open(&path), "UPDATE account SET balance=balance");
        cluster.converge("app.db");
        assert_eq!(rows(&cluster.primary), rows(&cluster.replicas[0]));
        cluster.same_bytes("app.db");
    }
}

/// Whoever opens the log when nobody uses it makes the wal-index anew, whatever is in the file: it may tell of frames of
/// a log that is gone.
#[test]
fn a_wal_index_that_was_left_behind_is_not_believed() {
    for cluster in clusters(1) {
        let path = cluster.primary.path("app.db");
        let index = backing(&cluster.primary, "database-shm");
        let connection = sql::create(&path, "wal", 4096);
        sql::run(&connection, "CREATE TABLE t(v); INSERT INTO t VALUES(1),(2),(3)");
        let left = std::fs::read(&index).unwrap();
        drop(connection);
        eventually("the node has closed the database", || (!index.exists()).then_some(()));
        std::fs::write(&index, left).unwrap();
        let connection = sql::open(&path);
        assert_eq!(sql::number(&connection, "SELECT sum(v) FROM t"), 6);
        sql::run(&connection, "INSERT INTO t VALUES(4)");
        cluster.converge("app.db");
        assert_eq!(sql::number(&sql::open(&cluster.replicas[0].path("app.db")), "SELECT sum(v) FROM t"), 10);
        cluster.same_bytes("app.db");
    }
}

#[test]
fn a_sole_connection_is_never_told_that_its_database_is_locked() {
    if !needs_skein() {
        return;
    }
    for cluster in clusters(0) {
        let connection = sql::create(&cluster.primary.path("app.db"), "wal", 4096);
        sql::run(&connection, "CREATE TABLE t(v)");
        connection.busy_timeout(Duration::ZERO).unwrap();
        for number in 0..3000 {
            sql::run(&connection, &format!("INSERT INTO t VALUES({number})"));
        }
    }
}

#[test]
fn a_checkpoint_on_a_voter_that_is_not_primary_succeeds() {
    if !needs_skein() {
        return;
    }
    for passthrough in [true, false] {
        let Some(voters) = Voters::start(3, passthrough) else { return };
        let (primary, follower) = (voters.primary(), voters.follower());
        let writer = sql::create(&voters.nodes[primary].path("app.db"), "wal", 4096);
        sql::run(&writer, "CREATE TABLE t(v)");
        let reader = voters.open(follower, "app.db");
        reader.busy_timeout(Duration::ZERO).unwrap();
        for rows in 1..10 {
            sql::run(&writer, "INSERT INTO t VALUES(randomblob(3000))");
            let seen = || (sql::number(&reader, "SELECT count(*) FROM t") == rows).then_some(());
            eventually("the follower has it", seen);
            for mode in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
                let sql = format!("PRAGMA wal_checkpoint({mode})");
                let answer = reader.query_row(&sql, [], |row| row.get::<_, i64>(0));
                // Others than PASSIVE want the lock of the writers, which this node keeps from all.
                assert!(matches!(answer, Ok(0 | 1)), "{mode}: {answer:?}");
            }
        }
        voters.same_bytes("app.db");
    }
}

#[test]
fn two_writes_after_one_another_on_a_replica_are_both_refused_as_readonly() {
    if !needs_skein() {
        return;
    }
    for cluster in clusters(1) {
        for journal in ["wal", "delete"] {
            let name = format!("{journal}.db");
            let writer = sql::create(&cluster.primary.path(&name), journal, 4096);
            sql::run(&writer, "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
            cluster.converge(&name);
            let reader = sql::open(&cluster.replicas[0].path(&name));
            for _ in 0..3 {
                let refused = reader.execute_batch("INSERT INTO t VALUES(2)").unwrap_err();
                assert_eq!(refused.sqlite_error_code(), Some(rusqlite::ErrorCode::ReadOnly), "{refused}");
                sql::run(&writer, "INSERT INTO t VALUES(3)");
                cluster.converge(&name);
            }
        }
    }
}

#[test]
fn a_log_that_nobody_takes_part_in_is_not_said_to_be_durable() {
    if !needs_skein() {
        return;
    }
    for cluster in clusters(0) {
        let path = cluster.primary.path("app.db");
        sql::run(&sql::create(&path, "delete", 4096), "CREATE TABLE t(v)");
        // The log of a copy in WAL mode, as a program with its own WAL code would write it.
        let elsewhere = tempfile::tempdir().unwrap();
        let copy = elsewhere.path().join("copy.db");
        std::fs::copy(&path, &copy).unwrap();
        let connection = sql::create(&copy, "wal", 4096);
        sql::run(&connection, "INSERT INTO t VALUES(1)");
        let log = std::fs::read(elsewhere.path().join("copy.db-wal")).unwrap();
        assert!(log.len() > 4096);
        let written = std::fs::write(cluster.primary.path("app.db-wal"), log)
            .and_then(|()| std::fs::File::open(cluster.primary.path("app.db-wal")))
            .and_then(|log| log.sync_all());
        assert!(written.is_err(), "what no node has is said to be durable");
    }
}
