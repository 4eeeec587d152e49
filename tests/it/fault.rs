//! What a killed process leaves behind, and how a node starts over it.

use std::time::Duration;

use crate::harness::sql;
use crate::harness::{App, Cluster, NO_OTHER_GUARD, Node, Options, Settings, eventually, needs_skein};

fn clusters(replicas: usize) -> impl Iterator<Item = Cluster> {
    let options = [Options::replicas(replicas), Options::replicas(replicas).without_passthrough()];
    options.into_iter().filter_map(|options| Cluster::start(&options))
}

#[test]
fn what_is_written_while_nothing_is_mounted_is_kept_aside_and_the_node_starts() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(dir.path(), Settings::primary("n1"));
    node.must_start();
    let path = node.path("app.db");
    sql::run(&sql::create(&path, "wal", 4096), "CREATE TABLE t(v); INSERT INTO t VALUES('of the node')");
    assert!(node.terminate().unwrap().success());
    // An application that goes on: it opens by the same path, and finds an empty directory.
    let stray = sql::create(&path, "wal", 4096);
    sql::run(&stray, "CREATE TABLE t(v); INSERT INTO t VALUES('stray')");
    node.must_start();
    assert_eq!(sql::text(&sql::open(&path), "SELECT group_concat(v) FROM t"), "of the node");
    let log = node.log();
    let told = log.lines().find(|line| line.contains("nothing was mounted")).expect("it is told");
    assert!(told.contains(&format!("files=3 moved_to={}.stray/", node.mount().display())), "{told}");
    assert!(told.contains(&std::process::id().to_string()), "who has it open: {told}");
    drop(stray);
    let kept = std::fs::read_dir(node.mount().with_extension("stray")).unwrap().next().unwrap().unwrap();
    assert_eq!(sql::text(&sql::open(&kept.path().join("app.db")), "SELECT v FROM t"), "stray");
    // A directory that was never this node's is not touched.
    let mut other = Node::new(dir.path(), Settings::primary("n2"));
    std::fs::create_dir_all(other.mount()).unwrap();
    std::fs::write(other.mount().join("notes.txt"), "mine").unwrap();
    let said = other.start().unwrap_err();
    assert!(said.contains("notes.txt"), "{said}");
    assert!(other.mount().join("notes.txt").exists());
}

#[test]
fn a_supervised_application_dies_with_its_node() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::primary("n1");
    let pid_file = dir.path().join("pid");
    let script = format!("echo $$ > {}.new; mv {0}.new {0}; exec sleep 300", pid_file.display());
    settings.extra = ["--", "sh", "-c", &script].map(ToOwned::to_owned).into();
    let mut node = Node::new(dir.path(), settings);
    node.must_start();
    let pid = eventually("the command runs", || std::fs::read_to_string(&pid_file).ok());
    node.kill9();
    eventually("the command is dead", || {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        state.map_or(true, |stat| stat.contains(") Z ")).then_some(())
    });
}

#[test]
fn a_node_killed_in_the_middle_of_a_request_to_itself_ends_and_starts_again() {
    if !needs_skein() {
        return;
    }
    let Some(mut cluster) = Cluster::start(&Options::replicas(1)) else { return };
    let path = cluster.primary.path("app.db");
    assert!(App::transfer(&path, &["--journal", "delete", "--count", "3"]).end().0.success());
    cluster.converge("app.db");
    let replica = &mut cluster.replicas[0];
    replica.terminate();
    replica.settings.env = vec![("SKEIN_FAULT".into(), "mount_own_write:1:kill".into())];
    replica.must_start();
    let shown = replica.path("app.db");
    let reader = sql::open(&shown);
    assert_eq!(sql::number(&reader, "SELECT count(*) FROM ledger"), 3);
    assert!(App::transfer(&path, &["--id", "b", "--journal", "delete", "--count", "1"]).end().0.success());
    let replica = &mut cluster.replicas[0];
    assert!(replica.wait_for_end(Duration::from_secs(10)).is_some(), "the killed node does not end");
    drop(reader);
    replica.settings.env.clear();
    replica.must_start();
    cluster.converge("app.db");
    sql::check_integrity(&sql::open(&shown));
}

#[test]
fn nobody_reads_what_a_transaction_wrote_whose_daemon_died_or_ended() {
    if !needs_skein() {
        return;
    }
    for ends_in_order in [false, true] {
        let Some(mut cluster) = Cluster::start(&Options::replicas(0)) else { return };
        let path = cluster.primary.path("app.db");
        let writer = sql::create(&path, "delete", 4096);
        sql::run(&writer, "CREATE TABLE t(v, fill); CREATE INDEX i ON t(v)");
        sql::run(
            &writer,
            "INSERT INTO t WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x<400) SELECT 1, zeroblob(500) FROM n",
        );
        let reader = sql::open(&path);
        // It asks the kernel for its pages, not itself.
        sql::run(&reader, "PRAGMA cache_size=1");
        assert_eq!(sql::number(&reader, "SELECT sum(v) FROM t"), 400);
        // More than the page cache of SQLite takes, so it is in the file before the commit.
        sql::run(&writer, "PRAGMA cache_size=2; PRAGMA cache_spill=ON; BEGIN IMMEDIATE; UPDATE t SET v = 2");
        reader.busy_timeout(Duration::ZERO).unwrap();
        assert!(reader.query_row("SELECT 1 FROM t", [], |_| Ok(())).is_err(), "nothing was spilled");
        match ends_in_order {
            true => drop(cluster.primary.terminate()),
            false => cluster.primary.kill9(),
        }
        assert!(writer.execute_batch("COMMIT").is_err());
        // Where the writer's connection still holds its locks, readers are kept out by them.
        let _closed = writer.close();
        let sum = reader.query_row("SELECT sum(v) FROM t", [], |row| row.get::<_, i64>(0));
        assert!(!sum.as_ref().is_ok_and(|sum| *sum != 400), "a transaction that failed is read: {sum:?}");
        drop(reader);
        cluster.primary.must_start();
        let again = sql::open(&path);
        assert_eq!(sql::number(&again, "SELECT sum(v) FROM t"), 400);
        sql::check_integrity(&again);
    }
}

#[test]
fn what_was_written_over_a_committed_transaction_on_a_dead_mount_is_kept_aside() {
    if !needs_skein() {
        return;
    }
    let Some(mut cluster) = Cluster::start(&Options::replicas(1)) else { return };
    if !cluster.primary.passthrough() {
        return crate::harness::skip("without passthrough a dead mount takes no writes");
    }
    let path = cluster.primary.path("app.db");
    let found = sql::create(&path, "wal", 1024);
    sql::run(&found, "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE INDEX i ON t(v)");
    drop(found);
    cluster.primary.terminate();
    // It dies when the transaction is in the log, before its writer hears of it.
    let faults = format!("pages_pending:3:kill,{NO_OTHER_GUARD}");
    cluster.primary.settings.env = vec![("SKEIN_FAULT".into(), faults)];
    cluster.primary.must_start();
    // Nobody fences the writer: the daemon and the process that watches over it die together.
    cluster.primary.kill_guard();
    let writer = sql::open(&path);
    sql::run(&writer, "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0");
    let insert = |rows: u32| {
        format!(
            "INSERT INTO t(v) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x<{rows}) SELECT hex(randomblob(40)) FROM n"
        )
    };
    let mut committed = 0;
    while sql::rows(&writer, &insert(3)).is_ok() {
        committed += 3;
        assert!(committed < 100, "the node does not die");
    }
    // Its connection goes on over the frames of the transaction that failed, and further.
    sql::run(&writer, "PRAGMA synchronous=NORMAL");
    for _ in 0..5 {
        sql::run(&writer, &insert(20));
    }
    cluster.primary.kill9();
    drop(writer);
    cluster.primary.settings.env.clear();
    cluster.primary.must_start();
    let again = sql::open(&path);
    sql::check_integrity(&again);
    let kept = sql::number(&again, "SELECT count(*) FROM t");
    assert!(kept == committed || kept == committed + 3, "{kept} rows, {committed} acknowledged");
    drop(again);
    cluster.same_bytes("app.db");
    let discarded = std::fs::read_dir(cluster.primary.data().join("discarded")).map_or(0, Iterator::count);
    assert_eq!(discarded, usize::from(kept > committed), "what lost against the log is kept");
}

#[test]
fn a_node_that_ends_while_a_database_is_open_keeps_what_is_only_in_its_log() {
    for mut cluster in clusters(1) {
        let path = cluster.primary.path("app.db");
        let writer = sql::create(&path, "wal", 4096);
        sql::run(&writer, "PRAGMA synchronous=FULL; CREATE TABLE t(v); INSERT INTO t VALUES(0)");
        // A reader of an old state: nothing after it can be moved into the database file.
        let reader = sql::open(&path);
        sql::run(&reader, "BEGIN");
        assert_eq!(sql::number(&reader, "SELECT count(*) FROM t"), 1);
        for number in 1..=20 {
            sql::run(&writer, &format!("INSERT INTO t VALUES({number})"));
        }
        cluster.primary.terminate();
        drop((reader, writer));
        cluster.primary.must_start();
        let again = sql::open(&path);
        sql::check_integrity(&again);
        assert_eq!(sql::number(&again, "SELECT count(*) FROM t"), 21);
        drop(again);
        cluster.same_bytes("app.db");
        assert!(!cluster.primary.log().contains("not what was written"), "{}", cluster.primary.log());
    }
}

#[test]
fn a_hot_journal_of_a_dead_application_is_rolled_back() {
    for mut cluster in clusters(1) {
        for journal in ["delete", "truncate", "persist"] {
            let db = format!("{journal}.db");
            let path = cluster.primary.path(&db);
            // Large notes and a small cache: pages are in the file before the commit.
            let arguments = ["--journal", journal, "--note", "4000", "--page-size", "512"];
            for (kill_daemon, seed) in [(false, "1"), (true, "2"), (false, "3")] {
                let mut app = App::transfer(&path, &[&arguments[..], &["--seed", seed]].concat());
                assert!(app.wait_for("commit", 9, Duration::from_secs(20)), "{:?}", app.end());
                if kill_daemon {
                    cluster.primary.kill9();
                }
                app.kill9();
                if kill_daemon {
                    cluster.primary.must_start();
                }
                let connection = sql::open(&path);
                sql::check_integrity(&connection);
                assert_eq!(sql::number(&connection, "SELECT sum(balance) FROM account"), 20_000);
            }
            cluster.same_bytes(&db);
        }
    }
}

#[test]
fn a_failing_disk_fails_the_commit_and_not_the_data() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(dir.path(), Settings::primary("n1"));
    let trace = dir.path().join("labels");
    node.settings.env = vec![("SKEIN_FAULT_TRACE".into(), trace.to_str().unwrap().into())];
    node.must_start();
    for journal in ["wal", "delete"] {
        let mut app =
            App::transfer(&node.path(&format!("{journal}.db")), &["--journal", journal, "--count", "30"]);
        assert!(app.end().0.success());
    }
    node.terminate();
    let labels = std::fs::read_to_string(&trace).unwrap();
    assert!(labels.lines().count() >= 3, "hardly any call is labelled: {labels:?}");
    for label in labels.lines() {
        node.settings.env = vec![("SKEIN_FAULT".into(), format!("{label}:4:error"))];
        if node.start().is_ok() {
            for journal in ["wal", "delete"] {
                let path = node.path(&format!("{journal}.db"));
                App::transfer(&path, &["--id", label, "--journal", journal, "--count", "15"]).end();
            }
            node.kill9();
        }
        node.settings.env.clear();
        node.must_start();
        for journal in ["wal", "delete"] {
            let connection = sql::open(&node.path(&format!("{journal}.db")));
            sql::check_integrity(&connection);
            assert_eq!(sql::number(&connection, "SELECT sum(balance) FROM account"), 20_000, "{label}");
            let sql = "SELECT count(*) FROM ledger WHERE client = 'a'";
            assert_eq!(sql::number(&connection, sql), 26, "{label}");
        }
        node.terminate();
    }
}
