//! A node that comes back while applications still have databases open through the mount of its last run.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rusqlite::Connection;

use crate::harness::{
    App, Cluster, NO_OTHER_GUARD, Node, Options, Settings, Voters, eventually, http, needs_skein, skip, sql,
};

/// The processes that the status names as holding a database.
fn holders(node: &Node, db: &str) -> Vec<u64> {
    let status = node.status().unwrap();
    let databases = status["databases"].as_array().unwrap();
    let found = databases.iter().find(|entry| entry["name"] == db).expect("the database is listed");
    found["held_by"]
        .as_array()
        .map_or(Vec::new(), |pids| pids.iter().filter_map(|pid| pid.as_u64()).collect())
}

fn wait_until_free(node: &Node, db: &str) {
    eventually("nobody holds the database", || holders(node, db).is_empty().then_some(()));
}

fn get(node: &Node, path: &str) -> String {
    http::request(node.http, "GET", path, &[]).unwrap().text()
}

/// A database with `rows` rows, open.
fn with_rows(path: &Path, journal: &str, rows: i64) -> Connection {
    let connection = sql::create(path, journal, 4096);
    sql::run(&connection, "PRAGMA busy_timeout=50; PRAGMA synchronous=FULL; CREATE TABLE t(v)");
    for number in 0..rows {
        sql::run(&connection, &format!("INSERT INTO t VALUES(printf('%04000d', {number}))"));
    }
    connection
}

/// The bytes of a database of another content.
fn other_database(rows: i64) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.db");
    drop(with_rows(&path, "wal", rows));
    std::fs::read(path).unwrap()
}

fn count(connection: &Connection) -> i64 {
    sql::number(connection, "SELECT count(*) FROM t")
}

#[test]
fn a_node_serves_what_nobody_holds_and_keeps_applications_from_what_is_held() {
    for (journal, passthrough, in_order) in
        [("wal", true, false), ("wal", true, true), ("delete", true, false), ("wal", false, false)]
    {
        let context = format!("{journal}, passthrough {passthrough}, ended in order {in_order}");
        let options = Options::replicas(1);
        let options = if passthrough { options } else { options.without_passthrough() };
        let Some(mut cluster) = Cluster::start(&options) else { return };
        let (held, free) = (cluster.primary.path("held.db"), cluster.primary.path("free.db"));
        let old = with_rows(&held, journal, 3);
        drop(with_rows(&free, journal, 3));
        cluster.converge("held.db");
        match in_order {
            true => assert!(cluster.primary.terminate().unwrap().success()),
            false => cluster.primary.kill9(),
        }
        cluster.primary.must_start();

        let own = u64::from(std::process::id());
        // A process that another test starts has for a moment what this one has.
        assert!(holders(&cluster.primary, "held.db").contains(&own), "{context}");
        assert_eq!(holders(&cluster.primary, "free.db"), [] as [u64; 0], "{context}");
        let told = get(&cluster.primary, "/readyz?verbose");
        assert!(told.contains("held: held.db: open by pid "), "{context}: {told}");
        assert!(get(&cluster.primary, "/metrics").contains("skein_databases_held 1"), "{context}");
        assert!(sql::try_open(&held).is_err(), "{context}: it can be opened beside who holds it");
        assert!(std::fs::remove_file(&held).is_err() && held.exists(), "{context}");
        sql::run(&sql::open(&free), "INSERT INTO t VALUES('new')");

        // Who holds it sees what was there, or an error, and can write nothing that would count.
        assert!(
            sql::rows(&old, "INSERT INTO t VALUES('lost')").is_err(),
            "{context}: a write is acknowledged"
        );
        if passthrough && journal == "wal" {
            assert_eq!(count(&old), 3, "{context}");
        }
        let imported = other_database(7);
        let put = http::request(cluster.primary.http, "PUT", "/v1/databases/held.db", &imported).unwrap();
        assert!(put.status < 300, "{context}: {}", put.text());
        if passthrough && journal == "wal" {
            assert_eq!(count(&old), 3, "{context}: it reads what it had open");
            sql::check_integrity(&old);
        }
        let names: Vec<_> = std::fs::read_dir(cluster.primary.mount())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(!names.iter().any(|name| name == "held.db-journal"), "{context}: {names:?}");

        drop(old);
        wait_until_free(&cluster.primary, "held.db");
        let new = sql::open(&held);
        sql::check_integrity(&new);
        assert_eq!(count(&new), 7, "{context}");
        sql::run(&new, "INSERT INTO t VALUES('again')");
        drop(new);
        for db in ["held.db", "free.db"] {
            cluster.same_bytes(db);
        }
        let notes = cluster.primary.data().join("mounts");
        eventually("the note of the earlier mount is removed", || {
            (std::fs::read_dir(&notes).unwrap().count() == 1).then_some(())
        });
    }
}

#[test]
fn a_voter_that_comes_back_applies_the_log_to_a_database_that_is_held() {
    let Some(mut voters) = Voters::three() else { return };
    let primary = voters.primary();
    let writer = sql::create(&voters.nodes[primary].path("app.db"), "wal", 4096);
    sql::run(&writer, "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
    voters.same_bytes("app.db");
    let follower = voters.follower();
    let old = voters.open(follower, "app.db");
    sql::run(&old, "BEGIN");
    assert_eq!(count(&old), 1);
    voters.nodes[follower].kill9();
    for number in 2..=20 {
        sql::run(&writer, &format!("INSERT INTO t VALUES({number})"));
    }
    voters.nodes[follower].must_start();
    sql::run(&writer, "INSERT INTO t VALUES(21)");
    voters.same_bytes("app.db");
    assert!(holders(&voters.nodes[follower], "app.db").contains(&u64::from(std::process::id())));
    assert_eq!(count(&old), 1, "an open transaction reads one state");
    sql::check_integrity(&old);
    drop(old);
    wait_until_free(&voters.nodes[follower], "app.db");
    assert_eq!(count(&voters.open(follower, "app.db")), 21);
}

#[test]
fn what_an_application_commits_until_it_is_fenced_is_kept_while_it_goes_on() {
    let Some(mut cluster) = Cluster::start(&Options::replicas(1)) else { return };
    if !cluster.primary.passthrough() {
        return skip("without passthrough a dead mount takes no writes");
    }
    let path = cluster.primary.path("app.db");
    let old = with_rows(&path, "wal", 0);
    sql::run(&old, "PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=7");
    let (committed, commits) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || {
        while sql::rows(&old, "INSERT INTO t VALUES(zeroblob(3000))").is_ok() {
            committed.send(()).unwrap();
        }
        old
    });
    let mut acknowledged = 0;
    while acknowledged < 50 {
        commits.recv().unwrap();
        acknowledged += 1;
    }
    // Only their checkpoints ask the daemon: they go on until the fence is up.
    cluster.primary.kill9();
    let old = writer.join().unwrap();
    acknowledged += commits.iter().count();
    cluster.primary.must_start();
    assert!(!holders(&cluster.primary, "app.db").is_empty());
    assert!(sql::rows(&old, "INSERT INTO t VALUES('lost')").is_err());
    assert_eq!(count(&old), i64::try_from(acknowledged).unwrap());
    drop(old);
    wait_until_free(&cluster.primary, "app.db");
    let new = sql::open(&path);
    sql::check_integrity(&new);
    assert_eq!(count(&new), i64::try_from(acknowledged).unwrap());
    drop(new);
    cluster.same_bytes("app.db");
}

#[test]
fn databases_held_through_several_earlier_mounts_are_all_kept_out() {
    let Some(mut cluster) = Cluster::start(&Options::replicas(0)) else { return };
    let mut old = Vec::new();
    for db in ["first.db", "second.db"] {
        old.push(with_rows(&cluster.primary.path(db), "wal", 2));
        cluster.primary.kill9();
        cluster.primary.must_start();
    }
    for db in ["first.db", "second.db"] {
        assert!(!holders(&cluster.primary, db).is_empty(), "{db}");
        assert!(sql::try_open(&cluster.primary.path(db)).is_err(), "{db}");
    }
    for db in ["first.db", "second.db"] {
        drop(old.remove(0));
        wait_until_free(&cluster.primary, db);
        assert_eq!(count(&sql::open(&cluster.primary.path(db))), 2);
    }
}

#[test]
fn a_start_that_is_told_to_ends_the_applications_of_the_last_run() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(dir.path(), Settings::primary("n1"));
    node.must_start();
    let path = node.path("app.db");
    drop(with_rows(&path, "wal", 2));
    let script = "exec 3<\"$0\"; echo open; exec sleep 300";
    let mut holder = App::spawn(Command::new("sh").args(["-c", script, path.to_str().unwrap()]));
    assert!(holder.wait_for("open", 1, Duration::from_secs(10)));
    node.kill9();
    node.settings.extra = vec!["--stale-mount".into(), "kill".into()];
    node.must_start();
    assert!(holder.has_ended());
    assert_eq!(holders(&node, "app.db"), [] as [u64; 0]);
    assert_eq!(count(&sql::open(&path)), 2);
}

#[test]
fn a_process_that_watches_over_the_mount_and_ends_is_followed_by_another_that_fences() {
    for journal in ["wal", "delete"] {
        let Some(mut cluster) = Cluster::start(&Options::replicas(1)) else { return };
        let path = cluster.primary.path("app.db");
        let old = with_rows(&path, journal, 2);
        for _ in 0..2 {
            let killed = cluster.primary.kill_guard();
            eventually("another one watches", || cluster.primary.guard_pid().filter(|pid| *pid != killed));
        }
        // This one is opened while the new one is there.
        let second = with_rows(&cluster.primary.path("second.db"), journal, 1);
        cluster.primary.kill9();
        assert!(old.execute("INSERT INTO t VALUES('lost')", []).is_err(), "{journal}: it is fenced");
        assert!(second.execute("INSERT INTO t VALUES('lost')", []).is_err(), "{journal}: it is fenced");
        cluster.primary.must_start();
        drop((old, second));
        assert_eq!(eventually("it is served", || Some(count(&sql::try_open(&path).ok()?))), 2);
        cluster.converge("app.db");
        cluster.same_bytes("app.db");
        assert!(cluster.primary.terminate().unwrap().success(), "{journal}");
    }
}

#[test]
fn a_node_does_not_come_back_beside_applications_that_nobody_fences() {
    let Some(mut cluster) = Cluster::start(&Options::replicas(0)) else { return };
    if !cluster.primary.passthrough() {
        return skip("without passthrough a dead mount takes no writes");
    }
    let path = cluster.primary.path("app.db");
    cluster.primary.terminate();
    cluster.primary.settings.env.push(("SKEIN_FAULT".into(), NO_OTHER_GUARD.into()));
    cluster.primary.must_start();
    let old = with_rows(&path, "wal", 2);
    cluster.primary.kill_guard();
    cluster.primary.kill9();
    let refusal = cluster.primary.start().unwrap_err();
    let own = std::process::id();
    assert!(refusal.contains(&own.to_string()) && refusal.contains("did not survive it"), "{refusal}");
    drop(old);
    cluster.primary.must_start();
    assert_eq!(count(&sql::open(&path)), 2);
}
