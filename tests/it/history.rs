//! Drops, renames and readers: one order on every node, over crashes, and each database waits by itself.

use std::time::Duration;

use rusqlite::Connection;

use crate::harness::{Cluster, Node, Options, Voters, eventually, needs_skein, sql, within};

/// Databases that the tests of crashes work on at once.
const MANY: usize = 6;

/// Makes a database with one row. On a busy machine the primary may be fenced for a moment, so it is tried again.
fn make(node: &Node, db: &str, journal: &str, value: i64) {
    let path = node.path(db);
    let attempt = || -> rusqlite::Result<()> {
        let connection = sql::try_open(&path)?;
        connection.query_row(&format!("PRAGMA journal_mode={journal}"), [], |_| Ok(()))?;
        connection.execute_batch("CREATE TABLE IF NOT EXISTS t(v)")?;
        let once = "INSERT INTO t SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM t)";
        connection.execute(once, [value]).map(drop)
    };
    eventually("the database is made", || attempt().ok());
}

/// Opens a database for writing as soon as that is possible.
fn open(node: &Node, db: &str) -> Connection {
    eventually("the database can be opened", || sql::try_open(&node.path(db)).ok())
}

fn insert(connection: &Connection, value: i64) {
    connection.execute("INSERT INTO t VALUES(?1)", [value]).unwrap();
}

/// The rows of `t`, or why there are none.
fn values(connection: &Connection) -> Result<Vec<i64>, rusqlite::Error> {
    let mut statement = connection.prepare("SELECT v FROM t ORDER BY rowid")?;
    statement.query_map([], |row| row.get(0))?.collect()
}

fn shown(node: &Node, db: &str) -> Result<Vec<i64>, String> {
    let connection = sql::try_open(&node.path(db)).map_err(|error| error.to_string())?;
    values(&connection).map_err(|error| error.to_string())
}

fn eventually_shows(node: &Node, db: &str, expected: &[i64]) {
    let mut last = Ok(Vec::new());
    let found = within(crate::harness::PATIENCE, || {
        last = shown(node, db);
        (last.as_deref() == Ok(expected)).then_some(())
    });
    assert!(found.is_some(), "{db} on {}: {last:?}, not {expected:?}", node.settings.name);
}

/// The databases' files as they were durable last, so that a restart redoes what comes after.
fn wait_for_checkpoint(node: &Node, dbs: &[String]) {
    let marked = |db: &String| {
        let pages = std::fs::read(node.data().join("dbs").join(db).join("pages")).unwrap_or_default();
        pages.len() > 1024 && (pages[..8] == *b"SKEINPG1" || pages[512..520] == *b"SKEINPG1")
    };
    eventually("all databases are durable", || dbs.iter().all(marked).then_some(()));
}

fn drop_and_make_anew(voters: &mut Voters, journal: &str) {
    let first = voters.primary();
    let names: Vec<String> = (0..MANY).map(|number| format!("d{number}.db")).collect();
    let node = &voters.nodes[first];
    names.iter().for_each(|db| make(node, db, journal, 1));
    wait_for_checkpoint(node, &names);
    names.iter().for_each(|db| insert(&open(node, db), 2));
    for db in &names {
        // On a busy machine the primary may be fenced for a moment.
        eventually("it is dropped", || std::fs::remove_file(node.path(db)).is_ok().then_some(()));
        make(node, db, journal, 7);
        insert(&open(node, db), 8);
    }
    voters.nodes[first].kill9();
    voters.nodes[first].must_start();
    if voters.nodes.len() > 1 {
        let name = voters.nodes[first].settings.name.clone();
        eventually("it is primary again", || {
            let handed = voters.nodes[first].client(&["handoff", &name]).status.success();
            (handed || voters.primary() == first).then_some(())
        });
    }
    let primary = voters.primary();
    for db in &names {
        insert(&voters.open(primary, db), 9);
        voters.nodes.iter().for_each(|node| eventually_shows(node, db, &[7, 8, 9]));
        voters.same_bytes(db);
    }
    voters.nodes[primary].must_client(&["db", "verify"]);
}

#[test]
fn a_database_made_again_under_a_dropped_name_survives_a_crash_of_the_only_voter() {
    let Some(mut voters) = Voters::start(1, true) else { return };
    drop_and_make_anew(&mut voters, "wal");
}

#[test]
fn a_database_made_again_under_a_dropped_name_survives_a_crash_and_a_handoff_back() {
    let Some(mut voters) = Voters::three() else { return };
    drop_and_make_anew(&mut voters, "delete");
}

fn rename_and_crash(voters: &mut Voters) {
    let first = voters.primary();
    let (old, new): (Vec<String>, Vec<String>) =
        (0..MANY).map(|number| (format!("x{number}.db"), format!("y{number}.db"))).unzip();
    let node = &voters.nodes[first];
    old.iter().for_each(|db| make(node, db, "wal", 5));
    wait_for_checkpoint(node, &old);
    // Entries that a redo must not apply to what takes the place.
    old.iter().for_each(|db| insert(&open(node, db), 6));
    for (from, to) in new.iter().zip(&old) {
        make(node, from, "wal", 111);
        eventually("it is renamed", || std::fs::rename(node.path(from), node.path(to)).is_ok().then_some(()));
    }
    voters.nodes[first].kill9();
    voters.nodes[first].must_start();
    let primary = voters.primary();
    for (from, to) in new.iter().zip(&old) {
        voters.nodes.iter().for_each(|node| eventually_shows(node, to, &[111]));
        insert(&voters.open(primary, to), 112);
        for node in &voters.nodes {
            eventually_shows(node, to, &[111, 112]);
            assert!(!node.path(from).exists(), "{from} is still on {}", node.settings.name);
        }
    }
}

#[test]
fn a_rename_over_an_old_database_survives_a_crash_of_the_only_voter() {
    let Some(mut voters) = Voters::start(1, true) else { return };
    rename_and_crash(&mut voters);
}

#[test]
fn a_rename_over_an_old_database_survives_a_crash_of_the_primary() {
    let Some(mut voters) = Voters::three() else { return };
    rename_and_crash(&mut voters);
}

#[test]
fn a_rename_over_a_database_that_is_open_everywhere_is_one_transaction_of_it() {
    for passthrough in [true, false] {
        let mut options = Options::replicas(1);
        if !passthrough {
            options = options.without_passthrough();
        }
        let Some(cluster) = Cluster::start(&options) else { return };
        if !needs_skein() {
            return;
        }
        for journal in ["wal", "delete"] {
            let db = format!("{journal}.db");
            make(&cluster.primary, &db, journal, -1);
            cluster.converge(&db);
            let here = sql::open(&cluster.primary.path(&db));
            let there = sql::open(&cluster.replicas[0].path(&db));
            assert_eq!((values(&here), values(&there)), (Ok(vec![-1]), Ok(vec![-1])));
            for round in 0..8 {
                let aside = cluster.primary.path("aside.db");
                let writer = sql::create(&aside, "wal", 4096);
                sql::run(&writer, "PRAGMA synchronous=off; CREATE TABLE t(v)");
                insert(&writer, round);
                drop(writer);
                std::fs::rename(&aside, cluster.primary.path(&db)).unwrap();
                assert!(!aside.exists());
                assert_eq!(values(&here), Ok(vec![round]), "{journal}: a connection that was open");
                assert_eq!(shown(&cluster.primary, &db), Ok(vec![round]), "{journal}: a new connection");
            }
            insert(&here, 100);
            insert(&sql::open(&cluster.primary.path(&db)), 101);
            cluster.converge(&db);
            assert_eq!(values(&there), Ok(vec![7, 100, 101]), "{journal}: a connection of the replica");
            assert_eq!(shown(&cluster.replicas[0], &db), Ok(vec![7, 100, 101]));
            assert!(!cluster.replicas[0].path("aside.db").exists());
            drop((here, there));
            cluster.same_bytes(&db);
        }
    }
}

#[test]
fn unlinking_and_making_a_database_again_leaves_no_change_behind_its_end() {
    let Some(mut cluster) = Cluster::primary_and_replicas(1) else { return };
    for round in 0..60 {
        let connection = sql::create(&cluster.primary.path("a.db"), "wal", 4096);
        sql::run(&connection, "PRAGMA synchronous=normal; CREATE TABLE t(v)");
        insert(&connection, round);
        // Still open, and perhaps not captured.
        std::fs::remove_file(cluster.primary.path("a.db")).unwrap();
    }
    make(&cluster.primary, "a.db", "wal", 7);
    cluster.converge("a.db");
    eventually_shows(&cluster.replicas[0], "a.db", &[7]);
    cluster.primary.restart();
    insert(&sql::open(&cluster.primary.path("a.db")), 8);
    eventually_shows(&cluster.replicas[0], "a.db", &[7, 8]);
    for node in [&cluster.primary, &cluster.replicas[0]] {
        let log = node.log();
        let wrong: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("fetching the difference") || line.contains("behind the end"))
            .collect();
        assert!(wrong.is_empty(), "{}: {wrong:?}", node.settings.name);
    }
}

/// Takes writes on a node as soon as it is primary; how long that took.
fn first_write(voters: &Voters, db: &str, some: &[usize]) -> Duration {
    voters.first_write(db, "INSERT INTO t VALUES(1)", some).1
}

#[test]
fn a_reader_of_a_rollback_database_keeps_only_that_database_waiting_when_the_primary_dies() {
    let Some(mut voters) = Voters::three() else { return };
    let first = voters.primary();
    let others: Vec<usize> = (0..3).filter(|which| *which != first).collect();
    make(&voters.nodes[first], "held.db", "delete", 1);
    make(&voters.nodes[first], "free.db", "delete", 1);
    voters.same_bytes("held.db");
    let readers: Vec<Connection> = others
        .iter()
        .map(|which| {
            let reader = voters.open(*which, "held.db");
            sql::run(&reader, "BEGIN");
            assert_eq!(values(&reader), Ok(vec![1]));
            reader
        })
        .collect();
    insert(&sql::open(&voters.nodes[first].path("held.db")), 2);
    // The entry is on the others, and waits there; nobody who begins to read meanwhile is locked out.
    for which in &others {
        let beside = sql::open(&voters.nodes[*which].path("held.db"));
        beside.busy_timeout(Duration::from_millis(50)).unwrap();
        (0..20).for_each(|_| assert_eq!(values(&beside), Ok(vec![1])));
    }
    voters.nodes[first].kill9();
    let took = first_write(&voters, "free.db", &others);
    assert!(took < Duration::from_secs(8), "no primary for {took:?} because of a reader");
    let primary = voters.primary_among(&others);
    let waiting = sql::open(&voters.nodes[primary].path("held.db"));
    waiting.busy_timeout(Duration::from_millis(200)).unwrap();
    assert!(waiting.execute("INSERT INTO t VALUES(3)", []).is_err(), "written on top of what it lacks");
    drop(waiting);
    for reader in &readers {
        assert_eq!(values(reader), Ok(vec![1]), "a reader keeps its snapshot");
        sql::run(reader, "COMMIT");
    }
    drop(readers);
    let writer = voters.open(primary, "held.db");
    writer.busy_timeout(Duration::from_secs(20)).unwrap();
    insert(&writer, 3);
    others.iter().for_each(|which| eventually_shows(&voters.nodes[*which], "held.db", &[1, 2, 3]));
    voters.nodes[first].must_start();
    eventually_shows(&voters.nodes[first], "held.db", &[1, 2, 3]);
}

#[test]
fn a_reader_of_a_rollback_database_on_a_replica_delays_no_other_database_and_not_the_lag() {
    let Some(cluster) = Cluster::primary_and_replicas(1) else { return };
    if !needs_skein() {
        return;
    }
    let replica = &cluster.replicas[0];
    make(&cluster.primary, "held.db", "delete", 1);
    make(&cluster.primary, "free.db", "wal", 1);
    cluster.converge("held.db");
    cluster.converge("free.db");
    let reader = sql::open(&replica.path("held.db"));
    sql::run(&reader, "BEGIN");
    assert_eq!(values(&reader), Ok(vec![1]));
    insert(&sql::open(&cluster.primary.path("held.db")), 2);
    insert(&sql::open(&cluster.primary.path("free.db")), 2);
    cluster.converge("free.db");
    eventually_shows(replica, "free.db", &[1, 2]);
    eventually("the node does not count as behind", || {
        let lag = std::fs::read_to_string(replica.path(".lag")).ok()?;
        (lag.trim() == "+000000000").then_some(())
    });
    assert_eq!(values(&reader), Ok(vec![1]));
    sql::run(&reader, "COMMIT");
    eventually_shows(replica, "held.db", &[1, 2]);
}

#[test]
fn a_database_never_takes_the_place_of_a_directory_of_databases() {
    let Some(cluster) = Cluster::primary_and_replicas(0) else { return };
    if !needs_skein() {
        return;
    }
    let node = &cluster.primary;
    std::fs::create_dir(node.path("tenants")).unwrap();
    make(node, "tenants/a.db", "wal", 1);
    make(node, "other.db", "delete", 2);
    let file = cluster.dir().join("f.db");
    sql::run(&sql::create(&file, "delete", 4096), "CREATE TABLE t(v)");
    let refused = node.client(&["db", "import", file.to_str().unwrap(), "tenants"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("tenants/a.db"), "{said}");
    let refused = node.client(&["db", "import", file.to_str().unwrap(), "other.db/below.db"]);
    assert!(!refused.status.success());
    assert!(std::fs::rename(node.path("other.db"), node.path("tenants")).is_err());
    assert_eq!(shown(node, "tenants/a.db"), Ok(vec![1]));
    assert_eq!(shown(node, "other.db"), Ok(vec![2]));
}

#[test]
fn who_waits_for_a_position_is_told_of_a_rename() {
    let Some(cluster) = Cluster::primary_and_replicas(1) else { return };
    if !needs_skein() {
        return;
    }
    let replica = cluster.replicas[0].http;
    let (started, waits) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        started.send(()).unwrap();
        crate::harness::http::get_json(
            replica,
            "/v1/databases/y.db/wait?txid=0000000000000001&timeout_ms=20000",
        )
    });
    waits.recv().unwrap();
    make(&cluster.primary, "x.db", "wal", 1);
    cluster.converge("x.db");
    std::fs::rename(cluster.primary.path("x.db"), cluster.primary.path("y.db")).unwrap();
    let reached = waiter.join().unwrap();
    assert!(reached.is_ok(), "{reached:?}");
}

#[test]
fn an_import_with_other_pages_reaches_a_replica_whose_application_keeps_its_connection() {
    let Some(cluster) = Cluster::primary_and_replicas(1) else { return };
    if !needs_skein() {
        return;
    }
    let replica = &cluster.replicas[0];
    make(&cluster.primary, "a.db", "wal", 1);
    cluster.converge("a.db");
    let kept = sql::open(&replica.path("a.db"));
    sql::run(&kept, "BEGIN");
    assert_eq!(values(&kept), Ok(vec![1]));
    insert(&sql::open(&cluster.primary.path("a.db")), 2);
    cluster.converge("a.db");
    let file = cluster.dir().join("pages8192.db");
    let source = sql::create(&file, "wal", 8192);
    sql::run(&source, "CREATE TABLE t(v); INSERT INTO t VALUES(8192)");
    drop(source);
    // The last connection of the primary lingers for a moment.
    eventually("the import is taken", || {
        cluster
            .primary
            .client(&["db", "import", file.to_str().unwrap(), "a.db"])
            .status
            .success()
            .then_some(())
    });
    assert_eq!(values(&kept), Ok(vec![1]), "a reader keeps its snapshot");
    sql::run(&kept, "COMMIT");
    cluster.converge("a.db");
    eventually("the connection shows what was imported", || (values(&kept) == Ok(vec![8192])).then_some(()));
    let resyncs = replica.log().lines().filter(|line| line.contains("fetching the difference")).count();
    assert_eq!(resyncs, 0, "it was fetched instead of applied");
    drop(kept);
    cluster.same_bytes("a.db");
}

#[test]
fn verify_reports_a_copy_that_stays_behind_the_primary() {
    let Some(cluster) = Cluster::primary_and_replicas(1) else { return };
    if !needs_skein() {
        return;
    }
    make(&cluster.primary, "held.db", "delete", 1);
    cluster.converge("held.db");
    cluster.primary.must_client(&["db", "verify"]);
    let reader = sql::open(&cluster.replicas[0].path("held.db"));
    sql::run(&reader, "BEGIN");
    assert_eq!(values(&reader), Ok(vec![1]));
    insert(&sql::open(&cluster.primary.path("held.db")), 2);
    let verified = cluster.primary.client(&["db", "verify"]);
    let said = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert_eq!(verified.status.code(), Some(1), "{said}");
    assert!(said.contains("STAYS BEHIND"), "{said}");
    sql::run(&reader, "COMMIT");
    cluster.converge("held.db");
    cluster.primary.must_client(&["db", "verify"]);
}

#[test]
fn a_voter_that_was_away_while_a_database_was_dropped_and_made_again_has_the_new_one() {
    let Some(mut voters) = Voters::three() else { return };
    let away = voters.follower();
    let first = voters.primary();
    make(&voters.nodes[first], "a.db", "wal", 1);
    voters.same_bytes("a.db");
    voters.nodes[away].kill9();
    for round in 2..5 {
        let gone = || std::fs::remove_file(voters.nodes[first].path("a.db")).is_ok().then_some(());
        eventually("it is dropped", gone);
        make(&voters.nodes[first], "a.db", "wal", round);
    }
    voters.nodes[away].must_start();
    voters.nodes.iter().for_each(|node| eventually_shows(node, "a.db", &[4]));
    voters.same_bytes("a.db");
}
