//! Programs that write a WAL database's file in a way that the daemon does not see: found when they close it.

use std::path::Path;
use std::process::Command;

use crate::harness::sql::{self, JOURNAL_MODES, PAGE_SIZES};
use crate::harness::{Cluster, Options, Voters, eventually, needs_skein, skip};

/// Opens the file as SQLite does and puts `new` where `old` is, with pwrite(2) or through a shared mapping.
const PROGRAM: &str = "
import mmap, os, sys
path, how, old, new = sys.argv[1], sys.argv[2], sys.argv[3].encode(), sys.argv[4].encode()
file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
content = os.pread(file, os.fstat(file).st_size, 0)
places = [at for at in range(len(content)) if content.startswith(old, at)]
assert places, 'nothing to change'
mapping = mmap.mmap(file, 0) if how == 'mapped' else None
for at in places:
    if mapping is not None:
        mapping[at:at + len(new)] = new
    else:
        os.pwrite(file, new, at)
if mapping is not None:
    mapping.flush()
    mapping.close()
os.close(file)
";

const WAYS: [&str; 2] = ["written", "mapped"];

fn has_python() -> bool {
    let found = Command::new("python3").arg("--version").output().is_ok();
    if !found {
        skip("python3 is not installed");
    }
    found
}

/// Runs the program; what it says where it fails.
fn overwrite(path: &Path, how: &str, old: &str, new: &str) -> Result<(), String> {
    let output =
        Command::new("python3").args(["-c", PROGRAM]).arg(path).args([how, old, new]).output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn clusters() -> impl Iterator<Item = Cluster> {
    let options = [Options::replicas(1), Options::replicas(1).without_passthrough()];
    options
        .into_iter()
        .filter(|_| needs_skein() && has_python())
        .filter_map(|options| Cluster::start(&options))
}

fn filled(path: &Path, page_size: u32) -> rusqlite::Connection {
    let connection = sql::create(path, "wal", page_size);
    sql::run(
        &connection,
        "PRAGMA wal_autocheckpoint=0; CREATE TABLE t(v); CREATE TABLE log(n);
         INSERT INTO t VALUES('before-' || hex(zeroblob(40000))), ('before'); PRAGMA wal_checkpoint(PASSIVE)",
    );
    connection
}

const CHANGED: &str = "SELECT count(*) FROM t WHERE v LIKE 'behind%'";

/// Both nodes show what was written, and what is written next.
fn shown_everywhere(cluster: &Cluster, db: &str, what: &str) {
    let connection = sql::open(&cluster.primary.path(db));
    assert_eq!(sql::number(&connection, CHANGED), 2, "primary, {what}");
    sql::check_integrity(&connection);
    cluster.converge(db);
    let copy = sql::open(&cluster.replicas[0].path(db));
    assert_eq!(sql::number(&copy, CHANGED), 2, "replica, {what}");
    sql::run(&connection, "INSERT INTO log VALUES(7); PRAGMA wal_checkpoint(TRUNCATE)");
    cluster.converge(db);
    assert_eq!(sql::number(&copy, "SELECT count(*) FROM log WHERE n=7"), 1, "{what}");
    drop(connection);
    cluster.converge(db);
    cluster.primary.must_client(&["db", "verify", db]);
}

#[test]
fn what_a_program_writes_as_sqlite_opens_a_file_is_captured_when_it_closes_it() {
    for cluster in clusters() {
        for page_size in PAGE_SIZES {
            for how in WAYS {
                let db = format!("{how}-{page_size}.db");
                let path = cluster.primary.path(&db);
                drop(filled(&path, page_size));
                cluster.converge(&db);
                let written = overwrite(&path, how, "before", "behind");
                if cluster.primary.passthrough() {
                    assert_eq!(written, Ok(()));
                    shown_everywhere(&cluster, &db, &format!("{how}, page size {page_size}"));
                } else {
                    // The daemon sees the write, and nobody has the log open.
                    refused(&cluster, &db, &written);
                }
            }
        }
    }
}

/// A write that was refused is seen nowhere, once the kernel has been told to drop it from its cache.
fn refused(cluster: &Cluster, db: &str, written: &Result<(), String>) {
    assert!(written.is_err(), "{db}");
    let path = cluster.primary.path(db);
    eventually("nobody sees it", || (sql::number(&sql::open(&path), CHANGED) == 0).then_some(()));
    sql::check_integrity(&sql::open(&path));
    cluster.primary.must_client(&["db", "verify", db]);
}

#[test]
fn what_a_program_writes_into_a_database_in_a_rollback_mode_is_refused_and_not_seen() {
    for cluster in clusters() {
        for journal in &JOURNAL_MODES[1..] {
            for how in WAYS {
                let db = format!("{how}-{journal}.db");
                let path = cluster.primary.path(&db);
                let open = sql::create(&path, journal, 4096);
                sql::run(&open, "CREATE TABLE t(v); INSERT INTO t VALUES('before'), ('before')");
                cluster.converge(&db);
                let written = overwrite(&path, how, "before", "behind");
                refused(&cluster, &db, &written);
                // The kernel tells each open descriptor once, at its next fsync, that a write of a mapping failed.
                eventually("a write succeeds", || open.execute_batch("UPDATE t SET v = v || '!'").ok());
                assert_eq!(sql::number(&open, "SELECT count(*) FROM t WHERE v = 'before!'"), 2);
                drop(open);
                cluster.converge(&db);
                cluster.primary.must_client(&["db", "verify", &db]);
            }
        }
    }
}

#[test]
fn connections_that_are_open_see_it_as_a_transaction_and_lose_nothing() {
    for cluster in clusters() {
        for (checkpointed, how) in [(true, WAYS[0]), (false, WAYS[0]), (true, WAYS[1]), (false, WAYS[1])] {
            let db = format!("{how}-{checkpointed}.db");
            let path = cluster.primary.path(&db);
            let open = filled(&path, 4096);
            if !checkpointed {
                // Newer in the log than in the file, and to stay so.
                sql::run(&open, "INSERT INTO log VALUES(1), (2)");
            }
            cluster.converge(&db);
            overwrite(&path, how, "before", "behind").unwrap();
            let what = format!("{how}, checkpointed: {checkpointed}");
            assert_eq!(sql::number(&open, CHANGED), 2, "the connection, {what}");
            assert_eq!(sql::number(&open, "SELECT count(*) FROM log"), if checkpointed { 0 } else { 2 });
            shown_everywhere(&cluster, &db, &what);
            sql::run(&open, "UPDATE t SET v='behind us'");
            sql::check_integrity(&open);
            drop(open);
            cluster.converge(&db);
        }
    }
}

#[test]
fn a_page_that_the_log_has_newer_stays_what_the_log_has() {
    for cluster in clusters() {
        for how in WAYS {
            let db = format!("{how}.db");
            let path = cluster.primary.path(&db);
            let open = filled(&path, 4096);
            sql::run(&open, "UPDATE t SET v='after'");
            cluster.converge(&db);
            let before = cluster.primary.pos(&db);
            // In the file only, on pages that a checkpoint is still to write.
            overwrite(&path, how, "before", "behind").unwrap();
            drop(open);
            cluster.converge(&db);
            let connection = sql::open(&path);
            assert_eq!(sql::number(&connection, "SELECT count(*) FROM t WHERE v='after'"), 2, "{how}");
            sql::check_integrity(&connection);
            drop(connection);
            assert!(cluster.primary.pos(&db) >= before);
            cluster.primary.must_client(&["db", "verify", &db]);
        }
    }
}

#[test]
fn a_child_that_inherits_the_descriptor_of_a_writer_does_not_wait_for_it() {
    // Opens a transaction, starts a child that closes what it inherited, and waits for it.
    const FORKS: &str = "
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute('PRAGMA wal_checkpoint(PASSIVE)')
db.execute('INSERT INTO log VALUES(1)')
db.execute('PRAGMA wal_checkpoint(PASSIVE)')
db.execute('BEGIN IMMEDIATE')
child = os.fork()
if child == 0:
    os.closerange(3, 64)
    os._exit(0)
os.waitpid(child, 0)
db.execute('COMMIT')
";
    for cluster in clusters() {
        let path = cluster.primary.path("app.db");
        drop(filled(&path, 4096));
        let output = Command::new("python3").args(["-c", FORKS]).arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!cluster.primary.log().contains("not looking for writes"), "it waited for its writer");
        assert_eq!(sql::number(&sql::open(&path), "SELECT count(*) FROM log"), 1);
    }
}

#[test]
fn what_would_be_no_database_is_an_error_of_the_close_and_undone_from_another_node() {
    if !has_python() {
        return;
    }
    let Some(voters) = Voters::three() else { return };
    let primary = voters.primary();
    let path = voters.nodes[primary].path("app.db");
    drop(filled(&path, 4096));
    let good = voters.same_bytes("app.db");
    let said = overwrite(&path, "written", "SQLite format 3", "no database any").unwrap_err();
    assert!(said.contains("Input/output error"), "{said}");
    eventually("it is fetched from another node", || {
        (voters.nodes[primary].export("app.db").as_ref() == Ok(&good)).then_some(())
    });
    let connection = sql::open(&path);
    assert_eq!(sql::number(&connection, "SELECT count(*) FROM t WHERE v LIKE 'before%'"), 2);
    sql::run(&connection, "INSERT INTO log VALUES(1)");
    drop(connection);
    voters.same_bytes("app.db");
}
