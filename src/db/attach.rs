//! Attach: the daemon becomes one more connection of a WAL database that applications have open.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::checkpoint::Backfill;
use super::database::{Database, State};
use super::dms::take_dms;
use super::fence::Fence;
use super::guarded_file::{AfterDeath, GuardedFile};
use super::invalidate::Invalidated;
use super::main_lock::{HeldMainLock, MainLock};
use super::opened::Opened;
use super::opening::GivenUp;
use super::page_checksums::WalPoint;
use super::pin::Pin;
use super::rewind::Rewound;
use super::rewritable_pages::RewritablePages;
use super::view::StateLock;
use super::wal_locks::{WalLock, WalLocks};
use super::write_lease::Leased;
use super::{DbError, FileKind, KernelCache};
use crate::io::fault;
use crate::io::ofd_lock::{LockKind, is_taken};
use crate::ltx::ChangeSet;
use crate::sqlite::lock_bytes;
use crate::sqlite::wal::{FrameChecksum, Salt, WAL_HEADER_SIZE, WalHeader};
use crate::sqlite::wal_index::{HeaderRead, IndexHeader, WalIndex};
use crate::types::{Access, DbName};

/// What the daemon holds of a WAL database while applications have it open.
///
/// Files are seen through the mount (`database`, `wal`, the index), so that what is written and locked here is
/// what applications see; `backing_wal` reads the same log without a request to ourselves.
pub(super) struct WalAttachment {
    /// The database file.
    pub database: File,
    /// SQLite's SHARED lock on it.
    pub main_lock: MainLock,
    /// The same while this node applies the log: no application is the last connection then.
    pub follows: Option<HeldMainLock>,
    /// The database file in the data directory, which is what checkpoints write and everybody here reads: the kernel may
    /// hold the mounted one locked for an unlink or a rename that waits for this database.
    pub backing_database: File,
    /// The log in the data directory.
    pub backing_wal: File,
    /// The kernel has pages of the log cached: it is not passed through.
    pub wal_is_cached: bool,
    /// Who tells the kernel of what is written behind its cache.
    pub cached_by: (Arc<dyn KernelCache>, DbName),
    /// The wal-index; its open file holds DMS and the pin.
    pub index: WalIndex,
    /// Whether DMS is held.
    pub holds_dms: bool,
    /// The locks of a second open file of `-shm`, which conflict with the pin's as another connection's would:
    /// fence, checkpoint and restart locks.
    pub locks: WalLocks,
    /// The read slot that holds back restarts.
    pub pin: Pin,
    /// The write lock of a node that may not write.
    pub fence: Fence,
    /// Has the lease of this node end the writing of this database, too.
    _leased: Leased,
    /// Since when writers are made to wait on the primary, and the lock that does it, see `backpressure`.
    pub held_back: Option<(Instant, WalLock)>,
    /// Keeps the checkpoints of applications out while something is to be taken back, see `rewind`.
    pub no_checkpoints: Option<WalLock>,
    /// How far frames are captured (on the primary) or written (on the others).
    pub captured: Captured,
    /// An fsync captured something since the watcher of logs last looked.
    pub synced: bool,
    /// The commit frame that was taken back last.
    pub invalidated: Option<Invalidated>,
    /// The change set of frames that are captured but not seen published yet.
    pub unpublished_change: Option<ChangeSet>,
    /// Frames that were taken back by newer ones; a checkpoint copies all of them or none.
    pub rewound: Option<Rewound>,
    /// Pages whose bytes in the file may come to differ from those in the log.
    pub rewritable: RewritablePages,
    /// What keeps the fence when this process is gone; `None` on a replica, whose applications never write.
    pub kept: Option<GuardedFile>,
}

/// The end of the captured part of a WAL.
#[derive(Clone, Copy, Debug)]
pub(super) struct Captured {
    /// The incarnation of the log.
    pub salt: Salt,
    /// The last frame captured.
    pub frame: u32,
    /// Its checksum, from which the next frame's continues.
    pub checksum: FrameChecksum,
    /// The change counter of the wal-index then.
    pub change: u32,
    /// First frame of the last captured change set and its checksum, until it is seen published.
    pub unpublished: Option<(u32, FrameChecksum)>,
}

impl Captured {
    /// The same as a point to be remembered across restarts.
    pub fn point(&self) -> WalPoint {
        WalPoint { salt: self.salt, frame: self.frame }
    }
}

/// Whose log it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WalClient {
    /// That of connections which share the wal-index.
    Shared,
    /// That of one which keeps the wal-index to itself, and has the database file locked.
    Exclusive,
}

/// Files of a WAL database through the mount.
struct MountedFiles {
    database: File,
    locks: WalLocks,
    shm: File,
}

/// How long the opening of files is waited for with the database's lock held, see [`super::opening`].
const OPEN_WAIT_MAX: Duration = Duration::from_millis(200);
/// How long an application that opens a database waits for that.
const ATTACH_WAIT_MAX: Duration = Duration::from_secs(10);

/// Opens the files of the database at `path`.
fn open_mounted(path: &Path, given_up: &GivenUp) -> io::Result<MountedFiles> {
    let open = |suffix: &str| {
        given_up.check()?;
        fault::point("attach_open")?;
        let mut side = path.as_os_str().to_owned();
        side.push(suffix);
        File::options().read(true).write(true).create(!suffix.is_empty()).truncate(false).open(side)
    };
    let database = open("")?;
    // Made through the mount, so that the kernel knows of it.
    drop(open("-wal")?);
    Ok(MountedFiles { database, locks: WalLocks::new(open("-shm")?), shm: open("-shm")? })
}

impl Database {
    /// Takes the lock and does `work` with it, again where attaching in it was held up by a change of the directory that
    /// may itself have waited for the lock.
    pub(super) fn attaching<T>(
        self: &Arc<Self>,
        mut work: impl FnMut(&mut State) -> Result<T, DbError>,
    ) -> (StateLock<'_>, Result<T, DbError>) {
        let deadline = Instant::now() + ATTACH_WAIT_MAX;
        loop {
            let mut state = self.wait_shared(self.lock());
            let answer = work(&mut state);
            let again = self.attach_again.swap(false, Ordering::SeqCst) && Instant::now() < deadline;
            if answer.is_ok() || !again {
                return (state, answer);
            }
            drop(state);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Attaches where that is not done yet. Blocking; never on a FUSE thread, for it opens files of the mount.
    pub(super) fn attach(self: &Arc<Self>, state: &mut State) -> Result<(), DbError> {
        self.attach_beside(state, WalClient::Shared)
    }

    /// The same for the log of such a client.
    pub(super) fn attach_beside(
        self: &Arc<Self>,
        state: &mut State,
        client: WalClient,
    ) -> Result<(), DbError> {
        if state.open.is_wal() {
            return Ok(());
        }
        // The path may no longer be the mount's.
        self.check_not_ending()?;
        let cache = self.shared.cache().ok_or_else(|| self.unavailable("the mount is not up yet"))?;
        let path = cache.mount_point().join(self.name().as_str());
        let mut attachment = self.open_attachment(&path, state, client)?;
        attachment
            .adopt_or_begin(state)
            .map_err(|source| self.io_error("preparing the wal-index", source))?;
        self.set_fence(&mut attachment)?;
        // A rollback database that was switched to WAL: its own lock ends with the file it is held on.
        self.reserved.store(false, Ordering::SeqCst);
        state.open = Opened::Wal(Box::new(attachment));
        if let Some(watcher) = self.shared.watcher()
            && self.access() == Access::Write
        {
            watcher.watch(self);
        }
        tracing::debug!(db = %self.name(), "attached");
        Ok(())
    }

    fn open_attachment(
        &self,
        path: &Path,
        state: &State,
        client: WalClient,
    ) -> Result<WalAttachment, DbError> {
        let fail = |source| self.io_error("attaching through the mount", source);
        let path = path.to_owned();
        let open = move |given_up: &GivenUp| open_mounted(&path, given_up);
        let Some(files) = self.opening.within(OPEN_WAIT_MAX, open) else {
            self.attach_again.store(true, Ordering::SeqCst);
            return Err(self.unavailable("its directory is being changed; try again"));
        };
        let MountedFiles { database, locks, shm } = files.map_err(fail)?;
        let main_lock = MainLock::new(database.try_clone().map_err(fail)?);
        let held = main_lock.try_hold().map_err(fail)?;
        if held.is_none() && client == WalClient::Shared {
            return Err(self.conflict("an application holds it exclusively (locking_mode=EXCLUSIVE)"));
        }
        let unused = !is_taken(&shm, LockKind::Exclusive, lock_bytes::DMS, 1).map_err(fail)?;
        let holds_dms = take_dms(&shm).map_err(fail)?;
        let backing_wal = self.open_backing(FileKind::Wal)?;
        let cache = self.shared.cache().ok_or_else(|| self.unavailable("the mount is not up yet"))?;
        let passthrough = cache.passthrough();
        let cached_by = (cache.clone(), self.name().clone());
        let backing_database = self.open_backing(FileKind::Database)?;
        let rewritable = RewritablePages::of(&backing_database).map_err(fail)?;
        let index = WalIndex::map(shm, self.open_backing(FileKind::Shm)?, passthrough).map_err(fail)?;
        if unused {
            // Left behind by whoever had it last, perhaps of a log that is gone: as an opener that finds the file unused
            // cuts it short.
            index.clear();
        }
        let captured = Captured {
            salt: self.salt_to_go_on_with(state),
            frame: 0,
            checksum: FrameChecksum(0, 0),
            change: 0,
            unpublished: None,
        };
        let (pin, fence) = (Pin::default(), Fence::default());
        // Before anybody asks whether the fence is to be up.
        let leased = self.shared.lease().include(&locks);
        let guard = self.shared.guard().filter(|_| self.access() != Access::ReadOnly);
        let kept = guard.map(|guard| GuardedFile::new(guard, AfterDeath::Fence, locks.file())).transpose().unwrap_or_else(|error| {
            tracing::warn!(db = %self.name(), %error, "nobody fences the database should this process die");
            None
        });
        Ok(WalAttachment {
            database,
            main_lock,
            follows: held,
            backing_database,
            backing_wal,
            wal_is_cached: !passthrough,
            cached_by,
            index,
            holds_dms,
            locks,
            pin,
            fence,
            _leased: leased,
            held_back: None,
            no_checkpoints: None,
            captured,
            synced: false,
            invalidated: None,
            unpublished_change: None,
            rewound: None,
            rewritable,
            kept,
        })
    }

    /// The salts of the WAL that a crash made this node begin anew; a log that ended in order is followed by any.
    fn salt_to_go_on_with(&self, state: &State) -> Salt {
        let known = state.captured.filter(|point| point.frame != WalPoint::RETIRED);
        known.map_or(Salt(0, 0), |point| point.salt)
    }

    /// Raises or lifts the fence of an attachment as this node's access demands.
    pub(super) fn set_fence(&self, wal: &mut WalAttachment) -> Result<(), DbError> {
        let fail = |source| self.io_error("taking the locks of the wal-index", source);
        if self.writable() {
            wal.follows = None;
            wal.fence.lift();
            return wal.locks.begin_lease(|| self.shared.writable()).map_err(fail);
        }
        wal.fence.raise(&wal.locks).map_err(fail)?;
        wal.hold_dms().map_err(fail)?;
        if wal.follows.is_none() {
            wal.follows = wal.main_lock.try_hold().map_err(fail)?;
        }
        if self.access() == Access::Write {
            return Ok(());
        }
        if wal.follows.is_none() {
            wal.index.refuse_readers();
        }
        wal.pin.release(&wal.index).map_err(fail)
    }

    /// Ends the attachment of a database no application has open: everything into the database file, the log
    /// removed. Returns whether it is cold now; where something is still to be captured it is not. Blocking.
    pub(super) fn detach(&self, state: &mut State) -> Result<bool, DbError> {
        if state.handles > 0 || state.in_flight.is_some() || state.exclusive {
            return Ok(false);
        }
        if state.open.is_left_behind() {
            return Ok(true);
        }
        if matches!(state.open, Opened::LastClosing) {
            // It was closed without removing the log, which has nothing that is not in the file.
            self.remove_side_file(FileKind::Wal)?;
            if let Some(cache) = self.shared.cache() {
                cache.entry_changed(self.name(), FileKind::Wal);
            }
        }
        if !state.open.is_wal() || state.service.is_dropped() {
            self.reserved.store(false, Ordering::SeqCst);
            self.end_hold_off();
            state.open = Opened::Cold;
            return Ok(true);
        }
        // Without a usable index nobody knows what is in the log and not in the file.
        if !self.recover_index(state) {
            return Ok(false);
        }
        let Some(wal) = state.open.wal_mut() else { return Ok(true) };
        let fail = |source| self.io_error("detaching", source);
        if let HeaderRead::Valid(header) = wal.index.header() {
            if header.max_frame != wal.captured_frame(&header) {
                return Ok(false);
            }
            state.checksums.set_pending(state.index).map_err(fail)?;
            let limit = header.max_frame;
            let file = &wal.backing_database;
            let modified = file.metadata().and_then(|metadata| metadata.modified()).map_err(fail)?;
            if !matches!(wal.backfill(limit).map_err(fail)?, Backfill::Complete)
                && wal.index.backfilled() < limit
            {
                return Ok(false);
            }
            // Applications changed the database earlier, and may have set its times since.
            wal.backing_database.set_modified(modified).map_err(fail)?;
        }
        // Who keeps the fence may be slow to close it.
        if let Some(wal) = state.open.wal() {
            wal.locks.end().map_err(fail)?;
        }
        self.retire_wal(state).map_err(fail)?;
        state.open = Opened::Cold;
        for kind in [FileKind::Wal, FileKind::Shm] {
            self.remove_side_file(kind)?;
        }
        if let Some(cache) = self.shared.cache() {
            cache.data_changed(self.name(), FileKind::Database);
            [FileKind::Wal, FileKind::Shm].iter().for_each(|kind| cache.entry_changed(self.name(), *kind));
        }
        tracing::debug!(db = %self.name(), "detached");
        Ok(true)
    }
}

impl WalAttachment {
    /// Takes over a wal-index that is already in use (an application opened the files a moment before us), or
    /// writes the one of an empty log.
    fn adopt_or_begin(&mut self, state: &State) -> io::Result<()> {
        if let HeaderRead::Valid(header) = self.index.header() {
            self.captured.salt = header.salt;
            self.captured.change = header.change;
            // Nothing of this log is captured: attaching happens before the first write.
            self.captured.frame = 0;
            self.captured.checksum = self.seed().unwrap_or(FrameChecksum(0, 0));
            return Ok(());
        }
        // Nobody has initialised it, so nobody can be reading it: readers need a valid header first. The
        // exclusive locks keep out one who is about to recover it.
        let _all = self.locks.take_all(lock_bytes::WAL_WRITE, 3)?;
        if matches!(self.index.header(), HeaderRead::Empty | HeaderRead::Torn) {
            self.index.reset_checkpoint_info();
            self.index.publish(&IndexHeader {
                change: 0,
                big_endian_checksum: false,
                page_size: state.page_size,
                max_frame: 0,
                // With 0 every read transaction would ask for the size of the file, a request to the daemon.
                pages: state.pages,
                frame_checksum: FrameChecksum(0, 0),
                salt: self.captured.salt,
            });
        }
        Ok(())
    }

    /// Appends to the log, with the write lock held; readers see it once the wal-index says so. Never through the mount:
    /// the kernel keeps the file locked for as long as an fsync of an application waits for this database.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn append_wal(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        self.backing_wal.write_all_at(bytes, offset)?;
        if self.wal_is_cached {
            let (cache, db) = &self.cached_by;
            cache.data_written(db, FileKind::Wal, offset, bytes);
        }
        Ok(())
    }

    /// Overwrites what no reader can have seen, while its writer waits in fsync.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn overwrite_wal(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.append_wal(bytes, offset)
    }

    /// The header of the log file, `None` where it has none.
    pub fn wal_header(&self) -> Option<WalHeader> {
        use std::os::unix::fs::FileExt;
        let mut bytes = [0; WAL_HEADER_SIZE];
        self.backing_wal.read_exact_at(&mut bytes, 0).ok()?;
        WalHeader::parse(&bytes).ok()
    }

    /// The checksum the first frame continues from.
    pub fn seed(&self) -> Option<FrameChecksum> {
        self.wal_header().map(|header| header.checksum)
    }
}
