//! The fence: the WAL write lock, held by a node that may not write.
//!
//! Writers get SQLITE_BUSY and wait in their busy handler; readers notice nothing.

use std::io;

use super::wal_locks::{WalLock, WalLocks};
use crate::sqlite::lock_bytes;

/// The write lock for as long as the node may not write.
#[derive(Debug, Default)]
pub(super) struct Fence(Option<WalLock>);

impl Fence {
    /// Takes the write lock, waiting for a writer that has it: its commit then fails or lands, in order.
    ///
    /// # Errors
    /// Where locking fails.
    pub fn raise(&mut self, locks: &WalLocks) -> io::Result<()> {
        if self.0.is_none() {
            self.0 = Some(locks.take(lock_bytes::WAL_WRITE)?);
        }
        Ok(())
    }

    /// Takes the write lock if no writer has it.
    ///
    /// # Errors
    /// Where locking fails.
    pub fn try_raise(&mut self, locks: &WalLocks) -> io::Result<bool> {
        if self.0.is_none() {
            self.0 = locks.try_take(lock_bytes::WAL_WRITE)?;
        }
        Ok(self.raised())
    }

    /// Lets writers go on, as far as nobody else in the daemon keeps them out.
    pub fn lift(&mut self) {
        self.0 = None;
    }

    /// Keeps the write lock beyond the end of this process, for whoever has a duplicate of the open file.
    pub fn leave(&mut self) {
        self.0.take().into_iter().for_each(WalLock::leave);
    }

    /// Whether this node holds the write lock because it may not write.
    pub fn raised(&self) -> bool {
        self.0.is_some()
    }
}
