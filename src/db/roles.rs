//! What the node's access means for one database: the fence, raised and lifted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

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
    /// No: the fence stays down then.
    No,
}

impl Database {
    /// Makes locks and watches what the node's access demands. Blocking: a writer at work is waited for.
    ///
    /// # Errors
    /// Where locks cannot be taken.
    pub fn set_access(self: &Arc<Self>) -> Result<(), DbError> {
        if self.access() == Access::Write {
            let mut state = self.lock();
            self.unreserve(&mut state)?;
            if let Some(wal) = state.wal.as_mut() {
                self.set_fence(wal)?;
                if let Some(tailer) = self.shared.tailer() {
                    tailer.watch(self);
                }
            }
            return Ok(());
        }
        if !self.has_wal() && self.reserve(Wait::No)? && self.overlay.size().is_none() {
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
    /// Where a lock cannot be taken, or the log does not take what is captured.
    pub fn hand_over(self: &Arc<Self>) -> Result<(), DbError> {
        let fail = |source: io::Error| self.io_error("waiting for writers", source);
        let work = self.lock().wal.as_ref().map(|wal| wal.work.try_clone());
        let Some(work) = work else {
            self.reserve(Wait::Yes)?;
            return self.finish_journals();
        };
        // Without the state's lock: the writer at work may be waiting for its capture.
        lock(&work.map_err(fail)?, LockKind::Exclusive, lock_bytes::WAL_WRITE, 1).map_err(fail)?;
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
        let waits = self.access() == Access::Fenced || self.shared.is_handing_over();
        let rollback = state.wal.is_none() && state.mode != Some(JournalMode::Wal);
        waits && rollback && !self.reserved.load(Ordering::SeqCst)
    }

    /// Raises the fence of a rollback database that applications have open: SQLite's RESERVED lock, as another writer
    /// would hold it. Says whether it is up.
    pub(super) fn reserve(&self, wait: Wait) -> Result<bool, DbError> {
        let fail = |source: io::Error| self.io_error("fencing", source);
        let mut state = self.lock();
        if !self.lacks_fence(&state) {
            return Ok(true);
        }
        if wait == Wait::No && self.overlay.size().is_some() {
            // With this lock held SQLite takes no journal for a hot one, and would read what the transaction staged.
            return Ok(false);
        }
        let file = self.mounted(&mut state).map_err(fail)?;
        drop(state);
        // The open file is one for all of the daemon: who applies an entry holds this, too.
        let _alone = self.alone.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match wait {
            Wait::Yes => lock(&file, LockKind::Exclusive, lock_bytes::RESERVED, 1).map_err(fail)?,
            Wait::No => {
                if !try_lock(&file, LockKind::Exclusive, lock_bytes::RESERVED, 1).map_err(fail)? {
                    return Ok(false);
                }
            }
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
