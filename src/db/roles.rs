//! What the node's access means for one database: the fence, raised and lifted.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::DbError;
use super::database::{Database, State};
use super::wal_locks::{WalLock, WalLocks};
use crate::io::ofd_lock::{LockKind, is_taken, try_lock, unlock};
use crate::sqlite::lock_bytes;
use crate::types::{Access, JournalMode};

/// Whether a writer at work is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Until its transaction has ended.
    Yes,
    /// Until then at most.
    Until(Instant),
    /// No: the fence stays down then.
    No,
}

impl Wait {
    /// Takes the write lock of a WAL database, `None` where it is not had.
    fn take(self, locks: &WalLocks) -> io::Result<Option<WalLock>> {
        loop {
            let taken = locks.try_take(lock_bytes::WAL_WRITE)?;
            if taken.is_some() || !self.goes_on() {
                return Ok(taken);
            }
        }
    }

    /// Whether it is to be tried again; a moment later, then.
    fn goes_on(self) -> bool {
        /// How often it is tried: fcntl(2) waits without a limit or not at all, and tells nobody else of a lock that is
        /// let go.
        const EVERY: Duration = Duration::from_micros(500);
        let goes_on = match self {
            Self::Yes => true,
            Self::Until(deadline) => Instant::now() < deadline,
            Self::No => false,
        };
        if goes_on {
            std::thread::sleep(EVERY);
        }
        goes_on
    }
}

impl Database {
    /// Whether writers must wait: until this node is primary, or until it is known what the last transaction came to.
    fn writers_wait(&self) -> bool {
        self.access() == Access::Fenced
            || self.shared.is_handing_over()
            || self.has_undecided.load(Ordering::SeqCst)
    }

    /// Makes locks and watches what the node's access, and an undecided transaction, demand. Blocking: a writer at work
    /// is waited for.
    ///
    /// # Errors
    /// Where locks cannot be taken.
    pub fn set_access(self: &Arc<Self>) -> Result<(), DbError> {
        if self.access() == Access::Write && !self.writers_wait() {
            let mut state = self.wait_shared(self.lock());
            self.unreserve(&mut state)?;
            if let Some(wal) = state.open.wal_mut() {
                self.set_fence(wal)?;
                if let Some(watcher) = self.shared.watcher() {
                    watcher.watch(self);
                }
            }
            return Ok(());
        }
        if !self.has_wal() && self.reserve(Wait::No)? {
            return Ok(());
        }
        // Holding the writers does it; the fence stays up because this node may not write any more.
        let held = self.hold_writers()?;
        let mut state = self.lock();
        let fenced = match state.open.wal_mut() {
            Some(wal) => self.set_fence(wal),
            None => self
                .take_back_in_place(&state)
                .and_then(|()| self.drop_staged())
                .map_err(|source| self.io_error("ending its transaction", source)),
        };
        drop(state);
        self.publish_what_is_durable()?;
        drop(held);
        self.outlast_exclusive();
        fenced.and_then(|()| self.reserve(Wait::No)).map(drop)
    }

    /// Fences where that takes no waiting; says whether it did. A rollback database that nobody has open needs no fence:
    /// a transaction under way is not committed, and new ones are refused.
    pub fn try_fence(self: &Arc<Self>) -> bool {
        let Some(mut state) = self.try_lock() else { return false };
        let staged = self.overlay.size().is_some();
        match state.open.wal_mut() {
            Some(wal) => {
                let raised = wal.fence.try_raise(&wal.locks).unwrap_or(false);
                raised
                    && wal.captured.unpublished.is_none()
                    && self.set_fence(wal).is_ok()
                    && !self.must_wait_for_main_lock(wal)
            }
            None => !staged && !self.lacks_fence(&state),
        }
    }

    /// Whether it is a WAL database that applications have open.
    pub fn has_wal(&self) -> bool {
        self.lock().open.is_wal()
    }

    /// With the write lock: the writer of captured frames that are not published is dead, or has published them. They
    /// are history, so this node does it in his stead before it appends anything.
    fn publish_what_is_durable(&self) -> Result<(), DbError> {
        let fail = |source| self.io_error("publishing a durable transaction", source);
        let mut state = self.lock();
        let pages = state.pages;
        let Some(wal) = state.open.wal_mut().filter(|wal| wal.captured.unpublished.is_some()) else {
            return Ok(());
        };
        if wal.is_overrun().map_err(fail)? {
            drop(state);
            return self.restore_locked().map_err(fail);
        }
        wal.publish_captured(pages).map(drop).map_err(fail)
    }

    /// Whether no writer of an earlier time is still at work.
    pub fn is_fenced(&self) -> bool {
        self.lock().open.wal().is_none_or(|wal| wal.fence.raised())
    }

    /// Before a planned move of the primary: keeps writers out, and commits what they have done. Blocking; writers at
    /// work are waited for.
    ///
    /// # Errors
    /// `Unavailable` where one is still at work at `deadline`. Where a lock cannot be taken, or the log does not take
    /// what is captured.
    pub fn hand_over(self: &Arc<Self>, deadline: Instant) -> Result<(), DbError> {
        let fail = |source: io::Error| self.io_error("waiting for writers", source);
        let busy = || self.unavailable("an application is in the middle of a transaction");
        let locks = self.lock().open.wal().map(|wal| wal.locks.clone());
        let Some(locks) = locks else {
            return if self.reserve(Wait::Until(deadline))? { self.finish_journals() } else { Err(busy()) };
        };
        // Without the state's lock: the writer at work may be waiting for its capture.
        let Some(_writers_out) = Wait::Until(deadline).take(&locks).map_err(fail)? else {
            return Err(busy());
        };
        if let Some(wal) = self.lock().open.wal_mut() {
            wal.fence.try_raise(&wal.locks).map_err(fail)?;
        }
        self.keep_main_lock(deadline)?;
        self.capture_and_wait()
    }

    /// Whether it is a rollback database whose writers must wait and would not. Not of a node that is ending: it refuses every
    /// commit, and has no mount any more through which it could lock the file.
    pub(super) fn lacks_fence(&self, state: &State) -> bool {
        state.handles > 0 && self.wants_fence(state)
    }

    /// The same for one that somebody is about to open.
    pub(super) fn wants_fence(&self, state: &State) -> bool {
        let rollback = !state.open.is_wal() && state.mode != Some(JournalMode::Wal);
        let waits = self.writers_wait() && !self.shared.is_ending();
        rollback && waits && !self.reserved.load(Ordering::SeqCst)
    }

    /// Raises the fence of a rollback database that applications have open: SQLite's RESERVED lock, as another writer
    /// would hold it. Says whether it is up.
    pub(super) fn reserve(&self, wait: Wait) -> Result<bool, DbError> {
        let fail = |source: io::Error| self.io_error("fencing", source);
        let mut state = self.lock();
        if !self.lacks_fence(&state) {
            return Ok(true);
        }
        let file = self.mounted(&mut state).map_err(fail)?;
        drop(state);
        // The open file is one for all of the daemon: who applies an entry holds this, too, and waits for readers, of
        // which one may be waiting for us to open another connection.
        let Ok(_alone) = self.alone.try_lock() else { return Ok(false) };
        if !self.take_reserved(&file, wait)? {
            if wait == Wait::No {
                self.hold_off_commit(&file)?;
            }
            return Ok(false);
        }
        let state = self.lock();
        if self.lacks_fence(&state) {
            self.reserved.store(true, Ordering::SeqCst);
            return Ok(true);
        }
        // Primary again, or closed, in between.
        unlock(&file, lock_bytes::RESERVED, 1).map_err(fail)?;
        Ok(false)
    }

    /// A writer is at work where the fence is to be raised: keeps it from committing as a reader does, by SQLite's SHARED
    /// lock. Its COMMIT waits in `busy_timeout` and is told that the database is locked while nothing is committed yet; where
    /// the commit is under way already, the log decides.
    fn hold_off_commit(&self, file: &File) -> Result<(), DbError> {
        let fail = |source: io::Error| self.io_error("fencing a writer at work", source);
        // An open file of its own, because who waits for the writer takes locks on the other one. Opened by its number: a
        // lookup of its name waits for an unlink in that directory, and that for the log.
        let reader = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(fail)?;
        if !try_lock(&reader, LockKind::Shared, lock_bytes::SHARED_FIRST, lock_bytes::SHARED_SIZE)
            .map_err(fail)?
        {
            return Ok(());
        }
        *self.held_off() = Some(reader);
        let lacks_fence = self.lacks_fence(&self.lock());
        if !lacks_fence {
            // Primary again, or closed, in between.
            self.end_hold_off();
        }
        Ok(())
    }

    /// Lets a writer at work commit.
    pub(super) fn end_hold_off(&self) {
        let reader = self.held_off().take();
        // Closing it asks the mount, so not with that lock held.
        drop(reader);
    }

    fn held_off(&self) -> std::sync::MutexGuard<'_, Option<File>> {
        self.held_off.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes SQLite's RESERVED lock of a rollback database; says whether it is had. Where a dead writer has left something
    /// staged it is dropped first: while this lock is held, SQLite takes no journal for a hot one, and would read it.
    pub(super) fn take_reserved(&self, file: &File, wait: Wait) -> Result<bool, DbError> {
        let fail = |source: io::Error| self.io_error("waiting for writers", source);
        loop {
            // While PENDING is held nobody begins to read, nor to write to the file: not for as long as a writer is at
            // work, or readers who do not wait would be told that the database is locked.
            let at_work = is_taken(file, LockKind::Exclusive, lock_bytes::RESERVED, 1).map_err(fail)?;
            if !at_work {
                // The writer has ended, and who waits for readers must not wait for this node itself.
                self.end_hold_off();
            }
            if !at_work && try_lock(file, LockKind::Exclusive, lock_bytes::PENDING, 1).map_err(fail)? {
                let taken = self.try_reserved(file);
                unlock(file, lock_bytes::PENDING, 1).map_err(fail)?;
                if taken.map_err(fail)? {
                    return Ok(true);
                }
            }
            // Nor may this one be had before it is known that nothing is staged, so it cannot be waited for.
            if !wait.goes_on() {
                return Ok(false);
            }
        }
    }

    fn try_reserved(&self, file: &File) -> io::Result<bool> {
        let reserve = || try_lock(file, LockKind::Exclusive, lock_bytes::RESERVED, 1);
        if self.overlay.size().is_none() {
            return reserve();
        }
        // Who reads already may be about to look whether this lock is held.
        let (first, size) = (lock_bytes::SHARED_FIRST, lock_bytes::SHARED_SIZE);
        if !try_lock(file, LockKind::Exclusive, first, size)? {
            return Ok(false);
        }
        let reserved = self.drop_staged().and_then(|()| reserve());
        unlock(file, first, size)?;
        reserved
    }

    fn unreserve(&self, state: &mut State) -> Result<(), DbError> {
        if !self.writable() {
            return Ok(());
        }
        self.end_hold_off();
        if !self.reserved.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        let Some(file) = state.open.rollback().and_then(|open| open.mounted.as_ref()) else { return Ok(()) };
        unlock(file, lock_bytes::RESERVED, 1).map_err(|source| self.io_error("lifting the fence", source))
    }

    /// Waits for a transaction under a rollback journal that is being committed.
    fn finish_journals(&self) -> Result<(), DbError> {
        let mut state = self.lock();
        while state.in_flight.is_some() || state.exclusive {
            state = state.wait(&self.changed);
        }
        Ok(())
    }
}
