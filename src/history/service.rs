use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::keeper::Keeper;
use super::limits::AGAIN_AFTER;
use super::{HistoryError, HistoryOptions, Point, PointId, Transactions, base};
use crate::store::{CommittedLog, Store};
use crate::types::{DbName, LogIndex, PointInTime, Timestamp};

/// Change sets of so long are written together.
const WRITE_EVERY: Duration = Duration::from_millis(250);
/// What is too old is looked for so often.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// How long a question waits for what is committed to be counted as applied.
const APPLIED_WAIT_MAX: Duration = Duration::from_secs(1);
/// How far the log is kept is noted so often.
const NOTE_EVERY: Duration = Duration::from_secs(10);

/// The earlier states of all databases of a node.
pub struct History {
    keeper: Mutex<Keeper>,
    store: Arc<Store>,
    log: Arc<dyn CommittedLog>,
    runtime: Handle,
    /// No database is copied any more.
    stopped: AtomicBool,
}

impl History {
    /// The history of the databases of `store`, which changes as `log` says. To be called inside the runtime.
    pub fn new(options: HistoryOptions, store: Arc<Store>, log: Arc<dyn CommittedLog>) -> Arc<Self> {
        let root = store.layout().history();
        let keeper = Mutex::new(Keeper::new(root, options, log.clone(), store.blobs().clone()));
        Arc::new(Self { keeper, store, log, runtime: Handle::current(), stopped: AtomicBool::new(false) })
    }

    /// Follows the log until the node ends.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut applied = self.log.applied();
        let (mut tidied, mut noted) = (Instant::now(), Instant::now());
        let mut again: BTreeMap<DbName, Instant> = BTreeMap::new();
        loop {
            tokio::select! {
                changed = applied.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(TIDY_EVERY) => {}
                () = shutdown.cancelled() => break,
            }
            tokio::select! {
                () = tokio::time::sleep(WRITE_EVERY) => {}
                () = shutdown.cancelled() => break,
            }
            let (tidy, note) = (tidied.elapsed() >= TIDY_EVERY, noted.elapsed() >= NOTE_EVERY);
            let (history, known) = (self.clone(), std::mem::take(&mut again));
            let step = tokio::task::spawn_blocking(move || history.step(tidy, note, known)).await;
            let Ok(waiting) = step else { return };
            again = waiting;
            let now = Instant::now();
            tidied = if tidy { now } else { tidied };
            noted = if note { now } else { noted };
        }
        let ended = tokio::task::spawn_blocking(move || {
            let mut keeper = self.keeper();
            keeper.catch_up().and_then(|()| keeper.store_cursor())
        });
        if let Ok(Err(error)) = ended.await {
            tracing::warn!(%error, "the local history was not written to its end");
        }
    }

    /// Lets go of databases, for the node ends: a copy under way is given up, and none is begun.
    pub fn stop_copying(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Writes what the log has got, begins what needs a copy, and gives up what is too old. Returns when databases that could
    /// not be copied are tried again.
    fn step(
        &self,
        tidy: bool,
        note: bool,
        mut again: BTreeMap<DbName, Instant>,
    ) -> BTreeMap<DbName, Instant> {
        let wanted: Vec<DbName> = {
            let mut keeper = self.keeper();
            if let Err(error) = keeper.catch_up() {
                tracing::warn!(%error, "the local history is behind");
            }
            if tidy {
                keeper.tidy(Timestamp::now());
            }
            if note && let Err(error) = keeper.store_cursor() {
                tracing::debug!(%error, "the next start will look at more of the log");
            }
            match self.stopped.load(Ordering::Relaxed) {
                true => Vec::new(),
                false => keeper.needs_base.iter().cloned().collect(),
            }
        };
        again.retain(|db, _| wanted.contains(db));
        for db in wanted
            .into_iter()
            .filter(|db| again.get(db).is_none_or(|at| *at <= Instant::now()))
            .collect::<Vec<_>>()
        {
            if let Err(error) = self.begin(&db) {
                tracing::warn!(%db, %error, "no local history of this database for now");
                again.insert(db, Instant::now() + AGAIN_AFTER);
            }
        }
        again
    }

    /// Begins a generation with a copy of the database.
    fn begin(&self, db: &DbName) -> Result<(), HistoryError> {
        let room = |bytes: u64| {
            let keeper = self.keeper();
            let within = keeper.bytes().saturating_add(bytes) <= keeper.options.bytes_max;
            within && keeper.has_room_for(bytes)
        };
        let copied = base::copy(&self.store, db, room, &self.stopped)?;
        let mut keeper = self.keeper();
        match copied {
            Some(copied) => keeper.begin_with(db, copied),
            None => {
                keeper.needs_base.remove(db);
                Ok(())
            }
        }
    }

    fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keeper with all that is committed here, of `db` at least: a commit is answered a moment before the log counts it as
    /// applied.
    fn current(&self, db: &DbName) -> Result<MutexGuard<'_, Keeper>, HistoryError> {
        let index = self.store.get(db).map_or(LogIndex::ZERO, |database| database.index());
        let mut applied = self.log.applied();
        if *applied.borrow() < index {
            // Where another database keeps the log back what is there has to do.
            let reached = applied.wait_for(|applied| *applied >= index);
            let _late = self
                .runtime
                .block_on(async { tokio::time::timeout(APPLIED_WAIT_MAX, reached).await.is_err() });
        }
        let mut keeper = self.keeper();
        keeper.catch_up()?;
        Ok(keeper)
    }

    /// A database as it was. Blocking.
    ///
    /// # Errors
    /// `NotFound` where that is not known; the text says what is.
    pub fn point(&self, db: &DbName, at: PointInTime) -> Result<Point, HistoryError> {
        let (parts, at) = {
            let keeper = self.current(db)?;
            let found = keeper.find(db, at, Timestamp::now())?;
            (found.parts(), found.at)
        };
        Point::open(parts, at)
    }

    /// The newest transactions of a database, at most `limit`. Blocking.
    ///
    /// # Errors
    /// `NotFound` where nothing is known of it.
    pub fn transactions(&self, db: &DbName, limit: usize) -> Result<Transactions, HistoryError> {
        self.current(db)?.list(db, limit)
    }

    /// The names that have a history, of databases that were dropped as well; none where it cannot be read. Blocking.
    pub fn names(&self) -> Vec<DbName> {
        let mut keeper = self.keeper();
        match keeper.catch_up() {
            Ok(()) => keeper.names().cloned().collect(),
            Err(_) => Vec::new(),
        }
    }

    /// The name of the point that is meant. Blocking.
    ///
    /// # Errors
    /// As [`point`](Self::point).
    pub fn point_id(&self, db: &DbName, at: PointInTime) -> Result<PointId, HistoryError> {
        let (parts, at, generation) = {
            let keeper = self.current(db)?;
            let found = keeper.find(db, at, Timestamp::now())?;
            (found.parts(), found.at, found.generation.index())
        };
        let header = Point::open(parts, at)?.header();
        let none = || HistoryError::NotFound(format!("{db} had no transaction then"));
        let txid = header.pos.txid.ok_or_else(none)?;
        let (size_bytes, time) = (header.bytes(), header.time);
        Ok(PointId { db: db.clone(), generation, txid, size_bytes, time })
    }

    /// The point of that name. Blocking.
    ///
    /// # Errors
    /// `NotFound` where it is not kept any more.
    pub fn open(&self, point: &PointId) -> Result<Point, HistoryError> {
        let parts = self.keeper().named(point)?.parts();
        Point::open(parts, Some(point.txid))
    }

    /// The newest points of a database, at most `limit`. Blocking.
    ///
    /// # Errors
    /// As [`transactions`](Self::transactions).
    pub fn point_ids(&self, db: &DbName, limit: usize) -> Result<Vec<PointId>, HistoryError> {
        self.current(db)?.ids(db, limit)
    }

    /// What all files take, in bytes.
    pub fn bytes(&self) -> u64 {
        self.keeper().bytes()
    }
}
