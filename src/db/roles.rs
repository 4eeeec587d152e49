//! What the node's access means for one database: the fence, raised and lifted.

use std::io;
use std::sync::Arc;

use super::DbError;
use super::database::Database;
use crate::io::ofd_lock::{LockKind, lock};
use crate::sqlite::lock_bytes;
use crate::types::Access;

impl Database {
    /// Makes locks and watches what the node's access demands. Blocking: a writer at work is waited for.
    ///
    /// # Errors
    /// Where locks cannot be taken.
    pub fn set_access(self: &Arc<Self>) -> Result<(), DbError> {
        if self.access() == Access::Write {
            let mut state = self.lock();
            if let Some(wal) = state.wal.as_mut() {
                self.set_fence(wal)?;
                if let Some(tailer) = self.shared.tailer() {
                    tailer.watch(self);
                }
            }
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
        fenced
    }

    /// Fences where that takes no waiting; says whether it did. A rollback database needs no fence: its journal is
    /// refused, and a transaction under way is not committed.
    pub fn try_fence(self: &Arc<Self>) -> bool {
        let Some(mut state) = self.try_lock() else { return false };
        let staged = self.overlay.size().is_some();
        match state.wal.as_mut() {
            Some(wal) => {
                let raised = wal.fence.try_raise(&wal.work).unwrap_or(false);
                raised && wal.captured.unpublished.is_none() && self.set_fence(wal).is_ok()
            }
            None => !staged,
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

    /// Before a planned move of the primary: keeps writers out, and commits what they have done. Blocking; writers at
    /// work are waited for.
    ///
    /// # Errors
    /// Where a lock cannot be taken, or the log does not take what is captured.
    pub fn hand_over(self: &Arc<Self>) -> Result<(), DbError> {
        let fail = |source: io::Error| self.io_error("waiting for writers", source);
        let work = self.lock().wal.as_ref().map(|wal| wal.work.try_clone());
        let Some(work) = work else { return self.finish_journals() };
        // Without the state's lock: the writer at work may be waiting for its capture.
        lock(&work.map_err(fail)?, LockKind::Exclusive, lock_bytes::WAL_WRITE, 1).map_err(fail)?;
        if let Some(wal) = self.lock().wal.as_mut() {
            wal.fence.try_raise(&wal.work).map_err(fail)?;
        }
        self.capture_and_wait()
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
