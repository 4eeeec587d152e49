//! The daemon alone is stopped while its applications go on: the process that guards the mount keeps them out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nix::sys::signal::Signal;
use rusqlite::{Connection, ErrorCode};

use crate::guarantees::quote;
use crate::harness::{PATIENCE, Voters, eventually, sql, within};

/// An application that commits as fast as it can, and waits for no lock.
struct Writer {
    stop: Arc<AtomicBool>,
    done: Arc<Mutex<Vec<Result<Instant, ErrorCode>>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    fn start(connection: Connection) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopped, told) = (stop.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while !stopped.load(Ordering::SeqCst) {
                number += 1;
                let outcome = match connection.execute("INSERT INTO t VALUES(?1)", [number]) {
                    Ok(_) => Ok(Instant::now()),
                    Err(error) => Err(error.sqlite_error_code().expect("SQLite's error")),
                };
                told.lock().unwrap().push(outcome);
                // What an application does between two transactions; the processors are for the nodes, too.
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        Self { stop, done, thread: Some(thread) }
    }

    fn last_commit(&self) -> Option<Instant> {
        self.done.lock().unwrap().iter().rev().find_map(|outcome| outcome.ok())
    }

    fn is_refused(&self) -> Option<()> {
        let done = self.done.lock().unwrap();
        (done.last() == Some(&Err(ErrorCode::DatabaseBusy))).then_some(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// Three voters, and an application of the first that commits without asking the daemon.
fn busy_primary(synchronous: &str) -> Option<(Voters, usize, Writer)> {
    let voters = Voters::three()?;
    let first = voters.primary();
    let connection = sql::create(&voters.nodes[first].path("a.db"), "wal", 4096);
    sql::run(
        &connection,
        &format!(
            "CREATE TABLE t(v); PRAGMA synchronous={synchronous}; PRAGMA wal_autocheckpoint=0; PRAGMA busy_timeout=0;"
        ),
    );
    let writer = Writer::start(connection);
    eventually("the application commits", || writer.last_commit().map(drop));
    Some((voters, first, writer))
}

#[test]
fn a_daemon_that_is_stopped_lets_nobody_commit_beside_the_next_primary() {
    quote(
        "lets no write transaction begin once its lease has ended, which is before another node can be primary",
    );
    for synchronous in ["NORMAL", "OFF"] {
        let Some((voters, first, writer)) = busy_primary(synchronous) else { return };
        let others: Vec<usize> = (0..3).filter(|which| *which != first).collect();
        let stopped = Instant::now();
        voters.signal(first, Signal::SIGSTOP);
        let next = voters.primary_among(&others);
        // Opened before any of its writes can be acknowledged.
        let begun = Instant::now();
        let connection = within(PATIENCE, || sql::try_open(&voters.nodes[next].path("a.db")).ok()).unwrap();
        sql::run(&connection, "INSERT INTO t VALUES(-1)");
        let refused = within(PATIENCE, || writer.is_refused());
        let last = writer.last_commit().expect("it has committed");
        voters.signal(first, Signal::SIGCONT);
        assert!(refused.is_some(), "{synchronous}: the application of the stopped node is not kept out");
        assert!(last > stopped, "{synchronous}: the kernel serves it without the daemon");
        assert!(
            last <= begun,
            "{synchronous}: it committed {:?} after the next primary could",
            last.saturating_duration_since(begun)
        );
        drop(writer);
        drop(connection);
        voters.same_bytes("a.db");
        voters.hand_to(first);
        sql::run(&voters.open(first, "a.db"), "INSERT INTO t VALUES(-2)");
    }
}

#[test]
fn a_daemon_that_was_stopped_and_is_primary_still_lets_applications_write_again() {
    let Some((voters, first, writer)) = busy_primary("NORMAL") else { return };
    let others: Vec<usize> = (0..3).filter(|which| *which != first).collect();
    for _ in 0..3 {
        others.iter().for_each(|which| voters.signal(*which, Signal::SIGSTOP));
        voters.signal(first, Signal::SIGSTOP);
        eventually("the application is kept out", || writer.is_refused());
        let refused = Instant::now();
        voters.signal(first, Signal::SIGCONT);
        others.iter().for_each(|which| voters.signal(*which, Signal::SIGCONT));
        if voters.primary() != first {
            voters.hand_to(first);
        }
        eventually("it goes on", || writer.last_commit().filter(|at| *at > refused).map(drop));
    }
    drop(writer);
    voters.same_bytes("a.db");
}

#[test]
fn a_guard_that_was_killed_is_followed_by_one_that_knows_the_deadline() {
    let Some((voters, first, writer)) = busy_primary("NORMAL") else { return };
    let others: Vec<usize> = (0..3).filter(|which| *which != first).collect();
    let guard = voters.nodes[first].guard_pid().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(guard), Signal::SIGKILL).unwrap();
    eventually("another one has been told everything", || {
        let now = voters.nodes[first].guard_pid().filter(|now| *now != guard)?;
        let mut held = std::fs::read_dir(format!("/proc/{now}/fd")).ok()?.flatten();
        held.any(|file| std::fs::read_link(file.path()).is_ok_and(|at| at.ends_with("a.db-shm")))
            .then_some(())
    });
    voters.signal(first, Signal::SIGSTOP);
    voters.primary_among(&others);
    let begun = Instant::now();
    eventually("the application is kept out", || writer.is_refused());
    assert!(writer.last_commit().unwrap() <= begun);
    voters.signal(first, Signal::SIGCONT);
    drop(writer);
    voters.same_bytes("a.db");
}
