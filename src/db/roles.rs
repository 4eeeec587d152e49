//! What the node's access means for one database: the fence, raised and lifted.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::DbError;
use super::database::{Database, State};
use crate::io::ofd_lock::{LockKind, lock, try_lock, unlock};
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
    /// Takes an exclusive lock on one byte; says whether it is had.
    fn lock(self, file: &File, byte: u64) -> io::Result<bool> {
        /// How often a lock is asked for that is waited for with a limit.
        const EVERY: Duration = Duration::from_millis(1);
        match self {
            Self::Yes => lock(file, LockKind::Exclusive, byte, 1).map(|()| true),
            Self::No => try_lock(file, LockKind::Exclusive, byte, 1),
            Self::Until(deadline) => loop {
                if try_lock(file, LockKind::Exclusive, byte, 1)? {
                    return Ok(true);
                }
                if Instant::now() >= deadline {
                    return Ok(false);
                }
                // fcntl(2) waits without a limit or not at all, and tells nobody of a lock that is let go.
                std::thread::sleep(EVERY);
            },
        }
    }
}

impl Database {
    /// Whether writers must wait: until this node is primary, or until it is known what the last transaction came to.
    fn writers_wait(&self) -> bool {
        self.access() == Access::Fenced
            || self.shared.is_handing_over()
            || self.in_limbo.load(Ordering::SeqCst)
    }

    /// Makes locks and watches what the node's access, and a transaction in limbo, demand. Blocking: a writer at work
    /// is waited for.
    ///
    /// # Errors
    /// Where locks cannot be taken.
    pub fn set_access(self: &Arc<Self>) -> Result<(), DbError> {
        if self.access() == Access::Write && !self.writers_wait() {
            let mut state = self.wait_shared(self.lock());
            self.unreserve(&mut state)?;
            if let Some(wal) = state.wal.as_mut() {
                self.set_fence(wal)?;
                if let Some(tailer) = self.shared.tailer() {
                    tailer.watch(self);
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
        let fenced = match state.wal.as_mut() {
            Some(wal) => self.set_fence(wal),
            None => self.drop_staged().map_err(|source| self.io_error("ending its transaction", source)),
        };
        drop(state);
        self.publish_what_is_durable()?;
        drop(held);
        fenced.and_then(|()| self.reserve(Wait::No)).map(drop)
    }

    /// Fences where that takes no waiting; says whether it did. A rollback database that nobody has open needs no fence:
    /// a transaction under way is not committed, and new ones are refused.
    pub fn try_fence(self: &Arc<Self>) -> bool {
        let Some(mut state) = self.try_lock() else { return false };
        let staged = self.overlay.size().is_some();
        match state.wal.as_mut() {
            Some(wal) => {
                let raised = wal.fence.try_raise(&wal.work).unwrap_or(false);
                raised && wal.captured.unpublished.is_none() && self.set_fence(wal).is_ok()
            }
            None => !staged && !self.lacks_fence(&state),
        }
    }

    /// Whether it is a WAL database that applications have open.
    pub fn has_wal(&self) -> bool {
        self.lock().wal.is_some()
    }

    /// With the write lock: the writer of captured frames that are not published is dead, or has published them. They
    /// are history, so this node does it in his stead before it appends anything.
    fn publish_what_is_durable(&self) -> Result<(), DbError> {
        let fail = |source| self.io_error("publishing a durable transaction", source);
        let mut state = self.lock();
        let pages = state.pages;
        let Some(wal) = state.wal.as_mut().filter(|wal| wal.captured.unpublished.is_some()) else {
            return Ok(());
        };
        if wal.phantom().map_err(fail)? {
            drop(state);
            return self.restore_locked().map_err(fail);
        }
        wal.publish_captured(pages).map(drop).map_err(fail)
    }

    /// Whether no writer of an earlier time is still at work.
    pub fn is_fenced(&self) -> bool {
        self.lock().wal.as_ref().is_none_or(|wal| wal.fence.raised())
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
        let work = self.lock().wal.as_ref().map(|wal| wal.work.try_clone());
        let Some(work) = work else {
            return if self.reserve(Wait::Until(deadline))? { self.finish_journals() } else { Err(busy()) };
        };
        // Without the state's lock: the writer at work may be waiting for its capture.
        let wait = Wait::Until(deadline);
        if !wait.lock(&work.map_err(fail)?, lock_bytes::WAL_WRITE).map_err(fail)? {
            return Err(busy());
        }
        if let Some(wal) = self.lock().wal.as_mut() {
            wal.fence.try_raise(&wal.work).map_err(fail)?;
        }
        self.capture_and_wait()
    }

    /// Whether it is a rollback database whose writers must wait and would not.
    pub(super) fn lacks_fence(&self, state: &State) -> bool {
        state.handles > 0 && self.wants_fence(state)
    }

    /// The same for one that somebody is about to open.
    pub(super) fn wants_fence(&self, state: &State) -> bool {
        let rollback = state.wal.is_none() && state.mode != Some(JournalMode::Wal);
        rollback && self.writers_wait() && !self.reserved.load(Ordering::SeqCst)
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

    /// Takes SQLite's RESERVED lock of a rollback database; says whether it is had. While it is held SQLite takes no
    /// journal for a hot one, so what a writer left staged is dropped first: nobody may read it for committed.
    pub(super) fn take_reserved(&self, file: &File, wait: Wait) -> Result<bool, DbError> {
        let fail = |source: io::Error| self.io_error("waiting for writers", source);
        loop {
            // Whoever begins to read asks for this one first.
            if try_lock(file, LockKind::Exclusive, lock_bytes::PENDING, 1).map_err(fail)? {
                let taken = self.try_reserved_unread(file);
                unlock(file, lock_bytes::PENDING, 1).map_err(fail)?;
                if taken.map_err(fail)? {
                    return Ok(true);
                }
            }
            if !wait.lock(file, lock_bytes::RESERVED).map_err(fail)? {
                return Ok(false);
            }
            if self.overlay.size().is_none() || self.reserved.load(Ordering::SeqCst) {
                return Ok(true);
            }
            unlock(file, lock_bytes::RESERVED, 1).map_err(fail)?;
            // Somebody may be rolling it back; he holds this one.
            if !wait.lock(file, lock_bytes::PENDING).map_err(fail)? {
                return Ok(false);
            }
            unlock(file, lock_bytes::PENDING, 1).map_err(fail)?;
        }
    }

    fn try_reserved_unread(&self, file: &File) -> io::Result<bool> {
        if !try_lock(file, LockKind::Exclusive, lock_bytes::RESERVED, 1)? {
            return Ok(false);
        }
        // Its writer has let go of the lock: it has failed or died.
        self.drop_staged().inspect_err(|_| drop(unlock(file, lock_bytes::RESERVED, 1))).map(|()| true)
    }

    fn unreserve(&self, state: &mut State) -> Result<(), DbError> {
        if !self.reserved.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        let Some(file) = &state.mounted else { return Ok(()) };
        unlock(file, lock_bytes::RESERVED, 1).map_err(|source| self.io_error("lifting the fence", source))
    }

    /// Waits for a transaction under a rollback journal that is being committed.
    fn finish_journals(&self) -> Result<(), DbError> {
        let mut state = self.lock();
        while state.flight.is_some() || state.exclusive {
            state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        Ok(())
    }
}
