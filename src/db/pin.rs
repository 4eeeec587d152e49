//! The pin: a read mark that keeps checkpoints and WAL restarts behind what is captured and durable.
//!
//! Invariant: from the first capture of an attached database on, at least one read slot is held shared, and
//! every slot held stands at a frame whose content the log holds durably (slot 0 stands for "all of the WAL is
//! in the database file"). Source: `wal.c`, `walCheckpoint` and `walRestartLog`.

use std::fs::File;
use std::io;

use crate::io::ofd_lock::{LockKind, try_lock, unlock};
use crate::sqlite::lock_bytes;
use crate::sqlite::wal_index::{HeaderRead, READ_SLOTS, WalIndex};

/// The read slot the daemon holds.
#[derive(Debug, Default)]
pub struct Pin {
    slot: Option<usize>,
    mark: u32,
}

impl Pin {
    /// Moves the mark to `frame`, hand over hand. Returns whether it got there; where it did not, the old mark
    /// stays and a later call tries again.
    ///
    /// # Errors
    /// Where the lock calls themselves fail.
    pub fn advance(&mut self, index: &WalIndex, frame: u32) -> io::Result<bool> {
        if self.mark == frame && self.slot.is_some_and(|slot| slot > 0) {
            return Ok(true);
        }
        let shm = index.shm();
        if let Some(slot) = self.slot.filter(|slot| *slot > 0) {
            let byte = read_byte(slot);
            if try_lock(shm, LockKind::Exclusive, byte, 1)? {
                index.set_read_mark(slot, frame);
                try_lock(shm, LockKind::Shared, byte, 1)?;
                self.mark = frame;
                return Ok(true);
            }
        }
        let old = self.slot;
        for slot in (1..READ_SLOTS).filter(|slot| Some(*slot) != old) {
            if take(shm, index, slot, frame)? {
                (self.slot, self.mark) = (Some(slot), frame);
                if let Some(old) = old {
                    unlock(shm, read_byte(old), 1)?;
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Moves to slot 0 where the whole WAL, which must be captured up to `captured`, is in the database file;
    /// then the next writer can begin the WAL anew. Returns whether the pin is there.
    ///
    /// # Errors
    /// Where the lock calls themselves fail.
    pub fn rest(&mut self, index: &WalIndex, captured: u32) -> io::Result<bool> {
        if self.slot == Some(0) {
            return Ok(true);
        }
        if !everything_backfilled(index, captured) {
            return Ok(false);
        }
        let shm = index.shm();
        if !try_lock(shm, LockKind::Shared, read_byte(0), 1)? {
            return Ok(false);
        }
        // Between the look and the lock a writer may have gone on; with slot 0 held nothing more is backfilled,
        // so a second look decides.
        if !everything_backfilled(index, captured) {
            if self.slot.is_some() {
                unlock(shm, read_byte(0), 1)?;
            }
            return Ok(false);
        }
        if let Some(old) = self.slot.replace(0) {
            unlock(shm, read_byte(old), 1)?;
        }
        self.mark = 0;
        Ok(true)
    }

    /// Lets go: this node neither writes nor lets applications write.
    ///
    /// # Errors
    /// Where the unlock fails.
    pub fn release(&mut self, index: &WalIndex) -> io::Result<()> {
        if let Some(slot) = self.slot.take() {
            unlock(index.shm(), read_byte(slot), 1)?;
        }
        self.mark = 0;
        Ok(())
    }

    /// Whether the pin stands at slot 0.
    pub fn resting(&self) -> bool {
        self.slot == Some(0)
    }

    /// Whether any slot is held.
    pub fn held(&self) -> bool {
        self.slot.is_some()
    }
}

/// Takes `slot` shared with its mark at `frame`, as SQLite's readers do.
pub fn take(shm: &File, index: &WalIndex, slot: usize, frame: u32) -> io::Result<bool> {
    let byte = read_byte(slot);
    if index.read_mark(slot) == frame && try_lock(shm, LockKind::Shared, byte, 1)? {
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

fn everything_backfilled(index: &WalIndex, captured: u32) -> bool {
    match index.header() {
        HeaderRead::Valid(header) => header.max_frame == captured && index.backfilled() == captured,
        HeaderRead::Empty | HeaderRead::Torn => false,
    }
}

/// Lock byte of a read slot.
pub fn read_byte(slot: usize) -> u64 {
    lock_bytes::read(slot as u64)
}
