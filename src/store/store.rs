use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock};
use std::time::Instant;

use tokio::sync::{broadcast, watch};

use super::claims::Claims;
use super::copying::Copying;
use super::durable_log::DurableLog;
use super::earlier_mounts::HeldDatabases;
use super::event::StoreEvent;
use super::freshness::Lag;
use super::log_positions::{LogPosition, LogPositions};
use super::namespace::Namespace;
use super::node_facts::{FactsSource, NodeFacts};
use super::roles::PrimarySince;
use super::run_sink::RunSink;
use super::{Change, CommitSink, Layout, PrimaryHolds, StoreError};
use crate::db::{Database, DbError, Done, KernelCache, Limits, MountGuard, Shared, WalWatcher};
use crate::io::blobs::BlobStore;
use crate::io::watchdog;
use crate::types::{Access, DbName, JournalMode, LogIndex, NodeId, Pos, Txid};

/// Events kept for a slow receiver.
const EVENTS_MAX: usize = 1024;

/// Has a database fetched that is not served; must not block.
pub type Repair = Box<dyn Fn(&DbName) + Send + Sync>;

/// What the store is opened with.
pub struct StoreOptions {
    /// The data directory.
    pub layout: Layout,
    /// This node.
    pub node: NodeId,
    /// What applications may do at first.
    pub access: Access,
    /// Large change sets.
    pub blobs: Arc<BlobStore>,
    /// Inodes of database files that processes have open through a mount of an earlier run: they keep those, and the
    /// databases go on in copies.
    pub held_files: BTreeSet<u64>,
}

/// The set of databases of this node.
pub struct Store {
    pub(super) layout: Layout,
    pub(super) shared: Arc<Shared>,
    pub(super) databases: RwLock<BTreeMap<DbName, Arc<Database>>>,
    pub(super) durable: Mutex<DurableLog>,
    pub(super) events: broadcast::Sender<StoreEvent>,
    pub(super) sink: Arc<RunSink>,
    /// Drops and renames proposed here.
    pub(super) claims: Claims,
    /// As in [`DurableLog`], to be looked at without waiting for the disk.
    pub(super) ends: Mutex<BTreeMap<DbName, LogIndex>>,
    /// Databases that lack entries the log has given them already.
    pub(super) behind: Mutex<Behind>,
    pub(super) names: Namespace,
    /// What the log says of each database; `None` on a replica, which is never primary.
    pub(super) positions: Option<Arc<LogPositions>>,
    pub(super) repair: OnceLock<Repair>,
    holds: OnceLock<Arc<dyn PrimaryHolds>>,
    facts: OnceLock<FactsSource>,
    /// A scrub is at work.
    pub(super) scrubs: AtomicBool,
    /// Databases that were to be fetched, and what the log said of them then.
    asked: Mutex<BTreeMap<DbName, Option<LogPosition>>>,
    /// Databases without content that were found at the start and may not be in the log.
    unlogged: Mutex<Vec<DbName>>,
    applied: AtomicU64,
    taken: AtomicU64,
    primary: Mutex<Option<PrimaryInfo>>,
    /// Counts steps of any database; waiters look again when it moves.
    pub(super) steps: watch::Sender<u64>,
    roles: Mutex<()>,
    since: Mutex<PrimarySince>,
    pub(super) lag: Lag,
    copying: Arc<Copying>,
    /// Another node is primary, and its history is this node's.
    pub(super) follows: AtomicBool,
    held: HeldDatabases,
}

/// Databases that lack entries which wait for a slow one's turn.
#[derive(Default)]
pub(super) struct Behind {
    /// Those that do now,
    pub now: BTreeSet<DbName>,
    /// that did when this node became primary,
    pub at_promotion: BTreeSet<DbName>,
    /// and whose undecided transactions are decided once they do no more.
    pub unresolved: BTreeSet<DbName>,
    /// The log has been applied as far as it went at the start.
    pub replay_over: bool,
}

/// One line of `skein db list`.
#[derive(Clone, Debug)]
pub struct DbStatus {
    /// Its name.
    pub name: DbName,
    /// Where it stands.
    pub pos: Pos,
    /// How it protects transactions; `None` while empty.
    pub mode: Option<JournalMode>,
    /// Size of the database in bytes.
    pub size_bytes: u64,
    /// Whether applications have it open.
    pub attached: bool,
    /// Why it is not served, where its copy here is wrong.
    pub failure: Option<String>,
    /// Processes that have it open through a mount of an earlier run: applications cannot open it before they close it.
    pub held_by: Vec<i32>,
}

impl DbStatus {
    /// Whether there is a database to be spoken of: one without a transaction is only a name, unless it lacks them.
    fn is_one(&self) -> bool {
        self.pos.txid.is_some() || self.failure.is_some()
    }
}

/// The primary as this node knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrimaryInfo {
    /// Its name.
    pub name: String,
    /// HOST:PORT of its gRPC, as advertised.
    pub addr: String,
    /// URL of its HTTP, as advertised.
    pub http: String,
}

impl PrimaryInfo {
    /// The host in its address, without a port; an IPv6 address without brackets. What LiteFS calls its hostname.
    pub fn host(&self) -> &str {
        let host = self.addr.rsplit_once(':').map_or(self.addr.as_str(), |(host, _)| host);
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }
}

impl Store {
    /// Opens the databases below the data directory. Does not redo: the log does that through [`Store::apply`].
    ///
    /// # Errors
    /// Where the directory, or a database in it, cannot be read or is damaged.
    pub fn open(options: StoreOptions) -> Result<Arc<Self>, StoreError> {
        let StoreOptions { layout, node, access, blobs, held_files } = options;
        super::open::prepare(&layout)?;
        let durable = DurableLog::open(layout.applied())?;
        super::rename::finish_renames(&layout, durable.index(), durable.ends())?;
        let watcher = WalWatcher::start()
            .map_err(|source| StoreError::Io { what: "starting the WAL watcher".into(), source })?;
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let (steps, _) = watch::channel(0);
        let observer = super::event::observer(events.clone(), steps.clone());
        let shared = Arc::new(Shared::new(node, blobs, layout.discarded(), layout.tmp(), access, observer));
        let since = PrimarySince::open(layout.primary_since())?;
        shared.set_tails_count(since.index().is_some());
        shared.set_nothing_unsynced_lost(since.is_of_this_boot());
        shared.set_watcher(watcher);
        let found = super::open::databases(&layout, &shared, &held_files)?;
        let names = super::open::names(&layout, &found)?;
        let empty = found.values().filter(|database| database.pos().txid.is_none());
        let unlogged: Vec<DbName> =
            empty.map(|database| database.name().clone()).filter(|name| !names.has_database(name)).collect();
        let positions = match access {
            Access::ReadOnly => None,
            _ => Some(Arc::new(super::open::positions(&layout, &found)?)),
        };
        let (applied, taken) = (durable.index().get().into(), durable.index().get().into());
        let ends = Mutex::new(durable.ends().clone());
        let store = Arc::new(Self {
            layout,
            shared,
            databases: RwLock::new(found),
            durable: Mutex::new(durable),
            events,
            sink: Arc::new(RunSink::new(node, positions.clone())),
            claims: Claims::default(),
            ends,
            behind: Mutex::default(),
            names,
            positions,
            repair: OnceLock::new(),
            holds: OnceLock::new(),
            facts: OnceLock::new(),
            scrubs: AtomicBool::new(false),
            asked: Mutex::default(),
            unlogged: Mutex::new(unlogged),
            applied,
            taken,
            primary: Mutex::new(None),
            steps,
            roles: Mutex::new(()),
            since: Mutex::new(since),
            lag: Lag::default(),
            copying: Arc::default(),
            follows: AtomicBool::new(false),
            held: HeldDatabases::default(),
        });
        Ok(store)
    }

    /// The last entry that databases on disk need no redo of, while no node runs there.
    ///
    /// # Errors
    /// Where the note is damaged.
    pub fn durable_index_in(layout: &Layout) -> Result<LogIndex, StoreError> {
        Ok(DurableLog::open(layout.applied())?.index())
    }

    /// Forgets how far a log was applied: another one, which brings everything again, takes its place.
    ///
    /// # Errors
    /// Where the note cannot be removed.
    pub fn forget_log(layout: &Layout) -> Result<(), StoreError> {
        for path in [layout.applied(), layout.positions()] {
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(StoreError::Io { what: format!("removing {}", path.display()), source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Connects the log's entrance; until then no change can be captured.
    pub fn set_sink(&self, sink: Arc<dyn CommitSink>) {
        self.sink.connect(sink);
        self.shared.set_sink(self.sink.clone());
    }

    /// Offers the calling thread to the log, see [`CommitSink::drive`].
    pub fn drive_log(&self) {
        self.sink.drive();
    }

    /// Connects the mount; until then no application has anything open.
    pub fn set_kernel_cache(&self, cache: Arc<dyn KernelCache>) {
        self.shared.set_cache(cache);
    }

    /// Connects who knows this node as a whole; the first call counts.
    pub fn set_facts(&self, source: FactsSource) {
        let _ = self.facts.set(source);
    }

    /// What this node says of itself; `None` until it is known. May read the file system.
    pub fn facts(&self) -> Option<NodeFacts> {
        self.facts.get().map(|source| source())
    }

    /// Connects who makes this node primary for an application; the first call counts.
    pub fn set_holds(&self, holds: Arc<dyn PrimaryHolds>) {
        let _ = self.holds.set(holds);
    }

    /// Who makes this node primary for an application, once connected.
    pub fn holds(&self) -> Option<&Arc<dyn PrimaryHolds>> {
        self.holds.get()
    }

    /// Connects who keeps fences when this process is gone.
    pub fn set_mount_guard(&self, guard: Arc<dyn MountGuard>) {
        self.shared.set_guard(guard);
    }

    /// What bounds the writers of its databases.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// The data directory's names.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Large change sets.
    pub fn blobs(&self) -> &Arc<BlobStore> {
        &self.shared.blobs
    }

    /// This node's identity.
    pub fn node(&self) -> NodeId {
        self.shared.node
    }

    // ---- roles

    /// What applications may do now.
    pub fn access(&self) -> Access {
        self.shared.access()
    }

    /// The primary as last heard of; `None` where unknown.
    pub fn primary(&self) -> Option<PrimaryInfo> {
        self.lock_primary().clone()
    }

    /// What is fetched from other nodes at the moment.
    pub fn copying(&self) -> &Arc<Copying> {
        &self.copying
    }

    /// Notes who is primary.
    pub fn set_primary(&self, primary: Option<PrimaryInfo>) {
        let mut known = self.lock_primary();
        if *known != primary {
            known.clone_from(&primary);
            drop(known);
            // Nobody listening is no error.
            let _ = self.events.send(StoreEvent::Primary(primary));
        }
    }

    pub(super) fn lock_unlogged(&self) -> MutexGuard<'_, Vec<DbName>> {
        self.unlogged.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn lock_asked(&self) -> MutexGuard<'_, BTreeMap<DbName, Option<LogPosition>>> {
        self.asked.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn lock_roles(&self) -> MutexGuard<'_, ()> {
        self.roles.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn lock_since(&self) -> MutexGuard<'_, PrimarySince> {
        self.since.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn lock_primary(&self) -> MutexGuard<'_, Option<PrimaryInfo>> {
        self.primary.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    // ---- the set

    /// The database of that name.
    pub fn get(&self, name: &DbName) -> Option<Arc<Database>> {
        self.databases.read().unwrap_or_else(|poisoned| poisoned.into_inner()).get(name).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Database>> {
        self.databases.read().unwrap_or_else(|poisoned| poisoned.into_inner()).values().cloned().collect()
    }

    /// An empty database for an application of this node; it joins the log with its first transaction.
    ///
    /// # Errors
    /// `NotPrimary` where this node may not write; `Io` where the files cannot be made.
    pub fn create(&self, name: &DbName) -> Result<Arc<Database>, StoreError> {
        if self.access() != Access::Write {
            return Err(DbError::NotPrimary(name.clone()).into());
        }
        self.check_place(name, None)?;
        self.get_or_make(name)
    }

    /// The database of that name, made where it does not exist.
    pub(super) fn get_or_make(&self, name: &DbName) -> Result<Arc<Database>, StoreError> {
        // In this order everywhere: whoever notes that a database is behind looks for it then.
        let behind = self.lock_behind();
        let mut databases = self.databases.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(database) = databases.get(name) {
            return Ok(database.clone());
        }
        let database = super::open::make(&self.layout, name, self.end_of(name), &self.shared)?;
        database.set_behind(behind.now.contains(name));
        databases.insert(name.clone(), database.clone());
        Ok(database)
    }

    /// All names, also of databases without a transaction.
    pub(super) fn names(&self) -> Vec<DbName> {
        self.databases.read().unwrap_or_else(|poisoned| poisoned.into_inner()).keys().cloned().collect()
    }

    /// Whether a database may have this name: none has the place of a directory above it, or below it. `but` is about
    /// to give its own name up.
    ///
    /// # Errors
    /// `Invalid`, naming the database that is in the way.
    pub(super) fn check_place(&self, name: &DbName, but: Option<&DbName>) -> Result<(), StoreError> {
        let is_above = |above: &DbName, below: &DbName| {
            below.as_str().strip_prefix(above.as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        for other in self.names().iter().filter(|other| but != Some(*other)) {
            let why = match (is_above(other, name), is_above(name, other)) {
                (true, _) => format!("{other} is a database, and not a directory that {name} could be in"),
                (_, true) => format!("{name} is the directory of database {other}"),
                _ => continue,
            };
            return Err(
                DbError::Invalid { db: name.clone(), why: format!("{why}; choose another name") }.into()
            );
        }
        Ok(())
    }

    /// All databases that have a transaction, by name, or should have one.
    pub fn list(&self) -> Vec<DbStatus> {
        self.all().iter().map(|database| self.status_of(database)).filter(DbStatus::is_one).collect()
    }

    /// One of them.
    pub fn status(&self, name: &DbName) -> Option<DbStatus> {
        self.get(name).map(|database| self.status_of(&database)).filter(DbStatus::is_one)
    }

    fn status_of(&self, database: &Database) -> DbStatus {
        let (page_size, pages) = database.size();
        DbStatus {
            name: database.name().clone(),
            pos: database.pos(),
            mode: database.journal_mode(),
            size_bytes: pages.bytes(page_size),
            attached: database.attached(),
            failure: database.failure(),
            held_by: self.held_by(database.name()).unwrap_or_default(),
        }
    }

    /// Notes which databases processes have open through mounts of earlier runs; gives those that they have no more.
    pub fn set_held(&self, held: BTreeMap<DbName, BTreeSet<i32>>) -> Vec<DbName> {
        self.held.set(held)
    }

    /// The processes that have a database open through a mount of an earlier run; `None` where none has.
    pub fn held_by(&self, name: &DbName) -> Option<Vec<i32>> {
        self.held.by(name)
    }

    /// The super-journal at `path` (a backing file) is unlinked: captures all its databases as one entry first,
    /// then removes the file.
    pub fn super_journal_unlinked(self: &Arc<Self>, path: &Path, done: Done) {
        let (store, name) = (self.clone(), path.file_name().unwrap_or_default().to_owned());
        let removed: Done = Box::new(move |result| {
            if result.is_ok() {
                store.shared.super_journals.removed(&name);
            }
            done(result);
        });
        super::group::commit(self, &self.sink, path, removed);
    }

    /// An application has made the super-journal at `path` (a backing file).
    pub fn super_journal_made(&self, path: &Path) {
        self.shared.super_journals.made(path.file_name().unwrap_or_default());
    }

    // ---- the log

    /// The highest index up to which every database file on disk is durable without the log: entries at or
    /// below it need no redo. Never above the last applied index.
    pub fn durable_index(&self) -> LogIndex {
        self.lock_durable().index()
    }

    pub(super) fn lock_durable(&self) -> MutexGuard<'_, DurableLog> {
        self.durable.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The log is about to be applied again from [`Store::durable_index`] on, as at every start of a voter.
    pub fn begin_replay(&self) {
        self.all().iter().for_each(|database| database.begin_replay());
    }

    /// It has been applied as far as it went then; databases that do not agree with it are not served. Those that lack
    /// entries are looked at when they have them.
    pub fn end_replay(&self) {
        self.lock_behind().replay_over = true;
        let whole = self.all().into_iter().filter(|database| !database.is_behind());
        whole.for_each(|database| database.end_replay());
        if let Err(error) = self.prove_all() {
            tracing::error!(%error, "cannot hold the databases against the log");
        }
        self.settle_names();
    }

    /// Whether the log has been applied as far as it went at the start; a replica has none of its own.
    pub fn is_replayed(&self) -> bool {
        self.positions.is_none() || self.lock_behind().replay_over
    }

    /// Entry `index` is committed: notes what the log says of its databases from now on. Before they are given it.
    pub fn logged(&self, index: LogIndex, change: &Change) {
        if let Some(positions) = &self.positions {
            positions.note(index, &change.kind);
        }
    }

    /// Notes that the log has been applied up to `index` (also where the entry changed no database).
    pub fn applied(&self, index: LogIndex) {
        self.applied.fetch_max(index.get(), Ordering::SeqCst);
    }

    /// Notes that the log has given its databases everything up to `index`; some may still lack it.
    pub fn taken(&self, index: LogIndex) {
        self.taken.fetch_max(index.get(), Ordering::SeqCst);
    }

    /// The last entry that the log has given its databases.
    pub fn taken_index(&self) -> LogIndex {
        LogIndex::new(self.taken.load(Ordering::SeqCst)).max(self.applied_index())
    }

    /// Last entry applied, in every database.
    pub fn applied_index(&self) -> LogIndex {
        LogIndex::new(self.applied.load(Ordering::SeqCst))
    }

    /// Checkpoints databases that have changed so that [`Store::durable_index`] moves up. Blocking.
    ///
    /// # Errors
    /// Where a file cannot be written or synced.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        let call = watchdog::begin("checkpointing");
        // Read first: what is applied while the files are synced counts next time.
        let mut durable = self.applied_index();
        let mut first_error = None;
        for database in self.all() {
            if let Err(error) = database.make_durable()
                && !database.is_gone()
            {
                first_error.get_or_insert(error);
            }
            call.goes_on();
            if let Some(first) = database.dirty_since() {
                durable = durable.min(LogIndex::new(first.get().saturating_sub(1)));
            }
        }
        self.names.make_durable(&self.layout.dbs())?;
        if let Some(positions) = &self.positions {
            positions.make_durable()?;
        }
        self.lock_durable().advance(durable)?;
        self.ends.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).retain(|_, at| *at > durable);
        self.forget_renamed(durable)?;
        first_error.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Lets go of the mount: afterwards it can be unmounted, and no application is served. Blocking.
    ///
    /// # Errors
    /// Where what is captured cannot be made durable in the database files.
    pub fn close(&self) -> Result<(), StoreError> {
        if let Some(watcher) = self.shared.watcher() {
            watcher.stop();
        }
        self.shared.set_ending();
        self.claims.end();
        self.all().iter().for_each(|database| database.close());
        self.remember_left_open()?;
        self.checkpoint()
    }

    // ---- watching

    /// Events from now on; a slow receiver is told how many it missed.
    pub fn events(&self) -> broadcast::Receiver<StoreEvent> {
        self.events.subscribe()
    }

    /// Waits until the database has reached `txid` here; `false` at the deadline.
    pub async fn wait_for(&self, name: &DbName, txid: Txid, deadline: Instant) -> bool {
        let mut steps = self.steps.subscribe();
        loop {
            if self.get(name).is_some_and(|database| database.pos().txid >= Some(txid)) {
                return true;
            }
            match tokio::time::timeout_at(deadline.into(), steps.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return false,
            }
        }
    }
}

/// A store's error as one of the database it concerns.
pub(super) fn as_db_error(name: &DbName, error: StoreError) -> DbError {
    match error {
        StoreError::Db(error) => error,
        StoreError::Io { what, source } => DbError::Io { db: name.clone(), what, source },
        other => DbError::Invalid { db: name.clone(), why: other.to_string() },
    }
}
