//! When the pin may go: everything captured is published.

use super::attach::WalAttachment;
use super::database::Database;
use crate::sqlite::wal_index::{HeaderRead, IndexHeader};

impl Database {
    /// Lets go of the pin where nothing needs it: called when a checkpoint ends, so that a RESTART or TRUNCATE
    /// checkpoint and the next writer find the way free, and when the log comes to rest.
    pub(super) fn release_pin(&self) {
        let Some(mut state) = self.try_lock() else { return };
        if state.in_flight.is_some() {
            return;
        }
        if let Some(wal) = state.open.wal_mut()
            && wal.all_published()
            && let Err(error) = wal.pin.release(&wal.index)
        {
            tracing::warn!(db = %self.name(), %error, "cannot release a read slot; the WAL grows");
        }
    }
}

impl WalAttachment {
    /// The last captured frame of the log as it is now: none where it has begun anew.
    pub fn captured_frame(&self, header: &IndexHeader) -> u32 {
        // The first writer of a log draws its salts, and puts them into the wal-index only when it publishes.
        let is_first = || {
            header.max_frame == 0
                && self.captured.unpublished.is_some()
                && self.wal_header().is_some_and(|file| file.salt == self.captured.salt)
        };
        if header.salt == self.captured.salt || is_first() { self.captured.frame } else { 0 }
    }

    fn all_published(&mut self) -> bool {
        match self.index.header() {
            HeaderRead::Valid(header) => {
                header.max_frame >= self.captured_frame(&header) && matches!(self.is_overrun(), Ok(false))
            }
            HeaderRead::Empty | HeaderRead::Torn => false,
        }
    }
}
