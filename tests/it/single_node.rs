//! One node: everything SQLite does must work on the mount, in every journal mode and page size.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::backup::Backup;

use crate::harness::sql::{self, JOURNAL_MODES, PAGE_SIZES};
use crate::harness::{App, Cluster, Options};

/// Runs `test` for each journal mode and page size, on a mount with and one without passthrough.
fn matrix(test: impl Fn(&Cluster, &str, u32)) {
    for options in [Options::replicas(0), Options::replicas(0).without_passthrough()] {
        let Some(cluster) = Cluster::start(&options) else { return };
        if !options.passthrough {
            assert!(!cluster.primary.passthrough(), "--no-passthrough was not heeded");
        }
        for journal in JOURNAL_MODES {
            for page_size in PAGE_SIZES {
                test(&cluster, journal, page_size);
            }
        }
    }
}

fn name(journal: &str, page_size: u32) -> String {
    format!("{journal}-{page_size}.db")
}

/// What the node exports must be what an application reads on the mount.
fn assert_export_is_the_mount(cluster: &Cluster, db: &str) {
    let mounted = sql::open(&cluster.primary.path(db));
    let exported = tempfile::NamedTempFile::new().unwrap();
    let expected = sql::dump(&mounted);
    crate::harness::eventually("the export has the last transaction", || {
        std::fs::write(exported.path(), cluster.primary.export(db).ok()?).unwrap();
        let copy = Connection::open(exported.path()).unwrap();
        copy.pragma_update(None, "locking_mode", "exclusive").unwrap();
        (sql::dump(&copy) == expected).then_some(())
    });
}

#[test]
fn rows_are_written_changed_taken_back_and_found_again() {
    matrix(|cluster, journal, page_size| {
        let db = name(journal, page_size);
        let path = cluster.primary.path(&db);
        let connection = sql::create(&path, journal, page_size);
        sql::run(&connection, "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB); CREATE INDEX i ON t(v)");
        sql::run(
            &connection,
            "INSERT INTO t(v) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x<300)
             SELECT randomblob(100) FROM n",
        );
        sql::run(&connection, "UPDATE t SET v = 'changed' WHERE id % 3 = 0");
        sql::run(&connection, "DELETE FROM t WHERE id % 5 = 0");
        sql::run(&connection, "BEGIN; DELETE FROM t; ROLLBACK");
        sql::run(
            &connection,
            "BEGIN; SAVEPOINT a; DELETE FROM t WHERE id < 100; SAVEPOINT b; INSERT INTO t(v) VALUES('lost');
             ROLLBACK TO b; RELEASE a; COMMIT",
        );
        // A cache of ten pages spills in the middle of the transaction; the second is then taken back.
        sql::run(&connection, "PRAGMA cache_size=10");
        let many =
            "INSERT INTO t(v) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x<2000)
                    SELECT randomblob(200) FROM n";
        sql::run(&connection, &format!("BEGIN; {many}; UPDATE t SET v = zeroblob(300) WHERE id % 2; COMMIT"));
        sql::run(&connection, &format!("BEGIN; {many}; DELETE FROM t WHERE id % 2; ROLLBACK"));
        sql::check_integrity(&connection);
        assert_eq!(sql::number(&connection, "SELECT count(*) FROM t"), 160 + 2000, "{db}");
        assert_eq!(sql::number(&connection, "SELECT count(*) FROM t WHERE v='lost'"), 0);
        drop(connection);
        let again = sql::open(&path);
        assert_eq!(sql::number(&again, "PRAGMA page_size"), i64::from(page_size));
        assert_eq!(sql::number(&again, "SELECT count(*) FROM t"), 160 + 2000, "{db}");
        sql::check_integrity(&again);
        drop(again);
        assert_export_is_the_mount(cluster, &db);
    });
}

#[test]
fn vacuum_backup_and_page_size_changes_work() {
    matrix(|cluster, journal, page_size| {
        let db = name(journal, page_size);
        let connection = sql::create(&cluster.primary.path(&db), journal, page_size);
        sql::run(&connection, "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)");
        sql::run(
            &connection,
            "INSERT INTO t(v) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x<500)
             SELECT randomblob(900) FROM n; DELETE FROM t WHERE id % 4",
        );
        let expected = sql::dump(&connection);
        sql::run(&connection, "VACUUM");
        assert_eq!(sql::dump(&connection), expected, "VACUUM of {db}");

        let copy = cluster.primary.path(&format!("into-{db}"));
        connection.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
        let copied = sql::open(&copy);
        assert_eq!(sql::dump(&copied), expected, "VACUUM INTO of {db}");
        drop(copied);
        assert_export_is_the_mount(cluster, &format!("into-{db}"));

        let target = cluster.primary.path(&format!("backup-{db}"));
        let mut backed_up = sql::open(&target);
        Backup::new(&connection, &mut backed_up)
            .unwrap()
            .run_to_completion(40, Duration::ZERO, None)
            .unwrap();
        assert_eq!(sql::dump(&backed_up), expected, "backup of {db}");
        sql::check_integrity(&backed_up);
        drop(backed_up);
        assert_export_is_the_mount(cluster, &format!("backup-{db}"));

        if journal != "wal" {
            let other = if page_size == 4096 { 1024 } else { 4096 };
            sql::run(&connection, &format!("PRAGMA page_size={other}; VACUUM"));
            assert_eq!(sql::number(&connection, "PRAGMA page_size"), other);
            assert_eq!(sql::dump(&connection), expected, "page size of {db}");
        }
        sql::check_integrity(&connection);
        drop(connection);
        assert_export_is_the_mount(cluster, &db);
    });
}

#[test]
fn several_processes_and_threads_use_one_database_at_once() {
    for options in [Options::replicas(0), Options::replicas(0).without_passthrough()] {
        let Some(cluster) = Cluster::start(&options) else { return };
        for journal in JOURNAL_MODES {
            let path = cluster.primary.path(&format!("{journal}.db"));
            let arguments = |id: &'static str| ["--id", id, "--journal", journal, "--count", "40"];
            let mut founder = App::transfer(&path, &["--journal", journal, "--count", "0"]);
            assert!(founder.end().0.success());
            let mut watcher = App::transfer(&path, &["--watch", "--seconds", "60"]);
            let mut apps: Vec<_> = ["p", "q"].map(|id| App::transfer(&path, &arguments(id))).into();
            std::thread::scope(|scope| {
                for thread in 0..3 {
                    let path = &path;
                    scope.spawn(move || insert_notes(path, thread));
                }
            });
            for app in &mut apps {
                let (status, _, errors) = app.end();
                assert!(status.success(), "{journal}: {errors}");
            }
            let said = watcher.kill9();
            assert!(!said.iter().any(|line| line.starts_with("broken")), "{journal}: {said:?}");
            let connection = sql::open(&path);
            sql::check_integrity(&connection);
            // 40 rounds, every seventh taken back.
            assert_eq!(sql::number(&connection, "SELECT count(*) FROM ledger WHERE client IN ('p','q')"), 70);
            assert_eq!(sql::number(&connection, "SELECT count(*) FROM ledger WHERE client LIKE 't%'"), 60);
        }
    }
}

fn insert_notes(path: &Path, thread: usize) {
    let connection = sql::open(path);
    for sequence in 0..20 {
        let sql = "INSERT INTO ledger(client, seq) VALUES(?1, ?2)";
        connection.execute(sql, rusqlite::params![format!("t{thread}"), sequence]).unwrap();
    }
}

#[test]
fn memory_mapped_reads_see_what_other_connections_write() {
    matrix(|cluster, journal, page_size| {
        let path = cluster.primary.path(&format!("mmap-{}", name(journal, page_size)));
        let writer = sql::create(&path, journal, page_size);
        sql::run(&writer, "CREATE TABLE t(v); INSERT INTO t VALUES(0)");
        let reader = sql::open(&path);
        sql::run(&reader, "PRAGMA mmap_size=268435456");
        sql::run(&writer, "PRAGMA mmap_size=268435456");
        for round in 1..40 {
            sql::run(
                &writer,
                &format!(
                    "UPDATE t SET v={round} WHERE typeof(v)='integer'; INSERT INTO t VALUES(randomblob(3000))"
                ),
            );
            if round % 10 == 0 && journal == "wal" {
                sql::run(&writer, "PRAGMA wal_checkpoint(PASSIVE)");
            }
            assert_eq!(
                sql::number(&reader, "SELECT v FROM t WHERE typeof(v)='integer'"),
                round,
                "{journal} {page_size}"
            );
        }
        sql::check_integrity(&reader);
    });
}

#[test]
fn a_transaction_over_attached_databases_is_whole() {
    matrix(|cluster, journal, page_size| {
        let paths =
            ["x", "y"].map(|part| cluster.primary.path(&format!("{part}-{}", name(journal, page_size))));
        for path in &paths {
            sql::run(&sql::create(path, journal, page_size), "CREATE TABLE t(v)");
        }
        let both = sql::open(&paths[0]);
        both.execute("ATTACH ?1 AS other", [paths[1].to_str().unwrap()]).unwrap();
        for schema in ["main", "other"] {
            let sql = format!("PRAGMA {schema}.journal_mode={journal}");
            assert_eq!(sql::text(&both, &sql), journal);
        }
        sql::run(&both, "BEGIN; INSERT INTO main.t VALUES(1); INSERT INTO other.t VALUES(1); COMMIT");
        sql::run(&both, "BEGIN; INSERT INTO main.t VALUES(2); INSERT INTO other.t VALUES(2); ROLLBACK");
        drop(both);
        for path in &paths {
            let connection = sql::open(path);
            assert_eq!(sql::number(&connection, "SELECT sum(v) FROM t"), 1, "{}", path.display());
            sql::check_integrity(&connection);
        }
        let left_over: Vec<_> = std::fs::read_dir(cluster.primary.mount())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("-mj"))
            .collect();
        assert!(left_over.is_empty(), "super-journals stay behind: {left_over:?}");
    });
}

#[test]
fn a_large_transaction_is_written_whole() {
    for options in [Options::replicas(0), Options::replicas(0).without_passthrough()] {
        let Some(cluster) = Cluster::start(&options) else { return };
        for journal in ["wal", "delete"] {
            let db = format!("large-{journal}.db");
            let connection = sql::create(&cluster.primary.path(&db), journal, 4096);
            sql::run(&connection, "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)");
            // 40 MiB: far over what rides inline in a log entry.
            sql::run(
                &connection,
                "INSERT INTO t(v) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x<4096)
                 SELECT zeroblob(10240) FROM n",
            );
            sql::run(&connection, "UPDATE t SET v = randomblob(10240) WHERE id % 8 = 0");
            assert_eq!(sql::number(&connection, "SELECT sum(length(v)) FROM t"), 4096 * 10240);
            sql::check_integrity(&connection);
            sql::run(&connection, "DROP TABLE t; VACUUM");
            drop(connection);
            assert_export_is_the_mount(&cluster, &db);
        }
    }
}
