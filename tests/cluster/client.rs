//! Applications of the cluster: processes of this test program that work on a database of one node's mount.
//!
//! A process, because a node that was killed does not come back before its applications have ended, and because
//! nothing else can be ended while it waits for a file system that does not answer.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use serde::{Deserialize, Serialize};

use super::history::{ACCOUNTS, Action, Outcome, Record, Seen, State};
use crate::harness;

/// Carries the orders to the process.
const VARIABLE: &str = "SKEIN_CLUSTER_ORDERS";

/// What a client process is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Orders {
    pub task: Task,
    /// Its name in histories: unique in a run.
    pub client: String,
    pub database: PathBuf,
    pub synchronous: String,
    /// Where its record goes; `Work` makes two of it, see [`Orders::records`].
    pub record: PathBuf,
    pub seconds: f64,
    pub seed: u64,
}

/// The kinds of work.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Task {
    /// Make the database, in this journal mode.
    Found { journal: String },
    /// Write with one connection and read with another until the time is over, whatever happens.
    Work,
    /// Append until one transaction is acknowledged.
    Settle,
    /// Read everything, and let SQLite check everything; the record is an [`Inspection`].
    Inspect,
}

/// What a node's mount shows.
#[derive(PartialEq, Debug, Serialize, Deserialize)]
pub struct Inspection {
    /// SQLite's answer to `PRAGMA integrity_check`.
    pub integrity: String,
    pub seen: Seen,
}

/// A running client process.
pub struct Client {
    pub orders: Orders,
    child: Child,
}

impl Orders {
    /// The histories a process of these orders writes: clients' names and files.
    pub fn records(&self) -> Vec<(String, PathBuf)> {
        let threads: &[&str] = match self.task {
            Task::Work => &["w", "r"],
            Task::Settle => &["s"],
            Task::Found { .. } | Task::Inspect => &[],
        };
        threads.iter().map(|thread| self.thread(thread)).collect()
    }

    fn thread(&self, name: &str) -> (String, PathBuf) {
        (format!("{}{name}", self.client), self.record.with_extension(name))
    }
}

impl Client {
    /// Starts a process.
    pub fn start(orders: Orders) -> Self {
        let stderr = std::fs::File::create(orders.record.with_extension("stderr")).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "client::a_client_process_follows_its_orders", "--nocapture", "--quiet"])
            .env(VARIABLE, serde_json::to_string(&orders).unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        Self { orders, child }
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// Where it does not within `limit`, or fails; then it has been killed.
    pub fn end(&mut self, limit: Duration) -> Result<(), String> {
        let who = format!("client {} of {}", self.orders.client, self.orders.database.display());
        match harness::within(limit, || self.child.try_wait().unwrap()) {
            Some(status) if status.success() => Ok(()),
            Some(status) => {
                let said = std::fs::read_to_string(self.orders.record.with_extension("stderr"));
                Err(format!("{who}: {status}: {}", said.unwrap_or_default()))
            }
            None => {
                let waits = self.waits();
                let killed = self.kill9().map_or_else(|error| format!("; {error}"), |()| String::new());
                Err(format!("{who} does not end within {limit:?}: {waits}{killed}"))
            }
        }
    }

    /// Where in the kernel its threads are.
    fn waits(&self) -> String {
        let tasks =
            std::fs::read_dir(format!("/proc/{}/task", self.child.id())).into_iter().flatten().flatten();
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        tasks
            .map(|task| {
                let [name, wait] = ["comm", "wchan"].map(|file| read(task.path().join(file)));
                format!("{name} in {wait}; ")
            })
            .collect()
    }

    /// Kills it.
    ///
    /// # Errors
    /// Where the kernel does not let it go: it waits for a file system that has taken its request.
    pub fn kill9(&mut self) -> Result<(), String> {
        let _ = self.child.kill();
        match harness::within(harness::PATIENCE, || self.child.try_wait().unwrap()) {
            Some(_) => Ok(()),
            None => Err(format!("client {} cannot be killed: {}", self.orders.client, self.waits())),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Not waited for: the mount it may be waiting for ends later.
        let _ = self.child.kill();
        let _ = self.child.try_wait();
    }
}

/// Not a test of its own: what a client process does. Without orders it has nothing to do.
#[test]
fn a_client_process_follows_its_orders() {
    let Ok(text) = std::env::var(VARIABLE) else { return };
    let orders: Orders = serde_json::from_str(&text).unwrap();
    match &orders.task {
        Task::Found { journal } => found(&orders, journal),
        Task::Work => std::thread::scope(|scope| {
            scope.spawn(|| Worker::new(&orders, "w").work(draw));
            scope.spawn(|| Worker::new(&orders, "r").work(|_| Action::Read));
        }),
        Task::Settle => Worker::new(&orders, "s").settle(),
        Task::Inspect => inspect(&orders),
    }
}

fn found(orders: &Orders, journal: &str) {
    let connection = harness::sql::create(&orders.database, journal, 4096);
    State::found(&connection).unwrap();
}

fn inspect(orders: &Orders) {
    let mut connection = open(&orders.database, Duration::from_secs(10)).unwrap();
    let integrity = harness::sql::text(&connection, "PRAGMA integrity_check");
    let seen = State::read(&mut connection).unwrap().seen();
    std::fs::write(&orders.record, serde_json::to_vec(&Inspection { integrity, seen }).unwrap()).unwrap();
}

/// As an application that expects its database to be there: none is made in its place.
fn open(path: &Path, busy_timeout: Duration) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(busy_timeout)?;
    Ok(connection)
}

fn draw(random: &mut StdRng) -> Action {
    match random.random_range(0..100) {
        0..15 => Action::Read,
        15..60 => {
            let [source, target] = [(); 2].map(|()| random.random_range(0..ACCOUNTS));
            Action::Transfer { source, target, amount: random.random_range(1..50) }
        }
        _ => Action::Append,
    }
}

/// One thread of a client process: a name, a record, a connection.
struct Worker<'a> {
    orders: &'a Orders,
    client: String,
    record: Record,
    random: StdRng,
    start: Instant,
    seq: u64,
}

impl<'a> Worker<'a> {
    fn new(orders: &'a Orders, thread: &str) -> Self {
        let (client, record) = orders.thread(thread);
        let seed = orders.seed ^ u64::from(thread.as_bytes()[0]);
        let (record, random) = (Record::create(&record), StdRng::seed_from_u64(seed));
        Self { orders, client, record, random, start: Instant::now(), seq: 0 }
    }

    fn is_over(&self) -> bool {
        self.start.elapsed().as_secs_f64() >= self.orders.seconds
    }

    fn connect(&mut self) -> Option<Connection> {
        let busy_timeout = Duration::from_millis(self.random.random_range(1000..5000));
        let connection = open(&self.orders.database, busy_timeout).ok()?;
        let synchronous = format!("PRAGMA synchronous={}", self.orders.synchronous);
        connection.execute_batch(&synchronous).ok()?;
        Some(connection)
    }

    fn work(mut self, draw: impl Fn(&mut StdRng) -> Action) {
        let mut connection = None;
        while !self.is_over() {
            let Some(mut open) = connection.take().or_else(|| self.connect()) else {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            let action = draw(&mut self.random);
            let good = self.perform(&mut open, &action);
            // After an error some applications go on with their connection, others with a new one.
            connection = (good || self.random.random_bool(0.5)).then_some(open);
            let pause_ms = match action {
                Action::Read => self.random.random_range(10..30),
                _ if good => self.random.random_range(1..5),
                _ => 50,
            };
            std::thread::sleep(Duration::from_millis(pause_ms));
        }
    }

    fn settle(mut self) {
        while !self.is_over() {
            if let Some(mut open) = self.connect()
                && self.perform(&mut open, &Action::Append)
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("no append to {} was acknowledged", self.orders.database.display());
    }

    /// One operation, recorded; whether it went well.
    fn perform(&mut self, connection: &mut Connection, action: &Action) -> bool {
        self.seq += 1;
        self.record.invoke(self.seq, action);
        let outcome = match action {
            Action::Read => State::read(connection)
                .map_or_else(|error| failed("read", &error), |state| Outcome::Saw(state.seen())),
            write => transact(connection, &self.client, self.seq, write),
        };
        let good = matches!(outcome, Outcome::Ok | Outcome::Saw(_));
        self.record.end(self.seq, outcome);
        good
    }
}

/// One transaction, and what its errors mean.
fn transact(connection: &Connection, client: &str, seq: u64, action: &Action) -> Outcome {
    let take_back = || connection.is_autocommit() || connection.execute_batch("ROLLBACK").is_ok();
    // A connection that goes on after an error may be inside a transaction that could not be taken back.
    if !take_back() {
        return Outcome::Failed("an earlier transaction is still open".into());
    }
    if let Err(error) = connection.execute_batch("BEGIN IMMEDIATE") {
        return failed("begin", &error);
    }
    if let Err(error) = State::write(connection, client, seq, action) {
        take_back();
        return failed("write", &error);
    }
    let Err(error) = connection.execute_batch("COMMIT") else { return Outcome::Ok };
    // Busy leaves the transaction open, to be committed later or taken back.
    let is_open = !connection.is_autocommit();
    match failed("commit", &error) {
        Outcome::Failed(why) if is_open && is_busy(&error) && take_back() => Outcome::Failed(why),
        Outcome::Failed(why) => {
            take_back();
            Outcome::Unknown(why)
        }
        other => other,
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

fn failed(step: &str, error: &rusqlite::Error) -> Outcome {
    let why = format!("{step}: {error}");
    match error.sqlite_error_code() {
        // SQL that cannot be wrong is an error where a table is missing.
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown) | None => {
            Outcome::Corrupt(why)
        }
        Some(_) => Outcome::Failed(why),
    }
}
