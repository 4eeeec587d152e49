//! The last close of a WAL database, and connections that have the database for themselves.

use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use rusqlite::Connection;

use crate::harness::{Cluster, Options, Voters, eventually, sql};

const SYNCHRONOUS: [&str; 3] = ["FULL", "NORMAL", "OFF"];

/// Runs `test` on a primary with a replica, with passthrough and without.
fn with_and_without_passthrough(test: impl Fn(&Cluster)) {
    for options in [Options::replicas(1), Options::replicas(1).without_passthrough()] {
        let Some(cluster) = Cluster::start(&options) else { return };
        test(&cluster);
    }
}

/// Opens as an application in WAL mode would.
fn wal(path: &Path, synchronous: &str) -> Connection {
    let connection = sql::create(path, "wal", 4096);
    sql::run(&connection, &format!("PRAGMA synchronous={synchronous}"));
    connection
}

fn side_files(path: &Path) -> Vec<String> {
    let name = path.file_name().unwrap().to_str().unwrap();
    let listed = std::fs::read_dir(path.parent().unwrap()).unwrap();
    let names = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|found| ["-wal", "-shm"].iter().any(|suffix| *found == format!("{name}{suffix}"))).collect()
}

fn rows(path: &Path) -> Option<i64> {
    sql::open(path).query_row("SELECT count(*) FROM t", [], |row| row.get(0)).ok()
}

#[track_caller]
fn count(path: &Path) -> i64 {
    let counted = sql::open(path).query_row("SELECT count(*) FROM t", [], |row| row.get(0));
    counted.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_database_file_is_complete_when_its_last_connection_has_closed() {
    with_and_without_passthrough(|cluster| {
        for synchronous in SYNCHRONOUS {
            let db = format!("{synchronous}.db");
            let (path, copy) = (cluster.primary.path(&db), cluster.dir().join("copy.db"));
            for round in 1..=10 {
                let connection = wal(&path, synchronous);
                sql::run(&connection, "CREATE TABLE IF NOT EXISTS t(v)");
                for row in 0..20 {
                    sql::run(&connection, &format!("INSERT INTO t VALUES({row})"));
                }
                drop(connection);
                std::fs::copy(&path, &copy).unwrap();
                assert_eq!(count(&copy), round * 20, "{synchronous}, round {round}");
                assert_eq!(side_files(&path), Vec::<String>::new(), "{synchronous}, round {round}");
            }
            cluster.converge(&db);
            assert_eq!(count(&cluster.replicas[0].path(&db)), 200);
        }
    });
}

#[test]
fn a_database_is_moved_away_renamed_and_removed_right_after_its_last_close() {
    with_and_without_passthrough(|cluster| {
        for synchronous in SYNCHRONOUS {
            for round in 0..5 {
                let path = cluster.primary.path("a.db");
                let fill = || {
                    let connection = wal(&path, synchronous);
                    sql::run(&connection, "CREATE TABLE t(v); INSERT INTO t VALUES(1),(2),(3)");
                };
                fill();
                let outside = cluster.dir().join("outside.db");
                let moved = Command::new("mv").args([&path, &outside]).status().unwrap();
                assert!(moved.success() && !path.exists(), "{synchronous}, round {round}");
                assert_eq!(count(&outside), 3, "{synchronous}, round {round}");
                fill();
                let renamed = cluster.primary.path(&format!("b{round}.db"));
                std::fs::rename(&path, &renamed).unwrap();
                assert_eq!(count(&renamed), 3, "{synchronous}, round {round}");
                std::fs::remove_file(&renamed).unwrap();
                assert!(!renamed.exists(), "{synchronous}, round {round}");
            }
        }
    });
}

/// The byte of `-shm` that says whether anybody uses it (`os_unix.c`, UNIX_SHM_DMS), locked as another connection does.
fn share_dms(path: &Path) -> std::fs::File {
    let mut name = path.as_os_str().to_owned();
    name.push("-shm");
    let shm = std::fs::File::options().read(true).write(true).open(name).unwrap();
    let lock = nix::libc::flock {
        l_type: nix::libc::F_RDLCK as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 128,
        l_len: 1,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&shm, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    shm
}

/// SQLite then neither copies the log into the file nor removes it, as where a lock of the daemon is in its way.
#[test]
fn the_file_of_a_new_database_is_complete_also_where_its_last_connection_could_not_see_to_it() {
    with_and_without_passthrough(|cluster| {
        for synchronous in SYNCHRONOUS {
            let path = cluster.primary.path(&format!("{synchronous}.db"));
            let connection = wal(&path, synchronous);
            sql::run(&connection, "CREATE TABLE t(v); INSERT INTO t VALUES(1),(2),(3)");
            let shm = share_dms(&path);
            drop(connection);
            let copy = cluster.dir().join("copy.db");
            std::fs::copy(&path, &copy).unwrap();
            assert_eq!(count(&copy), 3, "{synchronous}");
            drop(shm);
            let renamed = cluster.primary.path(&format!("{synchronous}-renamed.db"));
            std::fs::rename(&path, &renamed).unwrap();
            assert_eq!(count(&renamed), 3, "{synchronous}");
        }
    });
}

#[test]
fn the_rows_of_a_killed_application_are_in_the_file_soon() {
    with_and_without_passthrough(|cluster| {
        let path = cluster.primary.path("a.db");
        drop(wal(&path, "NORMAL"));
        let script = "PRAGMA wal_autocheckpoint=0; CREATE TABLE t(v); INSERT INTO t VALUES(1),(2),(3); SELECT 'written'; SELECT count(*) FROM t, t AS u, t AS w, generate_series(1,1000000000)";
        // A program that never closes: it is in its last statement when it is killed.
        let mut app = Command::new("sqlite3")
            .args([path.to_str().unwrap(), script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        eventually("it has written", || (cluster.primary.pos("a.db")?.0.ends_with("3")).then_some(()));
        app.kill().unwrap();
        app.wait().unwrap();
        let copy = cluster.dir().join("copy.db");
        eventually("the copy has all rows", || {
            std::fs::copy(&path, &copy).unwrap();
            let copied = Connection::open(&copy).unwrap();
            let count = copied.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
            (count == Ok(3)).then_some(())
        });
        assert_eq!(side_files(&path), Vec::<String>::new());
    });
}

#[test]
fn a_connection_takes_a_wal_database_for_itself_and_every_commit_is_replicated() {
    with_and_without_passthrough(|cluster| {
        for synchronous in SYNCHRONOUS {
            let db = format!("{synchronous}.db");
            let path = cluster.primary.path(&db);
            let connection = wal(&path, synchronous);
            sql::run(&connection, "CREATE TABLE t(v)");
            assert_eq!(sql::text(&connection, "PRAGMA locking_mode=EXCLUSIVE"), "exclusive");
            for row in 0..50 {
                sql::run(&connection, &format!("INSERT INTO t VALUES({row})"));
            }
            let copied = cluster.replicas[0].path(&db);
            eventually("the replica has all rows", || {
                (copied.exists() && rows(&copied) == Some(50)).then_some(())
            });
            // SQLite's shell is another process: locks of one process do not conflict.
            let other = Command::new("sqlite3").arg(&path).arg("SELECT count(*) FROM t").output().unwrap();
            assert!(String::from_utf8_lossy(&other.stderr).contains("locked"), "{synchronous}: {other:?}");
            sql::run(
                &connection,
                "INSERT INTO t VALUES(1); PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t VALUES(2)",
            );
            drop(connection);
            assert_eq!(side_files(&path), Vec::<String>::new(), "{synchronous}");
            assert_eq!(count(&path), 52, "{synchronous}");
            cluster.converge(&db);
            assert_eq!(count(&cluster.replicas[0].path(&db)), 52, "{synchronous}");
        }
    });
}

#[test]
fn an_exclusive_connection_is_refused_on_a_node_that_loses_the_primary() {
    let Some(voters) = Voters::three() else { return };
    let first = voters.primary();
    let path = voters.nodes[first].path("a.db");
    let connection = eventually("the database is made", || {
        let connection = sql::try_open(&path).ok()?;
        let made = connection.execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE IF NOT EXISTS t(v)",
        );
        made.ok().map(|()| connection)
    });
    sql::run(&connection, "PRAGMA locking_mode=EXCLUSIVE; INSERT INTO t VALUES(0)");
    let others: Vec<usize> = (0..3).filter(|which| *which != first).collect();
    // A planned move does not make an application fail: it is refused while the application is there.
    let refused = voters.nodes[first].client(&["handoff"]);
    assert!(!refused.status.success());
    for which in &others {
        voters.signal(*which, Signal::SIGSTOP);
    }
    eventually("its commits fail", || {
        connection.execute("INSERT INTO t VALUES(1)", []).is_err().then_some(())
    });
    let error = connection.execute("INSERT INTO t VALUES(1)", []).unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::CannotOpen), "{error}");
    for which in &others {
        voters.signal(*which, Signal::SIGCONT);
    }
    voters.wait_voting(3);
    drop(connection);
    let primary = voters.primary();
    let again =
        eventually("the database is opened", || sql::try_open(&voters.nodes[primary].path("a.db")).ok());
    eventually("the database is written again", || again.execute("INSERT INTO t VALUES(2)", []).ok());
    drop(again);
    voters.same_bytes("a.db");
}

#[test]
fn a_lone_connection_leaves_wal_mode_and_what_it_then_writes_is_replicated() {
    with_and_without_passthrough(|cluster| {
        for journal in ["delete", "truncate", "persist"] {
            let db = format!("{journal}.db");
            let path = cluster.primary.path(&db);
            let connection = wal(&path, "FULL");
            sql::run(&connection, "CREATE TABLE t(v); INSERT INTO t VALUES(1),(2),(3)");
            drop(connection);
            let connection = sql::open(&path);
            assert_eq!(sql::number(&connection, "SELECT count(*) FROM t"), 3);
            assert_eq!(sql::text(&connection, &format!("PRAGMA journal_mode={journal}")), journal);
            for row in 0..5 {
                sql::run(
                    &connection,
                    &format!("INSERT INTO t VALUES({row}); INSERT INTO t VALUES(randomblob(20000))"),
                );
            }
            sql::run(
                &connection,
                "BEGIN; DELETE FROM t; ROLLBACK; DELETE FROM t WHERE length(v) > 1000 AND rowid < 8",
            );
            cluster.converge(&db);
            let rows = sql::number(&connection, "SELECT count(*) FROM t");
            assert_eq!(count(&cluster.replicas[0].path(&db)), rows, "{journal}");
            sql::run(&connection, "PRAGMA page_size=8192; VACUUM; INSERT INTO t VALUES(1)");
            assert_eq!(sql::number(&connection, "PRAGMA page_size"), 8192);
            cluster.converge(&db);
            assert_eq!(count(&cluster.replicas[0].path(&db)), rows + 1, "{journal}");
            sql::check_integrity(&connection);
            drop(connection);
            let again = sql::open(&path);
            // The file only says that it is not in WAL mode.
            assert_eq!(sql::text(&again, "PRAGMA journal_mode"), "delete");
            sql::run(&again, "INSERT INTO t VALUES(2)");
            drop(again);
            assert_eq!(cluster.same_bytes(&db), std::fs::read(&path).unwrap(), "{journal}");
            cluster.primary.must_client(&["db", "verify", &db]);
        }
    });
}
