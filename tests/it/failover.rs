//! Three voters: election, quorum commits, handoff, and the way back.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rusqlite::Connection;

use crate::guarantees::quote;
use crate::harness::sql;
use crate::harness::{App, Node, Voters, eventually, within};

fn table(connection: &Connection) {
    sql::run(connection, "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)");
}

fn count(connection: &Connection) -> i64 {
    sql::number(connection, "SELECT count(*) FROM t")
}

fn insert(connection: &Connection, text: &str) -> rusqlite::Result<usize> {
    connection.execute("INSERT INTO t(v) VALUES(?1)", [text])
}

/// Files below `discarded` of a node.
fn discarded(voters: &Voters, which: usize) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(voters.nodes[which].data().join("discarded"));
    entries.into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn acknowledged_commits_survive_the_loss_of_the_primary_in_every_mode() {
    quote("when it is lost, another takes over by itself, with every commit that was held by a quorum");
    for passthrough in [true, false] {
        let Some(mut voters) = Voters::start(3, passthrough) else { return };
        let mut apps = Vec::new();
        let first = voters.primary();
        for journal in ["wal", "delete", "persist"] {
            let path = voters.nodes[first].path(&format!("{journal}.db"));
            apps.push((journal, App::transfer(&path, &["--journal", journal])));
        }
        for (journal, app) in &mut apps {
            assert!(app.wait_for("commit", 40, Duration::from_secs(30)), "{journal}: {:?}", app.end());
        }
        voters.nodes[first].kill9();
        let others: Vec<usize> = (0..3).filter(|which| *which != first).collect();
        let second = voters.primary_among(&others);
        for (journal, app) in &mut apps {
            let said = app.kill9();
            let acknowledged = said.iter().filter(|line| line.starts_with("commit")).count() as i64;
            let db = voters.open(second, &format!("{journal}.db"));
            let kept = sql::number(&db, "SELECT count(*) FROM ledger WHERE client = 'a'");
            assert!(kept >= acknowledged, "{journal}: {kept} of {acknowledged} acknowledged commits");
            assert!(kept <= acknowledged + 1, "{journal}: {kept} commits, {acknowledged} were acknowledged");
            assert_eq!(sql::number(&db, "SELECT sum(balance) FROM account"), 20_000, "{journal}");
            sql::check_integrity(&db);
        }
        voters.nodes[first].must_start();
        for (journal, _) in &apps {
            voters.same_bytes(&format!("{journal}.db"));
        }
    }
}

#[test]
fn a_deposed_primary_gives_up_what_was_not_replicated_and_keeps_it_aside() {
    quote("could not replicate never becomes part of a database again; it is kept in `discarded/`");
    for passthrough in [true, false] {
        let Some(voters) = Voters::start(3, passthrough) else { return };
        let first = voters.primary();
        let others: Vec<usize> = (0..3).filter(|which| *which != first).collect();
        let writer = sql::create(&voters.nodes[first].path("a.db"), "wal", 4096);
        table(&writer);
        sql::run(&writer, "PRAGMA synchronous=normal");
        insert(&writer, "replicated").unwrap();
        voters.same_bytes("a.db");
        // A reader that began before, and holds its snapshot to the end.
        let held = sql::open(&voters.nodes[first].path("a.db"));
        // Nobody is there to replicate to; for a short while that is not noticed.
        others.iter().for_each(|which| voters.signal(*which, Signal::SIGSTOP));
        writer.busy_timeout(Duration::from_millis(100)).unwrap();
        let lost = within(Duration::from_secs(10), || insert(&writer, "lost").is_err().then_some(()));
        assert!(lost.is_some(), "a primary without a quorum takes writes for ever");
        let in_tail = count(&writer) - 1;
        assert!(in_tail > 0, "nothing was accepted before the fence came down");
        sql::run(&held, "BEGIN");
        assert_eq!(count(&held), 1 + in_tail);
        voters.signal(first, Signal::SIGSTOP);
        others.iter().for_each(|which| voters.signal(*which, Signal::SIGCONT));
        let (second, _) = voters.first_write("a.db", "INSERT INTO t(v) VALUES('won')", &others);
        voters.signal(first, Signal::SIGCONT);
        // What was on its way to the others when they stopped may have arrived.
        let shown = |connection: &Connection| sql::rows(connection, "SELECT v FROM t ORDER BY id").unwrap();
        let elsewhere = voters.open(second, "a.db");
        let history = within(Duration::from_secs(20), || (shown(&writer) == shown(&elsewhere)).then_some(()));
        assert!(history.is_some(), "the deposed primary shows {:?}", shown(&writer));
        let rows = count(&writer);
        assert!(rows < 1 + in_tail, "{rows} rows of {in_tail} that nobody was there for");
        assert_eq!(sql::text(&writer, &format!("SELECT v FROM t WHERE id = {rows}")), "won");
        assert_eq!(count(&held), 1 + in_tail, "a reader keeps what it saw");
        sql::run(&held, "COMMIT");
        assert_eq!(count(&held), rows);
        voters.same_bytes("a.db");
        let kept = discarded(&voters, first);
        assert_eq!(kept.len(), 1, "{kept:?}");
        let dump = voters.nodes[first].must_client(&["ltx", "verify", kept[0].to_str().unwrap()]);
        assert!(!dump.is_empty());
        assert!(others.iter().all(|which| discarded(&voters, *which).is_empty()));
        // Primary again, the connections that stayed open write.
        voters.hand_to(first);
        writer.busy_timeout(Duration::from_secs(5)).unwrap();
        insert(&writer, "again").unwrap();
        insert(&held, "and again").unwrap();
        sql::check_integrity(&held);
        assert_eq!(count(&held), rows + 2);
        drop((writer, held, elsewhere));
        voters.same_bytes("a.db");
    }
}

#[test]
fn a_commit_without_a_quorum_fails_and_is_not_seen_anywhere_it_did_not_happen() {
    let Some(voters) = Voters::three() else { return };
    let first = voters.primary();
    let others: Vec<usize> = (0..3).filter(|which| *which != first).collect();
    let writer = sql::create(&voters.nodes[first].path("a.db"), "wal", 4096);
    table(&writer);
    insert(&writer, "before").unwrap();
    let rollback = sql::create(&voters.nodes[first].path("b.db"), "delete", 4096);
    table(&rollback);
    others.iter().for_each(|which| voters.signal(*which, Signal::SIGSTOP));
    writer.busy_timeout(Duration::from_millis(100)).unwrap();
    let start = Instant::now();
    let refused = insert(&writer, "unknown").unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(15), "{refused} after {:?}", start.elapsed());
    assert!(insert(&rollback, "unknown").is_err());
    assert_eq!(count(&writer), 1, "what failed is not seen");
    assert_eq!(count(&rollback), 0, "what failed is not seen");
    others.iter().for_each(|which| voters.signal(*which, Signal::SIGCONT));
    let primary = voters.primary();
    let everywhere = eventually("all agree", || {
        let counts: Vec<i64> = (0..3).map(|which| count(&voters.open(which, "a.db"))).collect();
        counts.iter().all(|count| *count == counts[0]).then_some(counts[0])
    });
    assert!((1..=2).contains(&everywhere), "it happened once or not at all: {everywhere}");
    insert(&voters.open(primary, "a.db"), "after").unwrap();
    insert(&voters.open(primary, "b.db"), "after").unwrap();
    for db in ["a.db", "b.db"] {
        voters.same_bytes(db);
    }
}

#[test]
fn a_journal_left_behind_never_takes_back_what_another_primary_committed() {
    let Some(voters) = Voters::three() else { return };
    let (first, second) = (voters.primary(), (voters.primary() + 1) % 3);
    let path = voters.nodes[first].path("a.db");
    let writer = sql::create(&path, "delete", 1024);
    table(&writer);
    sql::run(
        &writer,
        "INSERT INTO t(v) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x<200) SELECT 'before' FROM n",
    );
    sql::run(&writer, "PRAGMA cache_size=2; BEGIN IMMEDIATE; UPDATE t SET v = 'never'");
    let journal = path.with_file_name("a.db-journal");
    let hot = std::fs::read(&journal).unwrap();
    sql::run(&writer, "ROLLBACK");
    drop(writer);
    // As a writer leaves it that dies before it has written to the database; opened as SQLite opens it.
    let mut left = std::fs::File::options();
    let mut left = left.read(true).write(true).create(true).truncate(false).open(&journal).unwrap();
    left.write_all(&hot).unwrap();
    drop(left);
    let reader = voters.open(second, "a.db");
    voters.hand_to(second);
    insert(&reader, "elsewhere").unwrap();
    sql::run(&reader, "UPDATE t SET v = 'changed' WHERE id <= 100");
    voters.same_bytes("a.db");
    voters.hand_to(first);
    let again = voters.open(first, "a.db");
    assert_eq!(sql::number(&again, "SELECT count(*) FROM t WHERE v = 'changed'"), 100);
    assert_eq!(count(&again), 201);
    insert(&again, "and on").unwrap();
    sql::check_integrity(&again);
    voters.same_bytes("a.db");
}

/// Does `work` while a reader that does not wait for locks goes on; its result, and the number of reads.
fn reading_meanwhile<T>(path: &Path, work: impl FnOnce() -> T) -> (T, u64) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let connection = sql::open(path);
            connection.busy_timeout(Duration::ZERO).unwrap();
            let mut reads = 0;
            while !over.load(Ordering::SeqCst) {
                connection
                    .query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0))
                    .expect("a reader failed");
                reads += 1;
            }
            reads
        });
        let done = work();
        over.store(true, Ordering::SeqCst);
        (done, reader.join().unwrap())
    })
}

#[test]
fn a_handoff_gives_up_when_an_application_stays_in_the_middle_of_a_transaction() {
    let Some(voters) = Voters::three() else { return };
    let primary = voters.primary();
    for journal in ["wal", "delete"] {
        let path = voters.nodes[primary].path(&format!("{journal}.db"));
        let (writer, other) = (sql::create(&path, journal, 4096), sql::open(&path));
        table(&writer);
        sql::run(&writer, "BEGIN IMMEDIATE; INSERT INTO t(v) VALUES('long')");
        let (refused, reads) = reading_meanwhile(&path, || voters.nodes[primary].client(&["handoff"]));
        let words = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && words.contains("in the middle of a transaction"), "{words}");
        assert!(reads > 100, "{journal}: {reads} reads");
        assert_eq!(voters.primary(), primary);
        sql::run(&writer, "COMMIT");
        insert(&other, "and others go on").unwrap();
        assert_eq!(count(&writer), 2);
        drop((writer, other));
    }
    voters.nodes[primary].must_client(&["handoff"]);
    assert_eq!(count(&voters.open(voters.primary(), "delete.db")), 2);
}

/// Writes on whichever node is primary, again and again; what failed is told.
fn write_on_the_primary(
    paths: Vec<std::path::PathBuf>,
    stop: &AtomicBool,
    written: &AtomicU64,
) -> Vec<String> {
    let mut failures = Vec::new();
    let open = |path: &std::path::Path| {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        Ok::<_, rusqlite::Error>(connection)
    };
    let mut here: Option<(std::path::PathBuf, Connection)> = None;
    while !stop.load(Ordering::SeqCst) {
        let primary = paths.iter().find(|path| path.exists() && !path.with_file_name(".primary").exists());
        let Some(path) = primary else {
            std::thread::yield_now();
            continue;
        };
        if here.as_ref().is_none_or(|(at, _)| at != path) {
            here = open(path).ok().map(|connection| (path.clone(), connection));
        }
        let Some((_, connection)) = &here else { continue };
        match insert(connection, "x") {
            Ok(_) => drop(written.fetch_add(1, Ordering::SeqCst)),
            Err(error) => {
                failures.push(error.to_string());
                here = None;
            }
        }
    }
    failures
}

#[test]
fn writers_wait_during_a_handoff_and_none_fails_that_asks_the_new_primary() {
    quote("loses nothing that was acknowledged, and fails no writer that waits where the primary goes");
    let Some(voters) = Voters::three() else { return };
    for journal in ["wal", "delete"] {
        let db = format!("{journal}.db");
        let writer = sql::create(&voters.nodes[voters.primary()].path(&db), journal, 4096);
        table(&writer);
        drop(writer);
        voters.same_bytes(&db);
        let mut written = 0;
        for _ in 0..4 {
            written = hand_over_under_load(&voters, &db, written);
        }
    }
}

/// Moves the primary one further while somebody writes on it and somebody waits on the next; the rows afterwards.
fn hand_over_under_load(voters: &Voters, db: &str, written: i64) -> i64 {
    let from = voters.primary();
    let to = (from + 1) % 3;
    // One that waits where the primary comes to, from before it does.
    let waiting = voters.open(to, db);
    waiting.busy_timeout(Duration::from_secs(5)).unwrap();
    let load = {
        let path = voters.nodes[from].path(db);
        std::thread::spawn(move || {
            let connection = sql::open(&path);
            connection.busy_timeout(Duration::from_millis(300)).unwrap();
            let mut done = 0;
            loop {
                match insert(&connection, "load") {
                    Ok(_) => done += 1,
                    Err(error) => return (done, error),
                }
            }
        })
    };
    eventually("there is load", || (count(&waiting) > written + 5).then_some(()));
    let name = voters.nodes[to].settings.name.clone();
    let waiter = std::thread::spawn(move || insert(&waiting, "waited").map(drop));
    voters.nodes[from].must_client(&["handoff", &name]);
    waiter.join().unwrap().expect("a writer that waited for the primary failed");
    let (done, last) = load.join().unwrap();
    assert_eq!(last.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy), "{db}: {last}");
    assert_eq!(voters.primary(), to);
    let now = count(&voters.open(to, db));
    assert_eq!(now, written + done + 1, "{db}: an acknowledged commit is lost or doubled");
    voters.same_bytes(db);
    now
}

#[test]
fn a_rolling_restart_fails_no_writer_that_goes_with_the_primary() {
    let Some(mut voters) = Voters::three() else { return };
    let writer = sql::create(&voters.nodes[voters.primary()].path("a.db"), "wal", 4096);
    table(&writer);
    drop(writer);
    voters.same_bytes("a.db");
    let paths: Vec<_> = voters.nodes.iter().map(|node| node.path("a.db")).collect();
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = {
        let (stop, written) = (stop.clone(), written.clone());
        std::thread::spawn(move || write_on_the_primary(paths, &stop, &written))
    };
    for which in [0, 1, 2] {
        let before = written.load(Ordering::SeqCst);
        eventually("there is load", || (written.load(Ordering::SeqCst) > before + 20).then_some(()));
        voters.nodes[which].restart();
        voters.wait_voting(3);
    }
    stop.store(true, Ordering::SeqCst);
    let failures = load.join().unwrap();
    // A writer that is told that the mount ends, or that asked the old primary in the moment of the move, asks again.
    assert!(failures.len() <= 6, "{failures:?}");
    let rows = count(&voters.open(voters.primary(), "a.db"));
    let acknowledged = i64::try_from(written.load(Ordering::SeqCst)).unwrap();
    assert!(rows >= acknowledged && rows <= acknowledged + failures.len() as i64, "{rows}, {acknowledged}");
    voters.same_bytes("a.db");
}

#[test]
fn all_voters_restart_at_once_and_go_on() {
    let Some(mut voters) = Voters::three() else { return };
    let first = voters.primary();
    let mut app = App::transfer(&voters.nodes[first].path("a.db"), &[]);
    assert!(app.wait_for("commit", 50, Duration::from_secs(30)), "{:?}", app.end());
    voters.nodes.iter_mut().for_each(|node| node.kill9());
    let acknowledged = app.kill9().iter().filter(|line| line.starts_with("commit")).count() as i64;
    let started: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = voters.nodes.iter_mut().map(|node| scope.spawn(|| node.start())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(started.iter().all(Result::is_ok), "{started:?}");
    let db = voters.open(voters.primary(), "a.db");
    let kept = sql::number(&db, "SELECT count(*) FROM ledger WHERE client = 'a'");
    assert!(kept >= acknowledged && kept <= acknowledged + 1, "{kept} of {acknowledged}");
    voters.same_bytes("a.db");
}

#[test]
fn a_lost_voter_is_replaced_and_a_foreign_one_is_refused() {
    let Some(mut voters) = Voters::three() else { return };
    let first = voters.primary();
    let writer = sql::create(&voters.nodes[first].path("a.db"), "wal", 4096);
    table(&writer);
    insert(&writer, "x").unwrap();
    let lost = voters.follower();
    voters.nodes[lost].kill9();
    crate::harness::unmount(&voters.nodes[lost].mount());
    let data = voters.nodes[lost].data();
    std::fs::remove_dir_all(&data).unwrap();
    // The same name with nothing behind it is another node.
    let refusal = voters.nodes[lost].start().unwrap_err();
    assert!(refusal.contains("members remove"), "{refusal}");
    let name = voters.nodes[lost].settings.name.clone();
    voters.nodes[first].must_client(&["members", "remove", &name]);
    voters.nodes[lost].must_start();
    voters.wait_voting(3);
    insert(&writer, "y").unwrap();
    voters.same_bytes("a.db");
    // A node of another cluster is told so, and keeps what it has.
    let Some(mut other) = Voters::start(1, true) else { return };
    let theirs = sql::create(&other.nodes[0].path("b.db"), "wal", 4096);
    table(&theirs);
    drop(theirs);
    other.nodes[0].terminate();
    other.nodes[0].settings.join = vec![voters.nodes[first].listen];
    let refusal = other.nodes[0].start().err();
    let ended = refusal.is_some() || other.nodes[0].wait_for_end(Duration::from_secs(20)).is_some();
    assert!(ended && other.nodes[0].log().contains("belongs to cluster"), "{}", other.nodes[0].log());
    other.nodes[0].settings.join.clear();
    other.nodes[0].must_start();
    assert_eq!(count(&other.open(0, "b.db")), 0);
}

#[test]
fn a_replica_becomes_a_voter_and_keeps_its_data() {
    let Some(mut voters) = Voters::start(2, true) else { return };
    let writer = sql::create(&voters.nodes[voters.primary()].path("a.db"), "wal", 4096);
    table(&writer);
    insert(&writer, "x").unwrap();
    let third = voters.add_replica();
    insert(&writer, "y").unwrap();
    eventually("the replica has it", || {
        let path = voters.nodes[third].path("a.db");
        (path.exists() && count(&sql::open(&path)) == 2).then_some(())
    });
    voters.nodes[third].terminate();
    voters.nodes[third].settings.role = "voter";
    voters.nodes[third].must_start();
    voters.wait_voting(3);
    insert(&writer, "z").unwrap();
    voters.same_bytes("a.db");
    let name = voters.nodes[third].settings.name.clone();
    voters.nodes[0].must_client(&["handoff", &name]);
    insert(&voters.open(third, "a.db"), "by the former replica").unwrap();
    drop(writer);
    voters.same_bytes("a.db");
}

#[test]
fn every_voter_knows_the_replicas_of_all() {
    let Some(mut voters) = Voters::three() else { return };
    drop(sql::create(&voters.nodes[voters.primary()].path("a.db"), "wal", 4096));
    let replica = voters.add_replica();
    let name = voters.nodes[replica].settings.name.clone();
    let known = |node: &Node| {
        let members = node.status().ok()?["members"].as_array()?.clone();
        let found: Vec<_> = members.iter().filter(|member| member["name"] == *name).cloned().collect();
        (found.len() == 1 && found[0]["healthy"] == true && found[0]["lag_ms"] == 0).then_some(())
    };
    for to in [1, 2, 0] {
        // Two of the three are not followed by it, and one of those is primary in turn.
        voters.hand_to(to);
        for voter in &voters.nodes[..3] {
            eventually("the voter knows the replica", || known(voter));
        }
        let listed = voters.nodes[to].must_client(&["members", "list"]);
        assert!(listed.contains(&name), "{listed}");
    }
    let verified = voters.nodes[0].must_client(&["db", "verify"]);
    assert!(verified.contains(&name), "{verified}");
    voters.nodes[replica].terminate();
    let gone =
        |node: &Node| node.status().ok()?["members"].to_string().contains("\"healthy\":false").then_some(());
    for voter in &voters.nodes[..3] {
        eventually("the voter knows that the replica is gone", || gone(voter));
        let members = voter.status().unwrap()["members"].as_array().unwrap().clone();
        let dead = members.iter().find(|member| member["name"] == *name).unwrap();
        assert!(dead["version"].is_null() && dead["uptime_s"].is_null(), "{dead}");
    }
}

#[test]
fn a_large_transaction_reaches_a_majority_before_it_is_acknowledged() {
    let Some(mut voters) = Voters::three() else { return };
    let first = voters.primary();
    let writer = sql::create(&voters.nodes[first].path("a.db"), "wal", 4096);
    sql::run(&writer, "CREATE TABLE b(v BLOB)");
    let hundred = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)";
    sql::run(&writer, &format!("{hundred} INSERT INTO b SELECT randomblob(100000) FROM n"));
    drop(writer);
    voters.nodes[first].kill9();
    let others: Vec<usize> = (0..3).filter(|which| *which != first).collect();
    let second = voters.primary_among(&others);
    let db = voters.open(second, "a.db");
    assert_eq!(sql::number(&db, "SELECT count(*) FROM b"), 100);
    sql::check_integrity(&db);
    drop(db);
    voters.nodes[first].must_start();
    voters.same_bytes("a.db");
}

#[test]
fn the_newest_transaction_is_known_on_every_node_and_waited_for() {
    let Some(voters) = Voters::three() else { return };
    let first = voters.primary();
    let writer = sql::create(&voters.nodes[first].path("a.db"), "wal", 4096);
    table(&writer);
    for round in 0..20 {
        insert(&writer, "x").unwrap();
        for which in 0..3 {
            voters.nodes[which].must_client(&["wait", "a.db", "--timeout", "10s"]);
            assert_eq!(count(&voters.open(which, "a.db")), round + 1);
        }
    }
    // Without a quorum nobody can say what the newest is.
    let others: Vec<usize> = (0..3).filter(|which| *which != first).collect();
    others.iter().for_each(|which| voters.signal(*which, Signal::SIGSTOP));
    let refused = voters.nodes[first].client(&["wait", "a.db", "--timeout", "1s"]);
    assert!(!refused.status.success());
    others.iter().for_each(|which| voters.signal(*which, Signal::SIGCONT));
}

#[test]
fn operators_are_told_what_cannot_be_and_change_what_can() {
    let Some(mut voters) = Voters::start(1, true) else { return };
    let refused = |voters: &Voters, args: &[&str]| {
        let output = voters.nodes[0].client(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        text
    };
    assert!(refused(&voters, &["handoff"]).contains("no other voter"));
    assert!(refused(&voters, &["handoff", "nobody"]).contains("no voter or standby is named nobody"));
    assert!(refused(&voters, &["members", "remove", "n1"]).contains("skein handoff"));
    assert!(refused(&voters, &["members", "promote", "n7"]).contains("members list"));
    assert!(refused(&voters, &["members", "add", "127.0.0.1:1"]).contains("127.0.0.1:1"));
    voters.add();
    voters.add();
    voters.wait_voting(3);
    // Any node takes an operator's wish, wherever the primary is.
    for node in &voters.nodes {
        let list = node.must_client(&["members", "list"]);
        assert_eq!(list.matches("votes").count(), 3, "{list}");
        assert_eq!(list.matches("healthy").count(), 3, "{list}");
    }
    let primary = voters.primary();
    let (a, b) = ((primary + 1) % 3, (primary + 2) % 3);
    let name = |which: usize| voters.nodes[which].settings.name.clone();
    voters.nodes[a].must_client(&["members", "demote", &name(b)]);
    let list = voters.nodes[b].must_client(&["members", "list"]);
    assert!(list.lines().any(|line| line.starts_with(&name(b)) && line.contains("standby")), "{list}");
    voters.nodes[b].must_client(&["members", "promote", &name(b)]);
    voters.wait_voting(3);
    voters.nodes[b].must_client(&["members", "remove", &name(a)]);
    assert!(!voters.nodes[b].must_client(&["members", "list"]).contains(&format!("{} ", name(a))));
    // It still runs, and is let in again.
    let listen = voters.nodes[a].listen.to_string();
    voters.nodes[b].must_client(&["members", "add", &listen]);
    voters.wait_voting(3);
    voters.nodes[a].must_client(&["handoff", &name(a)]);
    assert_eq!(voters.primary(), a);
}

#[test]
fn nobody_writes_on_the_mount_of_a_node_that_is_gone() {
    quote("Applications that still have files of a node open that is gone can read, and cannot write.");
    let Some(mut voters) = Voters::three() else { return };
    for orderly in [false, true] {
        for primary in [true, false] {
            let which = if primary { voters.primary() } else { voters.follower() };
            let db = format!("{orderly}-{primary}.db");
            let writer = sql::create(&voters.nodes[voters.primary()].path(&db), "wal", 4096);
            table(&writer);
            insert(&writer, "x").unwrap();
            voters.same_bytes(&db);
            let left = voters.open(which, &db);
            sql::run(&left, "PRAGMA synchronous=normal");
            left.busy_timeout(Duration::from_millis(300)).unwrap();
            assert_eq!(count(&left), 1);
            drop(writer);
            match orderly {
                true => drop(voters.nodes[which].terminate()),
                false => voters.nodes[which].kill9(),
            }
            // The fence comes down with the daemon; a moment may pass until it does.
            let refused = within(Duration::from_secs(5), || insert(&left, "lost").err());
            let refused = refused.expect("writes are taken that nobody captures");
            let code = refused.sqlite_error_code();
            assert_eq!(code, Some(rusqlite::ErrorCode::DatabaseBusy), "{orderly} {primary}: {refused}");
            let shown = count(&left);
            assert!(insert(&left, "lost").is_err());
            assert_eq!(count(&left), shown, "a reader goes on");
            drop(left);
            voters.nodes[which].must_start();
            voters.wait_voting(3);
            insert(&voters.open(voters.primary(), &db), "y").unwrap();
            voters.same_bytes(&db);
        }
    }
}
