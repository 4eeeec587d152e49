//! A primary that has lost its quorum stops writing before another one can begin, whatever else it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::guarantees::quote;
use crate::harness::{Node, Settings, Voters, eventually, http, needs_skein, sql, within};

/// Twice the election timeout that is the default: no other node can be primary earlier after the last heartbeat.
const LEASE: Duration = Duration::from_millis(440);
/// How long the followers stand still: several leases, and less than `commit_timeout`.
const GAP: Duration = Duration::from_millis(2500);

/// Databases that nobody has open until then.
const COLD: u64 = 30;

/// What applications and operators do to a node in the meantime; ends when dropped.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn new() -> Self {
        Self { stop: Arc::default(), threads: Vec::new() }
    }

    /// Does `work` after a while on a thread of its own.
    fn once(&mut self, after: Duration, work: impl FnOnce() + Send + 'static) {
        self.threads.push(std::thread::spawn(move || {
            std::thread::sleep(after);
            work();
        }));
    }

    /// Repeats `work` on a thread of its own.
    fn repeat(&mut self, mut work: impl FnMut() + Send + 'static) {
        let stop = self.stop.clone();
        self.threads.push(std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                work();
                std::thread::sleep(Duration::from_millis(1));
            }
        }));
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // It has told its reason.
            let _ = thread.join();
        }
    }
}

#[test]
fn a_primary_without_a_quorum_acknowledges_nothing_after_its_lease_whatever_its_threads_wait_for() {
    quote("lets no write transaction begin once its lease has ended");
    for passthrough in [true, false] {
        let Some(voters) = Voters::start(3, passthrough) else { return };
        let first = voters.primary();
        let node = &voters.nodes[first];
        let mut load = Load::new();
        for which in 0..2 {
            // A commit under a rollback journal is an unlink that waits for the quorum with the directory locked.
            let writer = sql::create(&node.path(&format!("rollback{which}.db")), "delete", 4096);
            sql::run(&writer, "CREATE TABLE t(v)");
            load.repeat(move || drop(writer.execute("INSERT INTO t VALUES(1)", [])));
        }
        for which in 0..COLD {
            sql::run(&sql::create(&node.path(&format!("cold{which}.db")), "wal", 4096), "CREATE TABLE t(v)");
        }
        let cold = within(Duration::from_secs(60), || {
            (0..COLD).all(|which| !node.path(&format!("cold{which}.db-wal")).exists()).then_some(())
        });
        assert!(cold.is_some(), "databases that nobody has open keep their logs");
        for path in ["/v1/status", "/v1/databases", "/metrics", "/v1/status", "/v1/status", "/v1/databases"] {
            let address = node.http;
            load.repeat(move || drop(http::request(address, "GET", path, &[])));
        }
        let begun = Instant::now();
        let acknowledged = Arc::new(AtomicU64::new(0));
        let (counted, path) = (acknowledged.clone(), node.path("normal.db"));
        let normal = sql::create(&path, "wal", 4096);
        sql::run(&normal, "CREATE TABLE t(v)");
        sql::run(&normal, "PRAGMA synchronous=NORMAL");
        normal.busy_timeout(Duration::from_millis(20)).unwrap();
        load.repeat(move || {
            // When it began: what this test measures must not be when its own thread was scheduled.
            let at = begun.elapsed();
            if normal.execute("INSERT INTO t VALUES(1)", []).is_ok() {
                counted.store(u64::try_from(at.as_micros()).unwrap(), Ordering::SeqCst);
            }
        });
        let busy = within(Duration::from_secs(20), || {
            (acknowledged.load(Ordering::SeqCst) > 1_000_000).then_some(())
        });
        assert!(busy.is_some(), "nothing is committed under load");
        let others: Vec<usize> = (0..3).filter(|which| *which != first).collect();
        others.iter().for_each(|which| voters.signal(*which, Signal::SIGSTOP));
        let stopped = begun.elapsed();
        for which in 0..COLD {
            // The first connection has its `-wal` and `-shm` made in that directory.
            let path = node.path(&format!("cold{which}.db"));
            load.once(Duration::from_millis(10 * which), move || {
                let count = |c: rusqlite::Connection| {
                    c.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0))
                };
                drop(sql::try_open(&path).and_then(count));
            });
        }
        std::thread::sleep(GAP);
        let last = Duration::from_micros(acknowledged.load(Ordering::SeqCst));
        let beyond = last.saturating_sub(stopped);
        others.iter().for_each(|which| voters.signal(*which, Signal::SIGCONT));
        drop(load);
        println!("passthrough {passthrough}: the last commit began {beyond:?} after the others stopped");
        assert!(
            beyond < LEASE,
            "passthrough {passthrough}: a commit began {beyond:?} after the others stopped"
        );
    }
}

/// What a COMMIT said, and how long it took.
type Committed = (rusqlite::Result<()>, Duration);

/// Commits a transaction that is open when the followers stop, after the node has been fenced; they go on `more` later.
fn commit_in_a_gap(voters: &Voters, db: &str, journal: &str, synchronous: &str, more: Duration) -> Committed {
    let begin = format!(
        "PRAGMA journal_mode={journal}; CREATE TABLE IF NOT EXISTS t(v); PRAGMA synchronous={synchronous};
         BEGIN IMMEDIATE; INSERT INTO t VALUES('gap')"
    );
    // Where an earlier gap led to an election: a new database is made on whoever is primary by then, or not at all.
    let (first, writer) = eventually("a primary takes the database", || {
        let first = voters.primary();
        let writer = sql::try_open(&voters.nodes[first].path(db)).ok()?;
        writer.busy_timeout(Duration::from_secs(5)).ok()?;
        writer.execute_batch(&begin).ok().map(|()| (first, writer))
    });
    let others: Vec<usize> = (0..3).filter(|which| *which != first).collect();
    others.iter().for_each(|which| voters.signal(*which, Signal::SIGSTOP));
    // The lease ends four fifths of it after the last heartbeat.
    let fenced = within(Duration::from_secs(5), || {
        let overview = voters.nodes[first].status().ok()?;
        overview["primary"].is_null().then_some(())
    });
    let committing = std::thread::spawn(move || {
        let begun = Instant::now();
        (writer.execute_batch("COMMIT"), begun.elapsed())
    });
    std::thread::sleep(more);
    others.iter().for_each(|which| voters.signal(*which, Signal::SIGCONT));
    assert!(fenced.is_some(), "a primary without a quorum is not fenced");
    committing.join().unwrap()
}

#[test]
fn a_transaction_that_commits_while_the_quorum_is_away_for_a_moment_waits_for_it() {
    let Some(voters) = Voters::three() else { return };
    for round in 0..2 {
        for (journal, synchronous) in
            [("delete", "full"), ("delete", "normal"), ("wal", "full"), ("wal", "normal")]
        {
            let db = format!("{journal}-{synchronous}.db");
            let term = term(&voters);
            let (said, took) = commit_in_a_gap(&voters, &db, journal, synchronous, Duration::from_millis(50));
            // Where the others have elected somebody else meanwhile, the log has decided.
            let same = self::term(&voters) == term;
            assert!(said.is_ok() || !same, "{round} {db}: {said:?} after {took:?}, in the same term");
        }
    }
}

/// The Raft term as the primary knows it.
fn term(voters: &Voters) -> u64 {
    voters.nodes[voters.primary()].status().unwrap()["term"].as_u64().unwrap()
}

#[test]
fn a_commit_that_the_fence_holds_back_is_told_that_the_database_is_locked_and_may_be_tried_again() {
    let Some(voters) = Voters::three() else { return };
    let first = voters.primary();
    let path = voters.nodes[first].path("a.db");
    let writer = sql::create(&path, "delete", 4096);
    sql::run(&writer, "CREATE TABLE t(v)");
    writer.busy_timeout(Duration::from_millis(100)).unwrap();
    sql::run(&writer, "BEGIN IMMEDIATE; INSERT INTO t VALUES('first')");
    let others: Vec<usize> = (0..3).filter(|which| *which != first).collect();
    others.iter().for_each(|which| voters.signal(*which, Signal::SIGSTOP));
    let fenced = within(Duration::from_secs(5), || {
        voters.nodes[first].status().ok()?["primary"].is_null().then_some(())
    });
    assert!(fenced.is_some());
    // The fence of a rollback database follows on another thread.
    std::thread::sleep(Duration::from_millis(300));
    let said = writer.execute_batch("COMMIT").unwrap_err();
    assert_eq!(said.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy), "{said}");
    assert!(!writer.is_autocommit(), "the transaction is still there");
    others.iter().for_each(|which| voters.signal(*which, Signal::SIGCONT));
    sql::run(&writer, "ROLLBACK");
    let primary = voters.primary();
    let again = voters.open(primary, "a.db");
    again.busy_timeout(Duration::from_secs(20)).unwrap();
    sql::run(&again, "BEGIN IMMEDIATE; INSERT INTO t VALUES('second'); COMMIT");
    voters.same_bytes("a.db");
    for which in 0..3 {
        assert_eq!(sql::text(&voters.open(which, "a.db"), "SELECT group_concat(v) FROM t"), "second");
    }
}

#[test]
fn a_thread_that_is_stuck_makes_its_node_not_ready_and_gives_the_primary_up() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::Builder::new().prefix("skein-stuck-").tempdir().unwrap();
    let mut nodes: Vec<Node> = Vec::new();
    for which in 1..=3 {
        let mut settings = Settings::primary(&format!("n{which}"));
        settings.bootstrap = which == 1;
        settings.join = nodes.iter().map(|node| node.listen).collect();
        settings.extra.extend(["--stuck-timeout".to_owned(), "1s".to_owned()]);
        if which == 1 {
            // The first checkpoint of a database does not come back for 10 s.
            settings.env.push(("SKEIN_FAULT".to_owned(), "durable_sync:1:stall".to_owned()));
        }
        let mut node = Node::new(dir.path(), settings);
        node.must_start();
        nodes.push(node);
    }
    let voters = Voters::of(nodes, dir);
    voters.wait_voting(3);
    assert_eq!(voters.primary(), 0);
    sql::run(&sql::create(&voters.nodes[0].path("a.db"), "wal", 4096), "CREATE TABLE t(v)");
    let ready = |which: usize| http::request(voters.nodes[which].http, "GET", "/readyz", &[]).unwrap();
    let told = within(Duration::from_secs(20), || {
        let reply = ready(0);
        (reply.status == 503).then(|| reply.text())
    });
    let told = told.expect("a thread is stuck and the node says that it is ready");
    assert!(told.contains("stuck") && told.contains("checkpointing"), "{told}");
    let (second, _) = voters.first_write("a.db", "INSERT INTO t VALUES(1)", &[1, 2]);
    assert_ne!(second, 0);
    let log = voters.nodes[0].log();
    assert!(log.contains("has been checkpointing for"), "{log}");
    let again = within(Duration::from_secs(30), || (ready(0).status == 200).then_some(()));
    assert!(again.is_some(), "the thread has come back, and the node says that it is not ready");
    voters.same_bytes("a.db");
}

#[test]
fn a_voter_with_an_empty_data_directory_is_ready_when_it_has_what_was_committed_at_its_start() {
    let Some(mut voters) = Voters::three() else { return };
    let first = voters.primary();
    let writer = sql::create(&voters.nodes[first].path("a.db"), "wal", 4096);
    sql::run(&writer, "CREATE TABLE t(v); PRAGMA synchronous=NORMAL");
    for _ in 0..2000 {
        sql::run(&writer, "INSERT INTO t VALUES(randomblob(500))");
    }
    voters.same_bytes("a.db");
    let other = (0..3).rfind(|which| *which != first).unwrap();
    let name = voters.nodes[other].settings.name.clone();
    let join = voters.nodes[first].listen;
    voters.nodes[other].terminate();
    voters.nodes[first].must_client(&["members", "remove", &name]);
    std::fs::remove_dir_all(voters.nodes[other].data()).unwrap();
    voters.nodes[other].settings.join = vec![join];
    // Returns when the node says that applications may start.
    voters.nodes[other].must_start();
    let path = voters.nodes[other].path("a.db");
    assert!(path.exists(), "the node is ready and has no database");
    assert_eq!(sql::number(&sql::open(&path), "SELECT count(*) FROM t"), 2000);
}

#[test]
fn a_follower_lets_a_transaction_that_begins_with_the_write_lock_read_where_it_is_told_to() {
    let Some(mut voters) = Voters::three() else { return };
    let first = voters.primary();
    for (db, journal) in [("read.db", "wal"), ("read-journal.db", "delete"), ("wait.db", "wal")] {
        let writer = sql::create(&voters.nodes[first].path(db), journal, 4096);
        sql::run(&writer, "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
        drop(writer);
        voters.same_bytes(db);
    }
    let other = (0..3).find(|which| *which != first).unwrap();
    let option = ["--readonly-on-follower".to_owned(), "read*".to_owned()];
    voters.nodes[other].settings.extra.extend(option);
    voters.nodes[other].restart();
    for db in ["read.db", "read-journal.db"] {
        let reader = voters.open(other, db);
        reader.busy_timeout(Duration::from_secs(10)).unwrap();
        let begun = Instant::now();
        sql::run(&reader, "BEGIN IMMEDIATE");
        assert_eq!(sql::number(&reader, "SELECT count(*) FROM t"), 1, "{db}");
        let refused = reader.execute("INSERT INTO t VALUES(2)", []).unwrap_err();
        assert_eq!(refused.sqlite_error_code(), Some(rusqlite::ErrorCode::ReadOnly), "{db}: {refused}");
        sql::run(&reader, "COMMIT");
        assert!(begun.elapsed() < Duration::from_secs(5), "{db}: it waited {:?}", begun.elapsed());
    }
    let waits = voters.open(other, "wait.db");
    waits.busy_timeout(Duration::from_millis(50)).unwrap();
    let busy = waits.execute_batch("BEGIN IMMEDIATE").unwrap_err();
    assert_eq!(busy.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy), "{busy}");
    drop(waits);
    // Where the primary is, what is opened from then on writes.
    voters.hand_to(other);
    let writer = voters.open(other, "read.db");
    writer.busy_timeout(Duration::from_secs(10)).unwrap();
    sql::run(&writer, "BEGIN IMMEDIATE; INSERT INTO t VALUES(2); COMMIT");
    voters.same_bytes("read.db");
}

#[test]
fn a_node_that_ends_while_applications_have_rollback_databases_open_counts_none_of_them_as_failed() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(dir.path(), Settings::primary("n1"));
    node.must_start();
    let modes = ["delete", "truncate", "persist"];
    let open: Vec<_> =
        modes.iter().map(|mode| sql::create(&node.path(&format!("{mode}.db")), mode, 4096)).collect();
    for db in &open {
        sql::run(db, "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
    }
    sql::run(&open[0], "BEGIN IMMEDIATE; INSERT INTO t VALUES(2)");
    assert!(node.terminate().unwrap().success(), "{}", node.log());
    assert!(!node.log().contains("ERROR"), "{}", node.log());
    drop(open);
    node.must_start();
    for mode in modes {
        let db = sql::open(&node.path(&format!("{mode}.db")));
        assert_eq!(sql::number(&db, "SELECT count(*) FROM t"), 1, "{mode}");
    }
}
