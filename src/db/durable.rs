//! The marker: what the database file on disk holds without the log.

use std::fs::File;
use std::sync::Arc;

use super::database::{Database, State};
use super::page_checksums::Marker;
use super::{DbError, FileKind};
use crate::io::fault;
use crate::types::LogIndex;

impl Database {
    /// The first entry that the file on disk may lack, `None` where it lacks none.
    pub fn dirty_since(&self) -> Option<LogIndex> {
        self.lock().dirty_since
    }

    /// Checkpoints and syncs the database file, then moves the marker. Where readers hold back a part, or
    /// another checkpoint runs, the marker stays. Blocking, but the syncs are done without the database's lock.
    ///
    /// # Errors
    /// Where a file cannot be written or synced.
    pub fn make_durable(self: &Arc<Self>) -> Result<(), DbError> {
        let fail = |source| self.io_error("syncing the database", source);
        let (marker, checksums, wal_gone) = {
            let mut state = self.wait_shared(self.lock());
            if state.dirty_since.is_none() || state.dropped || state.log_left_behind || state.redoing() {
                return Ok(());
            }
            if !self.backfill(&mut state)? {
                return Ok(());
            }
            let marker = self.marker_of(&state);
            (marker, state.checksums.sync_handle().map_err(fail)?, state.wal.is_none())
        };
        fault::point("durable_sync").map_err(fail)?;
        match File::open(self.files().path(FileKind::Database)) {
            Ok(file) => file.sync_data().map_err(fail)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(fail(error)),
        }
        checksums.sync_data().map_err(fail)?;
        if wal_gone {
            // The removal of a journal or log must not be undone by a power cut once redo starts behind it.
            crate::io::durable::sync_dir(self.files().dir()).map_err(fail)?;
        }
        let mut state = self.lock();
        state.checksums.set_marker(marker).map_err(fail)?;
        state.dirty_since = (state.index > marker.index).then(|| marker.index.next());
        Ok(())
    }

    fn marker_of(&self, state: &State) -> Marker {
        Marker {
            pos: state.pos,
            index: state.index,
            page_size: state.page_size,
            pages: state.pages,
            wal: state.wal.as_ref().map(|wal| wal.captured.point()),
        }
    }
}

impl State {
    /// Whether the file holds content of entries that have not been applied again since a crash.
    pub fn redoing(&self) -> bool {
        self.index < self.checksums.pending()
    }

    /// Notes that the file on disk may lack entry `index` and later ones.
    pub fn touched_by(&mut self, index: LogIndex) {
        self.dirty_since.get_or_insert(index);
    }
}
