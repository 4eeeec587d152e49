//! Watching for the end of a checkpoint, after which the log may begin anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attach::WalAttachment;
use super::database::{Database, State};
use crate::sqlite::wal_index::{HeaderRead, IndexHeader};
use crate::types::Access;

/// How long the end of a checkpoint is awaited after its last request: it is a few instructions away.
const REST_WAIT_MAX: Duration = Duration::from_micros(200);

impl Database {
    /// Moves the pin to slot 0 as soon as the checkpoint that sent its last request has ended.
    ///
    /// The checkpointer stores nBackfill right after our answer, and nothing tells when; if the next writer comes
    /// first, it appends instead of beginning anew, and the next checkpoint gives another chance.
    pub(super) fn rest_soon(self: &Arc<Self>) {
        let deadline = Instant::now() + REST_WAIT_MAX;
        loop {
            if let Some(mut state) = self.try_lock() {
                let Some(wal) = state.wal.as_mut() else { return };
                if self.access() != Access::Write || wal.rest() {
                    return;
                }
                if Instant::now() >= deadline {
                    return self.hold_pin(&mut state);
                }
            } else if Instant::now() >= deadline {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Lets go of the pin while a checkpoint that copied everything ends, so that a RESTART or TRUNCATE checkpoint
    /// and the next writer find the way free. The next thing a checkpoint can copy is held up at its own sync of
    /// the WAL or truncation of the file, both of which reach us first.
    pub(super) fn release_pin(&self) {
        let Some(mut state) = self.try_lock() else { return };
        if state.flight.is_some() {
            return;
        }
        if let Some(wal) = state.wal.as_mut()
            && matches!(wal.index.header(), HeaderRead::Valid(header) if header.max_frame == wal.captured_frame(&header))
            && let Err(error) = wal.pin.release(&wal.index)
        {
            tracing::warn!(db = %self.name(), %error, "cannot release the read mark; checkpoints wait");
        }
    }

    fn hold_pin(&self, state: &mut State) {
        let Some(wal) = state.wal.as_mut() else { return };
        let HeaderRead::Valid(header) = wal.index.header() else { return };
        let frame = wal.captured_frame(&header);
        if let Err(error) = wal.pin.advance(&wal.index, frame) {
            tracing::warn!(db = %self.name(), %error, "cannot take a read mark");
        }
    }

    /// Puts the marks where they belong when nothing is going on.
    pub(super) fn settle_pin(&self) {
        let Some(mut state) = self.try_lock() else { return };
        if state.flight.is_some() || self.access() != Access::Write {
            return;
        }
        if let Some(wal) = state.wal.as_mut() {
            wal.mark_ahead = None;
            if !wal.rest() {
                self.hold_pin(&mut state);
            }
        }
    }
}

impl WalAttachment {
    /// The last captured frame of the log as it is now: none where it has begun anew.
    pub fn captured_frame(&self, header: &IndexHeader) -> u32 {
        if header.salt == self.captured.salt { self.captured.frame } else { 0 }
    }

    /// Moves the pin to slot 0 where the whole captured log is in the database file.
    pub fn rest(&mut self) -> bool {
        let HeaderRead::Valid(header) = self.index.header() else { return false };
        let captured = self.captured_frame(&header);
        let rested = self.pin.rest(&self.index, captured).unwrap_or(false);
        if rested {
            self.mark_ahead = None;
        }
        rested
    }
}
