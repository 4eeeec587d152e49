use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::attach::WalAttachment;
use super::commit::InFlight;
use super::cow::CowSnapshots;
use super::landing::UnderWay;
use super::log_users::LogUsers;
use super::opened::{Opened, Service, WalClients};
use super::opening::Opening;
use super::overlay::Overlay;
use super::page_checksums::{Marker, PageChecksums, WalPoint};
use super::shared::Shared;
use super::unseen_journal::UnseenJournal;
use super::view::{StateLock, View};
use super::{DbError, DbFiles, Done, FileKind};
use crate::types::{Access, DbName, JournalMode, LogIndex, PageCount, PageSize, Pos};

/// One database of this node.
///
/// Events of its files come from the mount, changes from the log; both may come from any thread. Its state is
/// one lock. FUSE threads only ever try that lock and hand the work to another thread where it is taken, because
/// the holder may be waiting for a request that only a FUSE thread can answer.
#[derive(Debug)]
pub struct Database {
    name: DbName,
    files: DbFiles,
    pub(super) shared: Arc<Shared>,
    state: Mutex<State>,
    /// What may be read of the state without its lock.
    view: Mutex<View>,
    /// The thread that has the state's lock; 0 where it is free.
    holder: AtomicI32,
    /// Signalled when `State::exclusive` ends or a in_flight lands.
    pub(super) changed: Condvar,
    /// What a transaction under a rollback journal has written.
    pub(super) overlay: Overlay,
    /// The last rollback journal ended by being removed or cut, not by a write.
    pub(super) journal_vanishes: AtomicBool,
    /// The journal of a transaction whose end no request tells of.
    pub(super) unseen_journal: UnseenJournal,
    /// Whether a change set may be undecided; so that nobody has to look.
    pub(super) has_undecided: AtomicBool,
    /// Whether a change set is landing on another thread than the one that heard its fate.
    pub(super) landing: UnderWay,
    /// The kernel passes the database file through: what applications write to it is not seen.
    pub(super) passed_through: AtomicBool,
    /// Who uses its log.
    pub(super) log_users: LogUsers,
    /// A first page was refused that is none of a SQLite database.
    pub(super) content_refused: AtomicBool,
    /// The fence of a rollback database: SQLite's RESERVED lock is held, so that writers wait.
    pub(super) reserved: AtomicBool,
    /// Attaching was held up, and is to be tried again without the lock in between.
    pub(super) attach_again: AtomicBool,
    /// Opens files of the mount.
    pub(super) opening: Opening,
    /// Holds SQLite's SHARED lock while a writer at work must not commit.
    pub(super) held_off: Mutex<Option<File>>,
    /// When the last transaction was captured, milliseconds since 1970; 0 where unknown.
    pub(super) timestamp_ms: AtomicI64,
    /// Entries of the log wait for it: applications may not write it, whatever the node is.
    behind: AtomicBool,
    /// Attempts to have it alone that failed since the last one that did not.
    pub(super) refused: AtomicU32,
    /// Held together with SQLite's EXCLUSIVE lock.
    pub(super) alone: Mutex<()>,
}

/// Everything of a database that changes.
pub(super) struct State {
    /// Handles applications (and snapshots) have of the database file.
    pub handles: u32,
    /// Those of them that are snapshots.
    pub snapshots: u32,
    /// The committed header's mode, `None` while empty.
    pub mode: Option<JournalMode>,
    /// Page size of the committed database.
    pub page_size: PageSize,
    /// Size of the committed database.
    pub pages: PageCount,
    /// Where it stands.
    pub pos: Pos,
    /// The log entry that brought it there.
    pub index: LogIndex,
    /// Per-page checksums and the durable marker.
    pub checksums: PageChecksums,
    /// The first entry that the file on disk may lack.
    pub dirty_since: Option<LogIndex>,
    /// What is held of it while applications have it open.
    pub open: Opened,
    /// Who uses the log while applications have the database open.
    pub wal_clients: WalClients,
    /// How far the WAL is captured, also while nothing is attached.
    pub captured: Option<WalPoint>,
    /// The change set on its way through the log.
    pub in_flight: Option<InFlight>,
    /// A change set whose fate the log could not tell.
    pub undecided: Option<InFlight>,
    /// A durable transaction that a writer overran is being put back.
    pub restoring: bool,
    /// Who waits for the next capture.
    pub queued: Vec<Done>,
    /// Somebody holds the database for longer than the lock: a cold import or a rename.
    pub exclusive: bool,
    /// Snapshots of a file that is written in place.
    pub cow: CowSnapshots,
    /// What a crash left in the WAL, until its fate is known.
    pub tail: Option<PathBuf>,
    /// That log is what was written last, whatever its salts say.
    pub tail_is_newest: bool,
    /// The log is being applied again after a start: what the file holds may be ahead of the position.
    pub replaying: bool,
    /// Where redo stood when it was last looked whether it is over.
    pub looked_whole: Option<LogIndex>,
    /// An entry of the log waits for a connection that has the database for itself: what that connection does fails.
    pub outlasting: bool,
    /// Whether it is served.
    pub service: Service,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("handles", &self.handles)
            .field("mode", &self.mode)
            .field("pos", &self.pos)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

impl Database {
    /// A database whose files are as [`recover`](super::recover) left them.
    pub(super) fn new(name: DbName, files: DbFiles, shared: Arc<Shared>, state: State) -> Arc<Self> {
        Arc::new(Self {
            name,
            files,
            shared,
            view: Mutex::new(View::of(&state)),
            holder: AtomicI32::new(0),
            state: Mutex::new(state),
            changed: Condvar::new(),
            overlay: Overlay::new(),
            journal_vanishes: AtomicBool::new(false),
            unseen_journal: UnseenJournal::default(),
            has_undecided: AtomicBool::new(false),
            landing: UnderWay::default(),
            passed_through: AtomicBool::new(false),
            log_users: LogUsers::default(),
            content_refused: AtomicBool::new(false),
            reserved: AtomicBool::new(false),
            attach_again: AtomicBool::new(false),
            opening: Opening::default(),
            held_off: Mutex::default(),
            timestamp_ms: AtomicI64::new(0),
            behind: AtomicBool::new(false),
            refused: AtomicU32::new(0),
            alone: Mutex::new(()),
        })
    }

    /// Its name.
    pub fn name(&self) -> &DbName {
        &self.name
    }

    /// Its backing files.
    pub fn files(&self) -> &DbFiles {
        &self.files
    }

    /// Where it stands.
    pub fn pos(&self) -> Pos {
        self.view().pos
    }

    /// When its last transaction was captured, milliseconds since 1970; 0 where that was before this start.
    pub fn timestamp_ms(&self) -> i64 {
        self.timestamp_ms.load(Ordering::Relaxed)
    }

    /// The log index of the last entry that changed it here.
    pub fn index(&self) -> LogIndex {
        self.view().index
    }

    /// The mode its header names; `None` while it is empty.
    pub fn journal_mode(&self) -> Option<JournalMode> {
        self.view().mode
    }

    /// Whether applications have it open.
    pub fn attached(&self) -> bool {
        self.view().attached
    }

    /// Page size and size in pages.
    pub fn size(&self) -> (PageSize, PageCount) {
        let view = self.view();
        (view.page_size, view.pages)
    }

    /// What the database file durably holds.
    pub fn marker(&self) -> Marker {
        self.lock().checksums.marker()
    }

    /// Why it is not served, if so.
    pub fn failure(&self) -> Option<String> {
        self.view().failed.clone()
    }

    /// Whether applying an entry may take long or wait for applications: a rollback database that is open, a writer at
    /// work, or what must be cut from its log first.
    pub fn apply_may_wait(&self) -> bool {
        // The holder of the lock may be waiting, too.
        self.try_lock().is_none_or(|mut state| {
            let fenced_and_clean = |wal: &mut WalAttachment| {
                wal.fence.raised() && !self.must_wait_for_main_lock(wal) && wal.tail().is_none()
            };
            state.exclusive
                || state.in_flight.is_some()
                || state.tail.is_some()
                || state.is_open_rollback()
                || !state.open.wal_mut().is_none_or(fenced_and_clean)
        })
    }

    /// Whether the thread of this number has the state's lock.
    pub fn is_locked_by(&self, tid: i32) -> bool {
        self.holder.load(Ordering::Relaxed) == tid
    }

    /// What applications may do with it: on the primary nothing while entries of the log wait for it.
    pub fn access(&self) -> Access {
        match self.shared.access() {
            Access::Write if self.is_behind() => Access::Fenced,
            access => access,
        }
    }

    /// Whether a transaction that applications have begun may be committed: not on top of what entries of the log have yet
    /// to change.
    pub(super) fn may_commit(&self) -> bool {
        !self.is_behind() && self.shared.may_commit()
    }

    /// Whether entries of the log wait for it.
    pub fn is_behind(&self) -> bool {
        self.behind.load(Ordering::SeqCst)
    }

    /// Notes whether entries of the log wait for it.
    pub fn set_behind(&self, behind: bool) {
        self.behind.store(behind, Ordering::SeqCst);
    }

    /// Takes the state's lock; for threads that may wait.
    pub(super) fn lock(&self) -> StateLock<'_> {
        let state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        StateLock::new(state, &self.view, &self.holder)
    }

    /// The state as it was when its lock was last let go. Never held for longer than it takes to copy what is asked for,
    /// so it may be taken on any thread.
    fn view(&self) -> std::sync::MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes the state's lock if it is free; for FUSE threads.
    pub(super) fn try_lock(&self) -> Option<StateLock<'_>> {
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return None,
        };
        Some(StateLock::new(state, &self.view, &self.holder))
    }

    /// The same for FUSE threads that would have to wake another thread otherwise, which takes longer than the watcher
    /// of logs holds the lock for a look.
    pub(super) fn lock_at_once(&self) -> Option<StateLock<'_>> {
        const TRIES: u32 = 16;
        (0..TRIES).find_map(|_| {
            let state = self.try_lock();
            if state.is_none() {
                std::thread::yield_now();
            }
            state
        })
    }

    /// Waits until nobody holds the database exclusively.
    pub(super) fn wait_shared<'a>(&self, mut state: StateLock<'a>) -> StateLock<'a> {
        while state.exclusive {
            state = state.wait(&self.changed);
        }
        state
    }

    /// Runs something that may wait on a thread of its own.
    pub(super) fn off_thread(
        self: &Arc<Self>,
        done: Done,
        work: impl FnOnce(&Arc<Self>, Done) + Send + 'static,
    ) {
        let database = self.clone();
        // The closure's parts move into the thread; where no thread can be had, the caller is told.
        let shared = Arc::new(Mutex::new(Some((done, work))));
        let inside = shared.clone();
        let spawned = std::thread::Builder::new().name("skein-db".into()).spawn(move || {
            let parts = inside.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
            if let Some((done, work)) = parts {
                work(&database, done);
            }
        });
        if let Err(source) = spawned {
            let parts = shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
            if let Some((done, _)) = parts {
                done(Err(self.io_error("starting a thread", source)));
            }
        }
    }

    pub(super) fn io_error(&self, what: impl Into<String>, source: io::Error) -> DbError {
        DbError::Io { db: self.name.clone(), what: what.into(), source }
    }

    pub(super) fn corrupt(&self, why: impl Into<String>) -> DbError {
        DbError::Corrupt { db: self.name.clone(), why: why.into() }
    }

    pub(super) fn invalid(&self, why: impl Into<String>) -> DbError {
        DbError::Invalid { db: self.name.clone(), why: why.into() }
    }

    pub(super) fn conflict(&self, why: impl Into<String>) -> DbError {
        DbError::Conflict { db: self.name.clone(), why: why.into() }
    }

    pub(super) fn unavailable(&self, why: impl Into<String>) -> DbError {
        DbError::Unavailable { db: self.name.clone(), why: why.into() }
    }

    /// Opens a backing file of this database for reading and writing.
    pub(super) fn open_backing(&self, kind: FileKind) -> Result<File, DbError> {
        let path = self.files.path(kind);
        File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|source| self.io_error(format!("opening {}", path.display()), source))
    }

    pub(super) fn check_not_ending(&self) -> Result<(), DbError> {
        if self.shared.is_ending() { Err(self.unavailable("the node is ending")) } else { Ok(()) }
    }

    pub(super) fn may_serve(&self, state: &State) -> Result<(), DbError> {
        self.check_not_ending()?;
        if let Some(why) = state.service.failure() {
            return Err(self.corrupt(format!("not served until it is repaired: {why}")));
        }
        if state.redoing() {
            let why = format!(
                "catching up after a crash, at log entry {} of {}",
                state.index,
                state.checksums.pending()
            );
            return Err(self.unavailable(why));
        }
        Ok(())
    }
}
