//! Watching for the end of a checkpoint, after which the log may begin anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attach::WalAttachment;
use super::database::Database;

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
                match state.wal.as_mut().map(WalAttachment::rest) {
                    None | Some(true) => return,
                    Some(false) => {}
                }
            }
            if Instant::now() >= deadline {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Puts the marks where they belong when nothing is going on.
    pub(super) fn settle_pin(&self) {
        let Some(mut state) = self.try_lock() else { return };
        if state.flight.is_some() || self.access() != crate::types::Access::Write {
            return;
        }
        if let Some(wal) = state.wal.as_mut() {
            wal.mark_ahead = None;
            if !wal.rest()
                && let Err(error) = wal.pin.advance(&wal.index, wal.captured.frame)
            {
                tracing::warn!(db = %self.name(), %error, "cannot move the read mark; checkpoints wait");
            }
        }
    }
}

impl WalAttachment {
    /// Moves the pin to slot 0 where the whole captured log is in the database file.
    pub fn rest(&mut self) -> bool {
        if !self.pin.held() {
            return false;
        }
        let captured = self.captured.frame;
        let rested = self.pin.rest(&self.index, captured).unwrap_or(false);
        if rested {
            self.mark_ahead = None;
        }
        rested
    }
}
