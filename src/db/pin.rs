//! The pin: a read slot that keeps the WAL from beginning anew over frames that are captured but not published.
//!
//! What may be checkpointed is decided elsewhere: a checkpointer syncs the WAL before it copies frames and
//! truncates the database file after it has copied all of them, and both requests wait here until every frame
//! written so far is in the log. So the slot carries the mark "unused": it stands in the way of no checkpoint,
//! however new its frames are, and of a restart only. Source: `wal.c`, `walCheckpoint` and `walRestartLog`.

use std::fs::File;
use std::io;

use crate::io::ofd_lock::{LockKind, try_lock, unlock};
use crate::sqlite::lock_bytes;
use crate::sqlite::wal_index::{READ_MARK_UNUSED, READ_SLOTS, WalIndex};

/// The read slot the daemon holds.
#[derive(Debug, Default)]
pub struct Pin {
    slot: Option<usize>,
}

impl Pin {
    /// Takes a slot where none is held. Returns whether one is held now; readers may have taken all of them, and
    /// then those stand in the way of a restart themselves.
    ///
    /// # Errors
    /// Where the lock calls themselves fail.
    pub fn hold(&mut self, index: &WalIndex) -> io::Result<bool> {
        if self.slot.is_none() {
            // From the last slot down: readers look for theirs from the first up.
            for slot in (1..READ_SLOTS).rev() {
                if take(index.shm(), index, slot, READ_MARK_UNUSED)? {
                    self.slot = Some(slot);
                    break;
                }
            }
        }
        Ok(self.slot.is_some())
    }

    /// Lets go.
    ///
    /// # Errors
    /// Where the unlock fails.
    pub fn release(&mut self, index: &WalIndex) -> io::Result<()> {
        if let Some(slot) = self.slot.take() {
            unlock(index.shm(), read_byte(slot), 1)?;
        }
        Ok(())
    }

    /// Whether a slot is held.
    pub fn held(&self) -> bool {
        self.slot.is_some()
    }
}

/// Takes `slot` shared with its mark at `frame`, as SQLite's readers do.
pub fn take(shm: &File, index: &WalIndex, slot: usize, frame: u32) -> io::Result<bool> {
    let byte = read_byte(slot);
    if frame != READ_MARK_UNUSED
        && index.read_mark(slot) == frame
        && try_lock(shm, LockKind::Shared, byte, 1)?
    {
        if index.read_mark(slot) == frame {
            return Ok(true);
        }
        unlock(shm, byte, 1)?;
    }
    if try_lock(shm, LockKind::Exclusive, byte, 1)? {
        index.set_read_mark(slot, frame);
        return try_lock(shm, LockKind::Shared, byte, 1);
    }
    Ok(false)
}

/// Lock byte of a read slot.
pub fn read_byte(slot: usize) -> u64 {
    lock_bytes::read(slot as u64)
}
