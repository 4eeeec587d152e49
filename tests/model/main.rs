//! Random SQL over several connections on the mount and on plain SQLite: one definition of correct, SQLite's own.
//!
//! Each statement must give the same rows, the same number of changes or the same error on both; afterwards the
//! replica must read the same rows, and all nodes hold the same bytes as plain SQLite.
//! `SKEIN_MODEL_ROUNDS` (default 12: each journal mode with each page size once) rounds of `SKEIN_MODEL_STEPS`
//! (default 250) statements; `SKEIN_MODEL_SEED` repeats from one seed.

#[path = "../harness/mod.rs"]
mod harness;

mod statements;

use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::sql::{self, JOURNAL_MODES, PAGE_SIZES};
use harness::{App, Cluster, Options};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode};

const CONNECTIONS: usize = 3;

/// What a statement gave: its rows and the connection's count of changed rows, or SQLite's error code.
#[derive(PartialEq, Debug)]
enum Outcome {
    Rows(Vec<Vec<Value>>, u64),
    Failed(Option<ErrorCode>),
}

/// The connections to one of the two databases.
struct World {
    path: PathBuf,
    journal: &'static str,
    synchronous: &'static str,
    connections: Vec<Option<Connection>>,
}

impl World {
    fn new(path: PathBuf, round: &Round) -> Self {
        let connections = (0..CONNECTIONS).map(|_| None).collect();
        Self { path, journal: round.journal, synchronous: round.synchronous, connections }
    }

    /// Opens the connection where it is closed; another one's lock may stand in the way of its journal mode.
    fn connection(&mut self, number: usize) -> rusqlite::Result<&Connection> {
        if self.connections[number].is_none() {
            let connection = sql::open(&self.path);
            connection.busy_timeout(Duration::ZERO)?;
            // The journal mode of a connection, except WAL's, is its own.
            connection.query_row(&format!("PRAGMA journal_mode={}", self.journal), [], |_| Ok(()))?;
            connection
                .execute_batch(&format!("PRAGMA synchronous={}; PRAGMA cache_size=10", self.synchronous))?;
            self.connections[number] = Some(connection);
        }
        Ok(self.connections[number].as_ref().expect("just opened"))
    }

    fn run(&mut self, number: usize, statement: &str) -> Outcome {
        let connection = match self.connection(number) {
            Ok(connection) => connection,
            Err(error) => return Outcome::Failed(error.sqlite_error_code()),
        };
        match sql::rows(connection, statement) {
            // What a checkpoint reports depends on who else has the database open.
            Ok(_) if statement.starts_with("PRAGMA wal_checkpoint") => Outcome::Rows(Vec::new(), 0),
            Ok(rows) => Outcome::Rows(rows, connection.total_changes()),
            Err(error) => Outcome::Failed(error.sqlite_error_code()),
        }
    }

    /// Ends all transactions and connections; what was not committed is rolled back.
    fn close(&mut self) {
        self.connections.iter_mut().for_each(|connection| *connection = None);
    }
}

/// One round's place in the matrix.
#[derive(Clone, Debug)]
struct Round {
    seed: u64,
    journal: &'static str,
    page_size: u32,
    synchronous: &'static str,
    /// Readers on both nodes check the invariant all the time; they also make writers wait, so that the order of
    /// page writes, not the content, may differ from plain SQLite's.
    watched: bool,
}

impl Round {
    fn new(seed: u64) -> Self {
        let place = usize::try_from(seed - 1).expect("small");
        Self {
            seed,
            journal: JOURNAL_MODES[place % JOURNAL_MODES.len()],
            page_size: PAGE_SIZES[place / JOURNAL_MODES.len() % PAGE_SIZES.len()],
            synchronous: if (place / 2).is_multiple_of(2) { "full" } else { "normal" },
            watched: place % 3 == 1,
        }
    }

    fn found(&self, path: &Path) {
        let connection = sql::create(path, self.journal, self.page_size);
        sql::run(&connection, statements::SCHEMA);
    }
}

struct Pair<'a> {
    cluster: &'a mut Cluster,
    mount: World,
    plain: World,
    watchers: Vec<App>,
    db: String,
    round: Round,
}

impl Pair<'_> {
    fn watch(&mut self) {
        if self.round.watched {
            let nodes = std::iter::once(&self.cluster.primary).chain(&self.cluster.replicas);
            self.watchers = nodes.map(|node| App::transfer(&node.path(&self.db), &["--watch"])).collect();
        }
    }

    fn stop_watching(&mut self) {
        for mut watcher in self.watchers.drain(..) {
            if watcher.has_ended() {
                panic!("{:?}: a reader ended: {:?}", self.round, watcher.end());
            }
            let said = watcher.kill9();
            assert!(!said.iter().any(|line| line.starts_with("broken")), "{:?}: {said:?}", self.round);
        }
    }

    /// Runs a statement on both; a lock held for a moment by a reader or the daemon is waited for.
    fn step(&mut self, number: usize, statement: &str) {
        let expected = self.plain.run(number, statement);
        let busy = Outcome::Failed(Some(ErrorCode::DatabaseBusy));
        if expected == busy && self.plain.connections[number].is_none() {
            // It could not even be opened, as when the first of several connections is recovering the log. On the
            // mount the daemon has the database open already: nothing to compare, and no connection on either.
            return;
        }
        let mut got = self.mount.run(number, statement);
        let patience = std::time::Instant::now();
        while got == busy && expected != busy && patience.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
            got = self.mount.run(number, statement);
        }
        assert_eq!(got, expected, "left: mount, right: plain SQLite; connection {number}: {statement}");
    }

    /// Ends every transaction and compares everything both say.
    fn compare(&mut self) {
        self.mount.close();
        self.plain.close();
        let (mount, plain) = (sql::open(&self.mount.path), sql::open(&self.plain.path));
        assert_eq!(sql::dump(&mount), sql::dump(&plain), "left: mount, right: plain SQLite");
        sql::check_integrity(&mount);
    }

    fn restart_primary(&mut self) {
        self.stop_watching();
        self.compare();
        if self.round.synchronous == "full" {
            self.cluster.primary.kill9();
        } else {
            self.cluster.primary.terminate();
        }
        self.cluster.primary.must_start();
        self.compare();
        self.watch();
    }

    /// The replica reads the same, and all nodes hold the bytes that plain SQLite holds.
    fn compare_nodes(&mut self) {
        self.stop_watching();
        self.compare();
        self.cluster.converge(&self.db);
        let plain = sql::open(&self.plain.path);
        let expected = sql::dump(&plain);
        for replica in &self.cluster.replicas {
            let read = harness::eventually("the replica has the last transaction", || {
                let connection = sql::try_open(&replica.path(&self.db)).ok()?;
                (sql::dump(&connection) == expected).then_some(connection)
            });
            sql::check_integrity(&read);
        }
        drop(plain);
        if self.round.journal == "wal" {
            sql::run(&sql::open(&self.plain.path), "PRAGMA wal_checkpoint(TRUNCATE)");
        }
        let bytes = self.cluster.same_bytes(&self.db);
        if !self.round.watched {
            let plain = std::fs::read(&self.plain.path).unwrap();
            assert_eq!(bytes.len(), plain.len(), "size of the export and of plain SQLite's file");
            let different = bytes.iter().zip(&plain).position(|(left, right)| left != right);
            let page = different.map(|at| at / self.round.page_size as usize + 1);
            assert_eq!(page, None, "first page that differs from plain SQLite's, at byte {different:?}");
        }
    }
}

fn run_round(cluster: &mut Cluster, round: &Round) {
    let db = format!("model-{}.db", round.seed);
    let dir = tempfile::tempdir().unwrap();
    let (mount, plain) = (cluster.primary.path(&db), dir.path().join("plain.db"));
    round.found(&mount);
    round.found(&plain);
    let (mount, plain) = (World::new(mount, round), World::new(plain, round));
    let mut pair = Pair { cluster, mount, plain, watchers: Vec::new(), db, round: round.clone() };
    let mut random = StdRng::seed_from_u64(round.seed);
    let steps = harness::number("SKEIN_MODEL_STEPS", 250);
    pair.watch();
    for step in 1..=steps {
        match random.random_range(0..400) {
            0 => pair.restart_primary(),
            1..8 => {
                let number = random.random_range(0..CONNECTIONS);
                (pair.mount.connections[number], pair.plain.connections[number]) = (None, None);
            }
            _ => {
                let number = random.random_range(0..CONNECTIONS);
                let statement = statements::draw(&mut random, step);
                pair.step(number, &statement);
            }
        }
        if step % 100 == 0 {
            pair.compare();
        }
    }
    pair.compare_nodes();
}

fn model(options: &Options) {
    let Some(mut cluster) = Cluster::start(options) else { return };
    let first = harness::number("SKEIN_MODEL_SEED", 1);
    for seed in first..first + harness::number("SKEIN_MODEL_ROUNDS", 12) {
        let round = Round::new(seed);
        eprintln!("SKEIN_MODEL_SEED={seed} SKEIN_MODEL_ROUNDS=1 scripts/model: {round:?}, {options:?}");
        run_round(&mut cluster, &round);
    }
}

#[test]
fn the_mount_and_its_replica_answer_as_plain_sqlite_does() {
    model(&Options::replicas(1));
}

#[test]
fn the_mount_and_its_replica_answer_as_plain_sqlite_does_without_passthrough() {
    model(&Options::replicas(1).without_passthrough());
}
