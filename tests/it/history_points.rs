//! Points in time: what a database was, and going back to it.

use rusqlite::Connection;
use serde_json::Value;

use crate::harness::{Cluster, Node, PATIENCE, Settings, eventually, http, needs_skein, sql, wait};

/// `GET /v1/databases/{db}/history`.
fn history(node: &Node, db: &str) -> Result<Value, String> {
    http::get_json(node.http, &format!("/v1/databases/{}/history?limit=10000", http::encode(db)))
}

/// The newest transaction of a database, when a quorum has it.
fn newest(node: &Node, db: &str) -> String {
    eventually("what was committed is in the log", || {
        node.client(&["wait", db]).status.success().then_some(())
    });
    node.pos(db).expect("the database is there").0
}

/// What `skein db export --at` writes, or its error.
fn export_at(node: &Node, db: &str, at: &str) -> Result<Vec<u8>, String> {
    let done = node.client(&["db", "export", db, "-", "--at", at]);
    match done.status.success() {
        true => Ok(done.stdout),
        false => Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
    }
}

fn refused(node: &Node, args: &[&str]) -> String {
    let done = node.client(args);
    assert!(!done.status.success(), "{args:?}");
    String::from_utf8_lossy(&done.stderr).trim().to_owned()
}

/// Grows, changes in places, shrinks and grows again; the transaction after each step, and the bytes then.
fn lived_through(node: &Node, db: &str, connection: &Connection) -> Vec<(String, Vec<u8>)> {
    let steps = [
        "CREATE TABLE t(n INTEGER PRIMARY KEY, v)",
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 60)
         INSERT INTO t SELECT n, randomblob(3000) FROM c",
        "UPDATE t SET v = randomblob(2000) WHERE n % 7 = 0",
        "DELETE FROM t WHERE n > 10",
        "VACUUM",
        "CREATE TABLE u(v)",
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 30)
         INSERT INTO u SELECT zeroblob(5000) FROM c",
        "DROP TABLE t",
    ];
    let mut points = Vec::new();
    for step in steps {
        sql::run(connection, step);
        let txid = newest(node, db);
        points.push((txid, node.export(db).unwrap()));
    }
    points
}

fn assert_points(node: &Node, db: &str, points: &[(String, Vec<u8>)]) {
    for (txid, bytes) in points {
        let found = export_at(node, db, txid);
        assert!(found.as_ref() == Ok(bytes), "{db} at {txid}: {:?}", found.err());
    }
}

#[test]
fn every_transaction_is_read_again_byte_for_byte_on_every_node_and_after_every_end() {
    if !needs_skein() {
        return;
    }
    let Some(mut cluster) = Cluster::primary_and_replicas(1) else { return };
    let mut all = Vec::new();
    for (db, journal, page_size) in [("wal.db", "wal", 4096), ("dir/delete.db", "delete", 1024)] {
        let primary = &cluster.primary;
        std::fs::create_dir_all(primary.path(db).parent().unwrap()).unwrap();
        let connection = sql::create(&primary.path(db), journal, page_size);
        all.push((db, lived_through(primary, db, &connection)));
        cluster.converge(db);
    }
    for (db, points) in &all {
        assert_points(&cluster.primary, db, points);
        assert_points(&cluster.replicas[0], db, points);
        let listed = history(&cluster.primary, db).unwrap();
        let txids: Vec<&str> = listed["transactions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["txid"].as_str().unwrap())
            .collect();
        assert!(txids.is_sorted_by(|a, b| a > b), "the newest first: {txids:?}");
        assert!(points.iter().all(|(txid, _)| txids.contains(&txid.as_str())), "{txids:?}");
        assert_eq!(listed["gaps"], serde_json::json!([]));
    }
    cluster.primary.restart();
    for (db, points) in &all {
        assert_points(&cluster.primary, db, points);
    }
    cluster.primary.kill9();
    cluster.primary.must_start();
    for (db, points) in &mut all {
        assert_points(&cluster.primary, db, points);
        // The chain goes on.
        let connection = sql::open(&cluster.primary.path(db));
        sql::run(&connection, "CREATE TABLE after_the_crash(v)");
        let txid = newest(&cluster.primary, db);
        points.push((txid, cluster.primary.export(db).unwrap()));
        assert_points(&cluster.primary, db, points);
        assert_eq!(history(&cluster.primary, db).unwrap()["gaps"], serde_json::json!([]));
    }
}

/// The accident: a table is dropped, noticed later, and back without the application being stopped.
#[test]
fn a_dropped_table_comes_back_while_the_application_goes_on() {
    if !needs_skein() {
        return;
    }
    let Some(cluster) = Cluster::primary_and_replicas(1) else { return };
    let primary = &cluster.primary;
    for (db, journal) in [("wal.db", "wal"), ("delete.db", "delete")] {
        let application = sql::create(&primary.path(db), journal, 4096);
        sql::run(&application, "CREATE TABLE orders(n INTEGER PRIMARY KEY, what)");
        sql::run(&application, "CREATE TABLE log(line)");
        for n in 0..50 {
            application.execute("INSERT INTO orders VALUES(?1, randomblob(1000))", [n]).unwrap();
        }
        let before = newest(primary, db);
        let bytes = primary.export(db).unwrap();
        sql::run(&application, "DROP TABLE orders");
        sql::run(&application, "INSERT INTO log VALUES('dropped it')");
        let dropped = newest(primary, db);
        let said = primary.must_client(&["db", "rewind", db, "--to", &before, "--yes"]);
        assert!(said.contains("is as it was"), "{said}");
        // The same connection, without being opened anew.
        assert_eq!(sql::number(&application, "SELECT count(*) FROM orders"), 50, "{journal}");
        assert_eq!(sql::number(&application, "SELECT count(*) FROM log"), 0);
        application.execute("INSERT INTO orders VALUES(100, 'after it')", []).unwrap();
        sql::check_integrity(&application);
        // History goes on: what was undone can be gone to, too.
        assert!(newest(primary, db) > dropped);
        let undone = export_at(primary, db, &dropped).unwrap();
        assert_ne!(undone, bytes);
        assert_eq!(export_at(primary, db, &before).unwrap(), bytes);
        cluster.converge(db);
        let replica = sql::open(&cluster.replicas[0].path(db));
        assert_eq!(sql::number(&replica, "SELECT count(*) FROM orders"), 51);
    }
}

#[test]
fn points_are_named_by_time_as_well_and_others_are_refused_with_what_there_is() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(dir.path(), Settings::primary("n1"));
    node.must_start();
    let connection = sql::create(&node.path("app.db"), "wal", 4096);
    sql::run(&connection, "CREATE TABLE t(v)");
    let first = newest(&node, "app.db");
    let bytes = node.export("app.db").unwrap();
    // Times are in milliseconds: the next transaction shall have another one.
    let time_of = |txid: &str| {
        let listed = history(&node, "app.db").unwrap();
        let all = listed["transactions"].as_array().unwrap().clone();
        let one = all.into_iter().find(|one| one["txid"] == txid).unwrap();
        one["time"].as_str().unwrap().to_owned()
    };
    let time = time_of(&first);
    eventually("another millisecond", || {
        let now = skein::types::Timestamp::now().to_string();
        (now > time).then_some(())
    });
    sql::run(&connection, "INSERT INTO t VALUES(1)");
    let second = newest(&node, "app.db");
    assert_eq!(export_at(&node, "app.db", &time), Ok(bytes));
    assert_eq!(export_at(&node, "app.db", "0s ago"), Ok(node.export("app.db").unwrap()));
    for (at, part) in [
        ("00000000ffffffff", "goes from"),
        ("2001-01-01T00:00:00Z", "goes from"),
        ("2999-01-01T00:00:00Z", "in the future"),
        ("1h ago", "goes from"),
    ] {
        let error = export_at(&node, "app.db", at).unwrap_err();
        assert!(error.contains(part) && error.lines().count() == 1, "{at}: {error}");
    }
    for args in
        [&["db", "export", "app.db", "-", "--at", "yesterday"][..], &["db", "rewind", "app.db", "--to", "x"]]
    {
        assert!(refused(&node, args).contains("16 hex digits"), "{args:?}");
    }
    assert!(refused(&node, &["history", "none.db"]).contains("no local history of none.db"));
    // Nothing of a refused one is left.
    let error = refused(&node, &["db", "rewind", "app.db", "--to", "00000000ffffffff", "--yes"]);
    assert!(error.contains("goes from"), "{error}");
    assert_eq!(newest(&node, "app.db"), second);
    let shown = node.must_client(&["history", "app.db"]);
    assert!(shown.contains(&first) && shown.contains(&second) && shown.contains("begins with"), "{shown}");
    let differs = node.must_client(&["db", "diff", "app.db", &first, &second, "--json"]);
    let differs: Value = serde_json::from_str(&differs).unwrap();
    assert_eq!(differs["tables"], serde_json::json!(["t"]), "{differs}");
    assert!(differs["pages"].as_array().is_some_and(|pages| !pages.is_empty()), "{differs}");
    let same = node.must_client(&["db", "diff", "app.db", &first, &first]);
    assert!(same.contains(" 0 pages differ"), "{same}");
}

#[test]
fn a_dropped_database_comes_back_and_a_renamed_one_keeps_its_history() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(dir.path(), Settings::primary("n1"));
    node.must_start();
    let connection = sql::create(&node.path("a.db"), "wal", 4096);
    sql::run(&connection, "CREATE TABLE t(v); INSERT INTO t VALUES('of a')");
    let point = newest(&node, "a.db");
    let bytes = node.export("a.db").unwrap();
    drop(connection);
    node.must_client(&["db", "drop", "a.db", "--yes"]);
    assert_eq!(export_at(&node, "a.db", &point).as_ref(), Ok(&bytes));
    let error = export_at(&node, "a.db", "0s ago").unwrap_err();
    assert!(error.contains("dropped or renamed"), "{error}");
    node.must_client(&["db", "rewind", "a.db", "--to", &point, "--yes"]);
    let back = sql::open(&node.path("a.db"));
    assert_eq!(sql::text(&back, "SELECT v FROM t"), "of a");
    drop(back);
    std::fs::rename(node.path("a.db"), node.path("b.db")).unwrap();
    let renamed = sql::open(&node.path("b.db"));
    sql::run(&renamed, "INSERT INTO t VALUES('of b')");
    newest(&node, "b.db");
    assert_eq!(export_at(&node, "b.db", &point).as_ref(), Ok(&bytes));
    assert!(refused(&node, &["history", "a.db"]).contains("no local history"));
}

/// What cannot be written is a gap that is told; no commit hears of it, and the points after it are there.
#[test]
fn an_error_of_the_disk_makes_a_gap_and_no_commit_fails() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::primary("n1");
    settings.env.push(("SKEIN_FAULT".into(), "history_append:2:full".into()));
    let mut node = Node::new(dir.path(), settings);
    node.must_start();
    let connection = sql::create(&node.path("app.db"), "wal", 4096);
    sql::run(&connection, "CREATE TABLE t(v)");
    // Asking has it written.
    let first = newest(&node, "app.db");
    let bytes = node.export("app.db").unwrap();
    assert_eq!(export_at(&node, "app.db", &first).as_ref(), Ok(&bytes));
    sql::run(&connection, "INSERT INTO t VALUES(1)");
    let lost = newest(&node, "app.db");
    eventually("the gap is told", || {
        let listed = history(&node, "app.db").ok()?;
        let gap = listed["gaps"].get(0)?.clone();
        gap["why"].as_str().is_some_and(|why| why.contains("No space left")).then_some(())
    });
    // A copy of the database begins the history anew.
    let again = eventually("points after the gap", || {
        sql::run(&connection, "INSERT INTO t VALUES(2)");
        let txid = newest(&node, "app.db");
        export_at(&node, "app.db", &txid).ok().map(|bytes| (txid, bytes))
    });
    assert_eq!(again.1, node.export("app.db").unwrap());
    assert_eq!(export_at(&node, "app.db", &first).as_ref(), Ok(&bytes), "what was before it is still there");
    assert!(again.0 > lost);
    drop(connection);
    node.restart();
    assert_eq!(export_at(&node, "app.db", &first).as_ref(), Ok(&bytes));
    assert_eq!(export_at(&node, "app.db", &again.0), Ok(again.1));
    sql::check_integrity(&sql::open(&node.path("app.db")));
}

#[test]
fn a_node_that_is_to_keep_nothing_says_so() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::primary("n1");
    settings.env.push(("SKEIN_HISTORY_KEEP".into(), "0s".into()));
    let mut node = Node::new(dir.path(), settings);
    node.must_start();
    let connection = sql::create(&node.path("app.db"), "wal", 4096);
    sql::run(&connection, "CREATE TABLE t(v)");
    let txid = newest(&node, "app.db");
    wait(&node, "app.db", &txid, PATIENCE).unwrap();
    assert!(refused(&node, &["history", "app.db"]).contains("history.keep is 0s"));
    assert!(!node.data().join("history").exists());
}

/// `.history` on the mount: files that any application opens as they are.
#[test]
fn a_point_is_a_file_that_an_application_opens_and_nobody_writes() {
    if !needs_skein() {
        return;
    }
    let Some(cluster) = Cluster::primary_and_replicas(1) else { return };
    let primary = &cluster.primary;
    std::fs::create_dir(primary.path("dir")).unwrap();
    for (db, journal) in [("wal.db", "wal"), ("dir/delete.db", "delete")] {
        let connection = sql::create(&primary.path(db), journal, 4096);
        let points = lived_through(primary, db, &connection);
        cluster.converge(db);
        for node in [primary, &cluster.replicas[0]] {
            for (txid, bytes) in &points {
                let path = node.mount().join(format!(".history/{db}@{txid}"));
                let read = std::fs::read(&path).unwrap();
                assert_eq!(read.len(), bytes.len(), "{}", path.display());
                assert_eq!(read[18..20], [1, 1], "a plain open needs neither log nor shared memory");
                assert!(read[20..] == bytes[20..] && read[..18] == bytes[..18], "{}", path.display());
                // Opened as applications open what they mean to write.
                let past = Connection::open(&path).unwrap();
                sql::check_integrity(&past);
                let schema = sql::rows(&past, "SELECT name FROM sqlite_schema ORDER BY 1").unwrap();
                assert!(!schema.is_empty());
                let error = past.execute("CREATE TABLE x(v)", []).unwrap_err().to_string();
                assert!(error.contains("readonly"), "{error}");
            }
            let now = Connection::open(node.mount().join(format!(".history/{db}@0s ago"))).unwrap();
            assert_eq!(sql::number(&now, "SELECT count(*) FROM u"), 30);
            let (directory, name) = db.rsplit_once('/').unwrap_or(("", db));
            let listed: Vec<String> = std::fs::read_dir(node.mount().join(".history").join(directory))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            assert!(points.iter().all(|(txid, _)| listed.contains(&format!("{name}@{txid}"))), "{listed:?}");
        }
        // A connection that reads a point goes on reading it while the database changes and is renamed away.
        let past = Connection::open(primary.mount().join(format!(".history/{db}@{}", points[1].0))).unwrap();
        assert_eq!(sql::number(&past, "SELECT count(*) FROM t"), 60);
        sql::run(&connection, "INSERT INTO u VALUES('later')");
        assert_eq!(sql::number(&past, "SELECT sum(length(v)) FROM t"), 180_000);
    }
    let history = primary.mount().join(".history");
    assert!(history.join("dir").is_dir());
    for absent in
        ["none.db@0s ago", "wal.db@00000000ffffffff", "wal.db", "wal.db@yesterday", "wal.db@0s ago-wal"]
    {
        assert!(!history.join(absent).exists(), "{absent}");
    }
    let refused = |done: std::io::Result<()>, what: &str| {
        assert_eq!(done.unwrap_err().raw_os_error(), Some(nix::libc::EROFS), "{what}");
    };
    refused(std::fs::write(history.join("new.db"), "x"), "create");
    refused(std::fs::create_dir(history.join("d")), "mkdir");
    refused(std::fs::remove_file(history.join("wal.db@0s ago")), "unlink");
    refused(std::fs::rename(history.join("wal.db@0s ago"), primary.path("x.db")), "rename");
    let point = history.join("wal.db@0s ago");
    refused(std::fs::OpenOptions::new().write(true).open(&point).map(drop), "open for writing");
    // Copied from there it is a database again.
    std::fs::copy(&point, primary.path("copy.db")).unwrap();
    let copy = sql::open(&primary.path("copy.db"));
    assert_eq!(sql::number(&copy, "SELECT count(*) FROM u"), 31);
    let listed: Vec<_> =
        std::fs::read_dir(primary.mount()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!listed.iter().any(|name| name == ".history"), "whoever copies the mount does not copy its past");
}

/// Whoever may not read a database may not read what it was.
#[test]
fn a_point_has_the_owner_and_at_most_the_permissions_of_its_database() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(dir.path(), Settings::primary("n1"));
    node.must_start();
    let connection = sql::create(&node.path("app.db"), "wal", 4096);
    sql::run(&connection, "CREATE TABLE t(v)");
    let txid = newest(&node, "app.db");
    drop(connection);
    let point = node.mount().join(format!(".history/app.db@{txid}"));
    std::os::unix::fs::chown(node.path("app.db"), Some(12), Some(34)).unwrap();
    for (mode, shown) in [(0o640, 0o440), (0o600, 0o400), (0o666, 0o444)] {
        std::fs::set_permissions(node.path("app.db"), std::fs::Permissions::from_mode(mode)).unwrap();
        let metadata = std::fs::metadata(&point).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (12, 34, shown));
    }
    node.must_client(&["db", "drop", "app.db", "--yes"]);
    let metadata = std::fs::metadata(&point).unwrap();
    let own = nix::unistd::geteuid().as_raw();
    assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (own, 0o400), "of one that is no more");
}

#[test]
fn a_branch_is_a_database_of_its_own_on_every_node() {
    if !needs_skein() {
        return;
    }
    let Some(cluster) = Cluster::primary_and_replicas(1) else { return };
    let primary = &cluster.primary;
    let connection = sql::create(&primary.path("app.db"), "wal", 4096);
    sql::run(&connection, "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
    let early = newest(primary, "app.db");
    sql::run(&connection, "INSERT INTO t VALUES(2)");
    newest(primary, "app.db");
    // Asked of any node.
    cluster.converge("app.db");
    cluster.replicas[0].must_client(&["branch", "create", "app.db", "now.db"]);
    primary.must_client(&["branch", "create", &format!("app.db@{early}"), "early.db"]);
    let (now, then) = (sql::open(&primary.path("now.db")), sql::open(&primary.path("early.db")));
    assert_eq!(sql::number(&now, "SELECT sum(v) FROM t"), 3);
    assert_eq!(sql::number(&then, "SELECT sum(v) FROM t"), 1);
    sql::run(&then, "INSERT INTO t VALUES(100)");
    assert_eq!(sql::number(&connection, "SELECT sum(v) FROM t"), 3, "the parent stays as it is");
    newest(primary, "early.db");
    for db in ["now.db", "early.db"] {
        cluster.converge(db);
    }
    let there = sql::open(&cluster.replicas[0].path("early.db"));
    assert_eq!(sql::number(&there, "SELECT sum(v) FROM t"), 101);
    let error = refused(primary, &["branch", "create", "app.db", "now.db"]);
    assert!(error.contains("exists"), "{error}");
    let error = refused(primary, &["branch", "create", "none.db", "x.db"]);
    assert!(error.contains("none.db"), "{error}");
    let error = refused(primary, &["branch", "create", "app.db@00000000ffffffff", "x.db"]);
    assert!(error.contains("is not in it"), "{error}");
    assert!(primary.pos("x.db").is_none(), "a refused branch leaves no database");
    drop(now);
    primary.must_client(&["branch", "drop", "now.db", "--yes"]);
    assert!(primary.pos("now.db").is_none());
}
