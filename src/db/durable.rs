//! The marker: what the database file on disk holds without the log.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::database::{Database, State};
use super::page_checksums::Marker;
use super::scrub::PAGES_AT_ONCE;
use super::{DbError, FileKind};
use crate::io::{fault, space};
use crate::ltx::ChangeSet;
use crate::types::{Checksum, LogIndex, PageCount};

impl Database {
    /// The first entry that the file on disk may lack, `None` where it lacks none.
    pub fn dirty_since(&self) -> Option<LogIndex> {
        // Asked first: a landing that ends in between is in the state then.
        let landing = self.landing.index();
        let dirty = self.lock().dirty_since;
        landing.into_iter().chain(dirty).min()
    }

    /// Checkpoints and syncs the database file, then moves the marker. Where readers hold back a part, or
    /// another checkpoint runs, the marker stays. Blocking, but the syncs are done without the database's lock.
    ///
    /// # Errors
    /// Where a file cannot be written or synced.
    pub fn make_durable(self: &Arc<Self>) -> Result<(), DbError> {
        let fail = |source| self.io_error("syncing the database", source);
        let (marker, checksums, wal_gone, new) = {
            let mut state = self.lock();
            if state.exclusive {
                // Claimed, perhaps for long: the marker moves with a later checkpoint.
                return Ok(());
            }
            // Of a database that failed the file may lack what its position says it has.
            let unsound = state.service.failure().is_some() || state.open.is_left_behind() || state.redoing();
            if state.dirty_since.is_none() || state.service.is_dropped() || unsound {
                return Ok(());
            }
            if !self.backfill(&mut state)? {
                return Ok(());
            }
            let marker = self.marker_of(&state);
            let new = state.checksums.marker().pos.txid.is_none();
            (marker, state.checksums.sync_handle().map_err(fail)?, !state.open.is_wal(), new)
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
        if new {
            // A database is in the directories above it; their names in turn are there once the first of them is.
            let above = self.files().dir().ancestors().skip(1).take(self.name().as_str().split('/').count());
            above.into_iter().try_for_each(crate::io::durable::sync_dir).map_err(fail)?;
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
            wal: state.open.wal().map(|wal| wal.captured.point()),
        }
    }
}

impl Database {
    /// The log is about to be applied again from the marker on. After a power cut any part of what was written since
    /// may be there and any part missing, the note of how far it goes included: until the end of the log only the
    /// order of change sets can be checked.
    pub(crate) fn begin_replay(&self) {
        self.lock().replaying = true;
    }

    /// Whether the file may hold parts of entries that have not been applied again since a crash.
    pub(crate) fn is_redoing(&self) -> bool {
        self.lock().redoing()
    }

    /// Looks at every page while redo goes on. Where they are exactly what the position says, nothing of later entries
    /// is in the file, and redo is over: those entries were never applied here, so they may be of any fate.
    ///
    /// Without it a primary whose last entries nobody has confirmed could give no copy to the voter that is needed to
    /// confirm them. Looked at once for each position. Blocking.
    ///
    /// The checksum of a position is a sum of pages' checksums: changes of several pages that cancel out in it are not
    /// seen. A copy then has them early, until those entries are applied to it.
    ///
    /// # Errors
    /// Where a file cannot be read or written.
    pub fn end_redo_where_whole(&self) -> Result<(), DbError> {
        {
            let mut state = self.lock();
            let position = Some(state.index);
            let seen = std::mem::replace(&mut state.looked_whole, position) == position;
            if !state.redoing() || seen || !self.files().path(FileKind::Database).exists() {
                return Ok(());
            }
        }
        let fail = |source| self.io_error("looking whether redo is over", source);
        let (mut next, mut total) = (1, Checksum::EMPTY);
        loop {
            // Piece by piece: an entry that is about to be applied, on Raft's thread, does not wait for a whole file.
            let mut state = self.lock();
            let moved = state.looked_whole != Some(state.index) || state.open.is_wal();
            if moved || !state.redoing() || state.service.failure().is_some() {
                return Ok(());
            }
            if next > state.pages.get() {
                if total == state.pos.checksum {
                    let index = state.index;
                    state.checksums.lower_pending(index).map_err(fail)?;
                    state.replaying = false;
                }
                return Ok(());
            }
            let last = next.saturating_add(PAGES_AT_ONCE - 1).min(state.pages.get());
            total = total ^ self.resum(&mut state, next, last).map_err(fail)?;
            next = last + 1;
        }
    }

    /// The log has been applied: file and position must agree now.
    pub(crate) fn end_replay(&self) {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.replaying, false)
            || state.redoing()
            || state.service.failure().is_some()
        {
            return;
        }
        if let Err(error) = self.check_redone(&state) {
            tracing::error!(db = %self.name(), %error, "not served until it is resynced");
            state.service.fail(error.to_string());
        }
    }
}

impl State {
    /// Whether the file holds content of entries that have not been applied again since a crash.
    pub fn redoing(&self) -> bool {
        self.replaying || self.index < self.checksums.pending()
    }

    /// Notes that the file on disk may lack entry `index` and later ones.
    pub fn touched_by(&mut self, index: LogIndex) {
        self.dirty_since.get_or_insert(index);
    }
}

impl Database {
    /// Takes the disk space that `change` needs in the database file and in the file of its checksums, where they grow:
    /// once the log has a change set, writing it here must not fail.
    ///
    /// # Errors
    /// Where the disk is full.
    pub(super) fn reserve_space(&self, state: &mut State, change: &ChangeSet) -> io::Result<()> {
        let size = change.commit.bytes(change.page_size);
        if size > state.pages.bytes(state.page_size) {
            space::reserve_growth(&self.files().path(FileKind::Database), size)?;
        }
        self.reserve_checksums(state, change.commit)
    }

    /// The same for the file of the checksums alone.
    ///
    /// # Errors
    /// Where the disk is full.
    pub(super) fn reserve_checksums(&self, state: &mut State, pages: PageCount) -> io::Result<()> {
        if pages <= state.pages {
            return Ok(());
        }
        state.checksums.reserve(&self.files().pages(), pages)
    }
}
