//! The fence: the WAL write lock, held by a node that may not write.
//!
//! Writers get SQLITE_BUSY and wait in their busy handler; readers notice nothing.

use std::fs::File;
use std::io;

use crate::io::ofd_lock::{LockKind, lock, try_lock, unlock};
use crate::sqlite::lock_bytes;

/// Whether the write lock is held, and for whom.
#[derive(Debug, Default)]
pub struct Fence {
    raised: bool,
}

impl Fence {
    /// Takes the write lock, waiting for a writer that has it: its commit then fails or lands, in order.
    ///
    /// # Errors
    /// Where locking fails.
    pub fn raise(&mut self, work: &File) -> io::Result<()> {
        if !self.raised {
            lock(work, LockKind::Exclusive, lock_bytes::WAL_WRITE, 1)?;
            self.raised = true;
        }
        Ok(())
    }

    /// Takes the write lock if no writer has it.
    ///
    /// # Errors
    /// Where locking fails.
    pub fn try_raise(&mut self, work: &File) -> io::Result<bool> {
        if !self.raised {
            self.raised = try_lock(work, LockKind::Exclusive, lock_bytes::WAL_WRITE, 1)?;
        }
        Ok(self.raised)
    }

    /// Lets writers go on.
    ///
    /// # Errors
    /// Where unlocking fails.
    pub fn lift(&mut self, work: &File) -> io::Result<()> {
        if self.raised {
            unlock(work, lock_bytes::WAL_WRITE, 1)?;
            self.raised = false;
        }
        Ok(())
    }

    /// Whether this node holds the write lock.
    pub fn raised(&self) -> bool {
        self.raised
    }
}
