use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use super::landing::Landings;
use super::write_lease::{self, Ended, WriteLease};
use super::{ChangeSink, Database, KernelCache, Limits, MountGuard, SuperJournals, WalWatcher};
use crate::io::blobs::BlobStore;
use crate::types::{Access, LogIndex, NodeId, PageCount, PageSize, Pos};

/// What all databases of a node have in common.
pub struct Shared {
    /// This node.
    pub node: NodeId,
    /// Large change sets.
    pub blobs: Arc<BlobStore>,
    /// Where change sets go that never became history.
    pub discarded: PathBuf,
    /// Where files of operations under way go.
    pub tmp: PathBuf,
    /// Hears of every step a database makes.
    pub observer: Observer,
    /// What bounds the writers.
    pub limits: Limits,
    /// The super-journals on the mount.
    pub super_journals: SuperJournals,
    /// Lands what could not land at once.
    pub(super) landings: Landings,
    access: AtomicU8,
    lease: Arc<WriteLease>,
    handing_over: AtomicBool,
    ending: AtomicBool,
    tails_count: AtomicBool,
    nothing_unsynced_lost: AtomicBool,
    sink: OnceLock<Arc<dyn ChangeSink>>,
    cache: OnceLock<Arc<dyn KernelCache>>,
    watcher: OnceLock<WalWatcher>,
    guard: OnceLock<Arc<dyn MountGuard>>,
}

/// Hears of every step of any database.
pub type Observer = Box<dyn Fn(&Database, Moved) + Send + Sync>;

/// A step of one database.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// Where it stands now.
    pub pos: Pos,
    /// The log entry that moved it.
    pub index: LogIndex,
    /// Its size in pages.
    pub pages: PageCount,
    /// Page size in bytes.
    pub page_size: PageSize,
    /// When the primary captured it, milliseconds since 1970; 0 where unknown.
    pub timestamp_ms: i64,
}

impl Shared {
    /// The common part, not yet connected to a log or a mount.
    pub fn new(
        node: NodeId,
        blobs: Arc<BlobStore>,
        discarded: PathBuf,
        tmp: PathBuf,
        access: Access,
        observer: Observer,
    ) -> Self {
        Self {
            node,
            blobs,
            discarded,
            tmp,
            observer,
            limits: Limits::default(),
            super_journals: SuperJournals::default(),
            landings: Landings::default(),
            access: AtomicU8::new(access as u8),
            lease: Arc::default(),
            handing_over: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            tails_count: AtomicBool::new(false),
            nothing_unsynced_lost: AtomicBool::new(false),
            sink: OnceLock::new(),
            cache: OnceLock::new(),
            watcher: OnceLock::new(),
            guard: OnceLock::new(),
        }
    }

    /// What applications may do.
    pub fn access(&self) -> Access {
        match self.access.load(Ordering::SeqCst) {
            0 => Access::Write,
            1 => Access::Fenced,
            _ => Access::ReadOnly,
        }
    }

    /// Sets what applications may do; the databases are fenced or unfenced one by one after it.
    pub fn set_access(&self, access: Access) {
        self.access.store(access as u8, Ordering::SeqCst);
    }

    /// Until when applications may write.
    pub fn lease(&self) -> &Arc<WriteLease> {
        &self.lease
    }

    /// Ends the writing of applications with the lease from now on. `ended` hears of it.
    ///
    /// # Errors
    /// Where no thread can be had.
    pub fn follow_lease(self: &Arc<Self>, ended: Ended) -> std::io::Result<()> {
        write_lease::start(self, ended)
    }

    /// Applications may write no more, if they may now; says whether that changed anything.
    pub(super) fn end_write(&self) -> bool {
        let (before, after) = (Access::Write as u8, Access::Fenced as u8);
        self.access.compare_exchange(before, after, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Whether a transaction that applications have begun may be committed: they may write, or could in the present term
    /// and nobody else has been primary since.
    pub fn may_commit(&self) -> bool {
        match self.access() {
            Access::Write => true,
            Access::Fenced => self.lease.may_finish(),
            Access::ReadOnly => false,
        }
    }

    /// While the primary is moved as planned, what is under way is committed and nothing new begins.
    pub fn set_handing_over(&self, handing_over: bool) {
        self.handing_over.store(handing_over, Ordering::SeqCst);
    }

    /// Whether the primary is being moved as planned.
    pub fn is_handing_over(&self) -> bool {
        self.handing_over.load(Ordering::SeqCst)
    }

    /// The node ends: what applications have open is let go of, and nothing is opened any more.
    pub fn set_ending(&self) {
        self.ending.store(true, Ordering::SeqCst);
    }

    /// Whether the node ends.
    pub fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// Whether applications may begin to write.
    pub fn writable(&self) -> bool {
        self.access() == Access::Write && !self.is_handing_over()
    }

    /// Says whether logs left behind by the last run may hold what applications wrote: only a primary's do.
    pub fn set_tails_count(&self, count: bool) {
        self.tails_count.store(count, Ordering::SeqCst);
    }

    /// Whether logs left behind by the last run may hold what applications wrote.
    pub fn tails_count(&self) -> bool {
        self.tails_count.load(Ordering::SeqCst)
    }

    /// Says whether the machine has run since applications wrote logs that were left behind.
    pub fn set_nothing_unsynced_lost(&self, nothing: bool) {
        self.nothing_unsynced_lost.store(nothing, Ordering::SeqCst);
    }

    /// Whether the machine has run since applications wrote logs that were left behind: they end with what was written
    /// last then, whatever was synced.
    pub fn nothing_unsynced_lost(&self) -> bool {
        self.nothing_unsynced_lost.load(Ordering::SeqCst)
    }

    /// Connects the log; the first call counts.
    pub fn set_sink(&self, sink: Arc<dyn ChangeSink>) {
        let _ = self.sink.set(sink);
    }

    /// The log's entrance, once connected.
    pub fn sink(&self) -> Option<&Arc<dyn ChangeSink>> {
        self.sink.get()
    }

    /// Connects the mount; the first call counts.
    pub fn set_cache(&self, cache: Arc<dyn KernelCache>) {
        let _ = self.cache.set(cache);
    }

    /// The mount, once connected.
    pub fn cache(&self) -> Option<&Arc<dyn KernelCache>> {
        self.cache.get()
    }

    /// Connects who keeps fences when this process is gone; the first call counts.
    pub fn set_guard(&self, guard: Arc<dyn MountGuard>) {
        let _ = self.guard.set(guard);
    }

    /// Who keeps fences when this process is gone, once connected.
    pub fn guard(&self) -> Option<&Arc<dyn MountGuard>> {
        self.guard.get()
    }

    /// Connects the watcher of write-ahead logs; the first call counts.
    pub fn set_watcher(&self, watcher: WalWatcher) {
        let _ = self.watcher.set(watcher);
    }

    /// The watcher of write-ahead logs.
    pub fn watcher(&self) -> Option<&WalWatcher> {
        self.watcher.get()
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("node", &self.node)
            .field("access", &self.access())
            .finish_non_exhaustive()
    }
}
