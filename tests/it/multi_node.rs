//! A primary and its replicas: what is written on one is read on the others.

use std::fs;
use std::time::{Duration, Instant};

use rusqlite::ErrorCode;

use crate::harness::sql::{self, JOURNAL_MODES, PAGE_SIZES};
use crate::harness::{App, Cluster, Node, Options, Settings, eventually, needs_skein, wait};

fn clusters(replicas: usize) -> impl Iterator<Item = Cluster> {
    let options = [Options::replicas(replicas), Options::replicas(replicas).without_passthrough()];
    options.into_iter().filter_map(|options| Cluster::start(&options))
}

/// Waits until a query on a node's mount gives `expected`; the database may not be there yet.
fn shows(node: &Node, db: &str, query: &str, expected: i64) {
    let mut last = None;
    let found = crate::harness::within(crate::harness::PATIENCE, || {
        if !node.path(db).exists() {
            return None;
        }
        let got = sql::try_open(&node.path(db))
            .and_then(|connection| connection.query_row(query, [], |row| row.get::<_, i64>(0)));
        last = Some(got);
        matches!(last, Some(Ok(number)) if number == expected).then_some(())
    });
    assert!(found.is_some(), "{} of {db} on {}: {last:?}, expected {expected}", query, node.settings.name);
}

#[test]
fn a_replica_sees_rows_live_in_every_mode_and_page_size() {
    for cluster in clusters(1) {
        let replica = &cluster.replicas[0];
        for journal in JOURNAL_MODES {
            for page_size in PAGE_SIZES {
                let db = format!("{journal}-{page_size}.db");
                let writer = sql::create(&cluster.primary.path(&db), journal, page_size);
                sql::run(
                    &writer,
                    "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB); INSERT INTO t(v) VALUES('first')",
                );
                shows(replica, &db, "SELECT count(*) FROM t", 1);
                // From here on one connection of the replica stays open, and must see each change.
                let reader = sql::open(&replica.path(&db));
                for round in 1..=10 {
                    sql::run(
                        &writer,
                        "INSERT INTO t(v) VALUES(randomblob(2000)); UPDATE t SET v='x' WHERE id % 4 = 1",
                    );
                    eventually("the open connection sees the row", || {
                        (sql::number(&reader, "SELECT count(*) FROM t") == 1 + round).then_some(())
                    });
                }
                sql::run(&writer, "DELETE FROM t WHERE id > 3; VACUUM");
                eventually("the open connection sees the deletion", || {
                    (sql::number(&reader, "SELECT count(*) FROM t") == 3).then_some(())
                });
                sql::check_integrity(&reader);
                drop((reader, writer));
                let bytes = cluster.same_bytes(&db);
                assert_eq!(bytes.len() % page_size as usize, 0);
            }
        }
    }
}

#[test]
fn a_replica_refuses_writes_as_a_read_only_database() {
    if !needs_skein() {
        return;
    }
    for cluster in clusters(1) {
        for journal in JOURNAL_MODES {
            let db = format!("{journal}.db");
            let writer = sql::create(&cluster.primary.path(&db), journal, 4096);
            sql::run(&writer, "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
            let replica = &cluster.replicas[0];
            shows(replica, &db, "SELECT count(*) FROM t", 1);
            let connection = sql::open(&replica.path(&db));
            let start = Instant::now();
            let refused = connection.execute_batch("INSERT INTO t VALUES(2)").unwrap_err();
            assert_eq!(refused.sqlite_error_code(), Some(ErrorCode::ReadOnly), "{journal}: {refused}");
            assert!(start.elapsed() < Duration::from_secs(5), "the refusal waited for the busy timeout");
            assert!(fs::remove_file(replica.path(&db)).is_err(), "a replica dropped a database");
            assert!(fs::rename(replica.path(&db), replica.path("other.db")).is_err());
            assert!(
                sql::try_open(&replica.path("new.db"))
                    .and_then(|new| new.execute_batch("CREATE TABLE t(v)"))
                    .is_err()
            );
            // The refused writer stands in nobody's way.
            sql::run(&writer, "INSERT INTO t VALUES(3)");
            shows(replica, &db, "SELECT count(*) FROM t", 2);
            assert!(replica.path(".primary").exists(), "a replica has no .primary");
        }
    }
}

#[test]
fn a_late_replica_catches_up_while_the_primary_is_being_written() {
    for mut cluster in clusters(1) {
        for journal in ["wal", "delete"] {
            let path = cluster.primary.path(&format!("{journal}.db"));
            let mut app = App::transfer(&path, &["--journal", journal, "--note", "400", "--seconds", "4"]);
            assert!(app.wait_for("commit", 30, Duration::from_secs(20)), "{:?}", app.end());
            let late = cluster.add_replica().path(&format!("{journal}.db"));
            let mut watcher = App::transfer(&late, &["--watch", "--seconds", "60"]);
            assert!(watcher.wait_for("seen", 1, Duration::from_secs(20)), "{:?}", watcher.end());
            let (status, said, errors) = app.end();
            assert!(status.success(), "{errors}");
            let last = format!("seen {}", said.iter().filter(|line| line.starts_with("commit")).count());
            assert!(
                watcher.wait_for(&last, 1, Duration::from_secs(20)),
                "{last}: {:?}",
                watcher.lines().last()
            );
            let said = watcher.kill9();
            assert!(!said.iter().any(|line| line.starts_with("broken")), "{said:?}");
            cluster.same_bytes(&format!("{journal}.db"));
        }
        assert_eq!(cluster.replicas.len(), 3);
    }
}

#[test]
fn a_reader_held_open_on_a_replica_holds_up_nobody() {
    for cluster in clusters(2) {
        let path = cluster.primary.path("app.db");
        let writer = sql::create(&path, "wal", 4096);
        sql::run(&writer, "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
        for replica in &cluster.replicas {
            shows(replica, "app.db", "SELECT count(*) FROM t", 1);
        }
        let held = sql::open(&cluster.replicas[0].path("app.db"));
        sql::run(&held, "BEGIN");
        assert_eq!(sql::number(&held, "SELECT count(*) FROM t"), 1);
        for _ in 0..200 {
            sql::run(&writer, "INSERT INTO t VALUES(randomblob(5000))");
        }
        sql::run(&writer, "PRAGMA wal_checkpoint(PASSIVE)");
        for replica in &cluster.replicas {
            shows(replica, "app.db", "SELECT count(*) FROM t", 201);
        }
        assert_eq!(sql::number(&held, "SELECT count(*) FROM t"), 1, "the held reader's snapshot moved");
        sql::run(&held, "COMMIT");
        assert_eq!(sql::number(&held, "SELECT count(*) FROM t"), 201);
        drop((held, writer));
        cluster.same_bytes("app.db");
    }
}

#[test]
fn a_replica_serves_while_the_primary_is_away_and_resumes_by_itself() {
    for mut cluster in clusters(1) {
        for journal in ["wal", "truncate"] {
            let db = format!("{journal}.db");
            let writer = sql::create(&cluster.primary.path(&db), journal, 4096);
            sql::run(&writer, "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
            shows(&cluster.replicas[0], &db, "SELECT count(*) FROM t", 1);
            let reader = sql::open(&cluster.replicas[0].path(&db));
            drop(writer);
            for round in 2..5 {
                cluster.primary.kill9();
                assert_eq!(sql::number(&reader, "SELECT count(*) FROM t"), round - 1);
                cluster.primary.must_start();
                let writer = sql::open(&cluster.primary.path(&db));
                sql::run(&writer, &format!("INSERT INTO t VALUES({round})"));
                drop(writer);
                eventually("the replica resumes", || {
                    (sql::number(&reader, "SELECT count(*) FROM t") == round).then_some(())
                });
            }
            sql::check_integrity(&reader);
            drop(reader);
            cluster.same_bytes(&db);
        }
    }
}

#[test]
fn a_restarted_replica_goes_on_where_it_was() {
    for mut cluster in clusters(1) {
        for journal in JOURNAL_MODES {
            let db = format!("{journal}.db");
            let writer = sql::create(&cluster.primary.path(&db), journal, 4096);
            sql::run(&writer, "CREATE TABLE t(v)");
            for round in 1..=6 {
                sql::run(&writer, "INSERT INTO t VALUES(randomblob(9000))");
                let replica = &mut cluster.replicas[0];
                shows(replica, &db, "SELECT count(*) FROM t", round);
                if round % 2 == 0 {
                    replica.kill9()
                } else {
                    replica.terminate().map_or((), drop)
                }
                sql::run(&writer, "UPDATE t SET v = randomblob(9000) WHERE rowid = 1");
                replica.must_start();
            }
            drop(writer);
            cluster.same_bytes(&db);
        }
    }
}

#[test]
fn drop_rename_import_and_subdirectories_travel() {
    for cluster in clusters(1) {
        let replica = &cluster.replicas[0];
        let make = |db: &str, rows: i64| {
            let writer = sql::create(&cluster.primary.path(db), "wal", 4096);
            let rows = format!(
                "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x<{rows}) SELECT x FROM n"
            );
            sql::run(&writer, &format!("CREATE TABLE t(v); INSERT INTO t {rows}"));
        };
        make("a.db", 3);
        make("b.db", 5);
        fs::create_dir_all(cluster.primary.path("deep/down")).unwrap();
        make("deep/down/c.db", 7);
        shows(replica, "a.db", "SELECT count(*) FROM t", 3);
        shows(replica, "deep/down/c.db", "SELECT count(*) FROM t", 7);
        fs::remove_file(cluster.primary.path("a.db")).unwrap();
        eventually("the drop travels", || (!replica.path("a.db").exists()).then_some(()));
        fs::rename(cluster.primary.path("b.db"), cluster.primary.path("a.db")).unwrap();
        shows(replica, "a.db", "SELECT count(*) FROM t", 5);
        eventually("the old name is gone", || (!replica.path("b.db").exists()).then_some(()));
        make("b.db", 2);
        shows(replica, "b.db", "SELECT count(*) FROM t", 2);
        cluster.same_bytes("a.db");
        cluster.same_bytes("deep/down/c.db");
    }
}

#[test]
fn an_import_replaces_a_database_that_is_open_everywhere() {
    if !needs_skein() {
        return;
    }
    for cluster in clusters(1) {
        let file = cluster.dir().join("import.db");
        let outside = sql::create(&file, "wal", 4096);
        sql::run(&outside, "CREATE TABLE t(v); INSERT INTO t VALUES(1),(2),(3),(4)");
        drop(outside);
        let writer = sql::create(&cluster.primary.path("app.db"), "wal", 4096);
        sql::run(&writer, "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
        shows(&cluster.replicas[0], "app.db", "SELECT count(*) FROM t", 1);
        let reader = sql::open(&cluster.replicas[0].path("app.db"));
        drop(writer);
        cluster.primary.must_client(&["db", "import", file.to_str().unwrap(), "app.db"]);
        shows(&cluster.primary, "app.db", "SELECT count(*) FROM t", 4);
        eventually("the open reader sees the import", || {
            (sql::number(&reader, "SELECT count(*) FROM t") == 4).then_some(())
        });
        drop(reader);
        cluster.same_bytes("app.db");
    }
}

#[test]
fn wait_returns_when_a_replica_has_the_transaction_and_not_before() {
    if !needs_skein() {
        return;
    }
    for cluster in clusters(1) {
        let replica = &cluster.replicas[0];
        let writer = sql::create(&cluster.primary.path("app.db"), "delete", 4096);
        sql::run(&writer, "CREATE TABLE t(v)");
        for round in 1..=50 {
            sql::run(&writer, "INSERT INTO t VALUES(1)");
            let (txid, _) = cluster.primary.pos("app.db").unwrap();
            wait(replica, "app.db", &txid, Duration::from_secs(20)).unwrap();
            let reader = sql::open(&replica.path("app.db"));
            assert_eq!(sql::number(&reader, "SELECT count(*) FROM t"), round, "read your writes");
        }
        let (txid, _) = cluster.primary.pos("app.db").unwrap();
        replica.must_client(&["wait", "app.db", "--pos", &txid, "--timeout", "20s"]);
        let start = Instant::now();
        assert!(wait(replica, "app.db", "00000000000fffff", Duration::from_millis(300)).is_err());
        assert!(start.elapsed() >= Duration::from_millis(250), "gave up too early");
        assert!(
            !replica
                .client(&["wait", "app.db", "--pos", "00000000000fffff", "--timeout", "1s"])
                .status
                .success()
        );
    }
}

#[test]
fn status_and_database_commands_agree_on_all_nodes() {
    if !needs_skein() {
        return;
    }
    let Some(cluster) = Cluster::primary_and_replicas(1) else { return };
    let writer = sql::create(&cluster.primary.path("app.db"), "delete", 4096);
    sql::run(&writer, "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
    cluster.converge("app.db");
    for node in [&cluster.primary, &cluster.replicas[0]] {
        let status = node.status().unwrap();
        assert_eq!(status["node"], node.settings.name.as_str());
        assert_eq!(status["role"], node.settings.role);
        assert_eq!(status["primary"]["name"], "n1");
        // The header does not tell which of the rollback modes.
        assert_eq!(status["databases"][0]["mode"], "rollback");
        assert_eq!(status["databases"][0]["size_bytes"], 8192);
        let printed: serde_json::Value =
            serde_json::from_str(&node.must_client(&["status", "--json"])).unwrap();
        assert_eq!(printed["databases"][0]["checksum"], status["databases"][0]["checksum"]);
        assert!(node.must_client(&["status"]).contains("app.db"));
        assert!(node.must_client(&["db", "list"]).contains("app.db"));
        let file = cluster.dir().join(format!("{}.export", node.settings.name));
        node.must_client(&["db", "export", "app.db", file.to_str().unwrap()]);
        assert_eq!(fs::read(&file).unwrap(), node.export("app.db").unwrap());
        eventually("every node's version, uptime and free disk are told", || {
            let status = node.status().ok()?;
            let told = |member: &serde_json::Value| {
                member["version"] == status["version"]
                    && member["uptime_s"].is_u64()
                    && member["disk_free_bytes"].as_u64().is_some_and(|bytes| bytes > 0)
                    && member["passthrough"].is_boolean()
            };
            let members = status["members"].as_array()?;
            (members.len() == 2 && members.iter().all(told)).then_some(())
        });
        let listed = node.must_client(&["members", "list"]);
        assert!(listed.contains("DISK FREE") && !listed.contains("unknown"), "{listed}");
        for path in ["/livez", "/readyz", "/metrics"] {
            assert_eq!(
                crate::harness::http::request(node.http, "GET", path, &[]).unwrap().status,
                200,
                "{path}"
            );
        }
    }
    drop(writer);
    cluster.primary.must_client(&["db", "drop", "app.db"]);
    eventually("the drop travels", || cluster.replicas[0].pos("app.db").is_none().then_some(()));
}

#[test]
fn a_supervised_command_gets_signals_and_decides_the_exit_code() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let words = |command: &[&str]| command.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut settings = Settings::primary("n1");
    settings.extra = words(&["--", "sh", "-c", "test -d \"$0\" && exit 7", dir.path().to_str().unwrap()]);
    let mut node = Node::new(dir.path(), settings);
    node.must_start();
    let status = node.wait_for_end(crate::harness::PATIENCE).expect("ends with its command");
    assert_eq!(status.code(), Some(7));
    let marker = dir.path().join("term");
    let listens = dir.path().join("listens");
    let script = format!(
        "trap 'touch {}; exit 0' TERM; touch {}; while :; do sleep 0.1; done",
        marker.display(),
        listens.display()
    );
    node.settings.extra = words(&["--", "sh", "-c", &script]);
    node.must_start();
    eventually("the command has set its trap", || listens.exists().then_some(()));
    node.terminate();
    assert!(marker.exists(), "SIGTERM was not forwarded");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(node.mount().to_str().unwrap()), "the mount stays behind");
}
