use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::broadcast;

use super::{Change, CommitSink, Layout, StoreError};
use crate::db::{Database, Done, KernelCache, SnapshotHeader, SnapshotReader};
use crate::io::blobs::BlobStore;
use crate::types::{Access, Checksum, DbName, JournalMode, LogIndex, NodeId, PageSize, Pgno, Pos, Txid};

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
}

/// The set of databases of this node.
pub struct Store {}

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

/// What happened, in order.
#[derive(Clone, Debug)]
pub enum StoreEvent {
    /// A database moved on.
    Tx {
        /// Which.
        db: DbName,
        /// Where it stands now.
        pos: Pos,
        /// Its size in pages.
        commit: u32,
        /// Page size in bytes.
        page_size: PageSize,
        /// When the primary captured it, milliseconds since 1970.
        timestamp_ms: i64,
        /// The log entry.
        index: LogIndex,
    },
    /// A database was dropped.
    Dropped(DbName),
    /// Another primary, or none.
    Primary(Option<PrimaryInfo>),
}

impl Store {
    /// Opens the databases below the data directory. Does not redo: the log does that through [`Store::apply`].
    pub fn open(_options: StoreOptions) -> Result<Arc<Self>, StoreError> {
        todo!()
    }

    /// Connects the log's entrance; until then no change can be captured.
    pub fn set_sink(&self, _sink: Arc<dyn CommitSink>) {
        todo!()
    }

    /// Connects the mount; until then no application has anything open.
    pub fn set_kernel_cache(&self, _cache: Arc<dyn KernelCache>) {
        todo!()
    }

    /// The data directory's names.
    pub fn layout(&self) -> &Layout {
        todo!()
    }

    /// Large change sets.
    pub fn blobs(&self) -> &Arc<BlobStore> {
        todo!()
    }

    /// This node's identity.
    pub fn node(&self) -> NodeId {
        todo!()
    }

    // ---- roles

    /// What applications may do now.
    pub fn access(&self) -> Access {
        todo!()
    }

    /// Fences or unfences all databases; returns when it holds for every one. Blocking.
    pub fn set_access(&self, _access: Access) -> Result<(), StoreError> {
        todo!()
    }

    /// The primary as last heard of; `None` where unknown.
    pub fn primary(&self) -> Option<PrimaryInfo> {
        todo!()
    }

    /// Notes who is primary.
    pub fn set_primary(&self, _primary: Option<PrimaryInfo>) {
        todo!()
    }

    // ---- the set

    /// The database of that name.
    pub fn get(&self, _name: &DbName) -> Option<Arc<Database>> {
        todo!()
    }

    /// An empty database for an application of this node; it joins the log with its first transaction.
    pub fn create(&self, _name: &DbName) -> Result<Arc<Database>, StoreError> {
        todo!()
    }

    /// All databases that have a transaction, by name.
    pub fn list(&self) -> Vec<DbStatus> {
        todo!()
    }

    /// One of them.
    pub fn status(&self, _name: &DbName) -> Option<DbStatus> {
        todo!()
    }

    /// Drops a database everywhere (primary only). Answers when it is in the log.
    pub fn drop_database(self: &Arc<Self>, _name: &DbName, _done: Done) {
        todo!()
    }

    /// Renames a database everywhere, replacing what has the name (primary only).
    pub fn rename(self: &Arc<Self>, _from: &DbName, _to: &DbName, _done: Done) {
        todo!()
    }

    /// The super-journal at `path` (a backing file) is unlinked: captures all its databases as one entry first,
    /// then removes the file.
    pub fn super_journal_unlinked(self: &Arc<Self>, _path: &Path, _done: Done) {
        todo!()
    }

    /// Starts replacing a database's content by a file (`cp` into the mount, HTTP import).
    pub fn upload(self: &Arc<Self>, _name: &DbName) -> Result<Upload, StoreError> {
        todo!()
    }

    // ---- the log

    /// Applies entry `index` of the log; called in order, for every entry but this run's own proposals. Blocking.
    /// Entries a database already has (index at or below its own) are skipped.
    pub fn apply(&self, _index: LogIndex, _change: &Change) -> Result<(), StoreError> {
        todo!()
    }

    /// The highest index up to which every database file on disk is durable without the log: entries at or
    /// below it need no redo. Never above the last applied index.
    pub fn durable_index(&self) -> LogIndex {
        todo!()
    }

    /// Notes that the log has been applied up to `index` (also where the entry changed no database).
    pub fn applied(&self, _index: LogIndex) {
        todo!()
    }

    /// Last entry applied.
    pub fn applied_index(&self) -> LogIndex {
        todo!()
    }

    /// Checkpoints databases that have changed so that [`Store::durable_index`] moves up. Blocking.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        todo!()
    }

    // ---- copies

    /// A consistent view of one database. Blocking.
    pub fn snapshot(&self, _name: &DbName) -> Result<SnapshotReader, StoreError> {
        todo!()
    }

    /// Checksums of the pages this node has, in page order (the lock page's is 0); empty where there is no such database.
    pub fn page_checksums(&self, _name: &DbName) -> Result<Vec<Checksum>, StoreError> {
        todo!()
    }

    /// Brings a database to `target` with the pages that differ from [`Store::page_checksums`], as one
    /// transaction for those who have it open. `next_page` gives pages in ascending order. Blocking.
    pub fn install(
        &self,
        _name: &DbName,
        _target: SnapshotHeader,
        _next_page: &mut dyn FnMut() -> Result<Option<(Pgno, Vec<u8>)>, StoreError>,
    ) -> Result<(), StoreError> {
        todo!()
    }

    /// Removes databases that are not in `keep`, as a snapshot of the whole set demands. Blocking.
    pub fn retain(&self, _keep: &[DbName], _index: LogIndex) -> Result<(), StoreError> {
        todo!()
    }

    // ---- watching

    /// Events from now on; a slow receiver is told how many it missed.
    pub fn events(&self) -> broadcast::Receiver<StoreEvent> {
        todo!()
    }

    /// Waits until the database has reached `txid` here; `false` at the deadline.
    pub async fn wait_for(&self, _name: &DbName, _txid: Txid, _deadline: Instant) -> bool {
        todo!()
    }
}

/// A database file being received, to replace a database's content when it is complete.
pub struct Upload {}

impl Upload {
    /// Writes a part; the first must begin with a SQLite header where it starts at 0.
    pub fn write_at(&mut self, _offset: u64, _data: &[u8]) -> Result<(), StoreError> {
        todo!()
    }

    /// Checks the file and makes it the database's content, as one log entry. Answers when that is durable.
    pub fn finish(self, _done: Done) {
        todo!()
    }
}
