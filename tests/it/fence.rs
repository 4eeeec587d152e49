//! A primary that has lost its quorum stops writing before another one can begin, whatever else it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::guarantees::quote;
use crate::harness::{Voters, http, sql, within};

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
