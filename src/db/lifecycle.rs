//! What the store does to a database as a whole: roles, failure, the end.

use std::sync::Arc;

use super::DbError;
use super::database::{Database, State};
use super::guarded_file::GuardedFile;
use super::opened::{Opened, Service};
use super::page_checksums::Marker;
use crate::ltx::{self, ChangeSet};
use crate::types::{Access, Checksum, LogIndex, PageCount, Pgno, Pos};

impl Database {
    /// Stops serving the database until it is resynced.
    pub fn fail(&self, error: &DbError) {
        let mut state = self.lock();
        if state.service.failure().is_none() {
            tracing::error!(db = %self.name(), %error, "not served until it is resynced");
            state.service.fail(error.to_string());
        }
    }

    /// Whether applications have it open, attached ones that linger left out.
    pub fn in_use(&self) -> bool {
        self.lock().handles > 0
    }

    /// Where it stands, unless that is `expected`, or will be when what is on its way through the log has landed. Nothing
    /// is said of a database that somebody has claimed, whose log is not applied again yet, or that is not served.
    pub fn stands_elsewhere(&self, expected: Pos) -> Option<Pos> {
        let state = self.lock();
        if state.exclusive || state.redoing() || state.service.failure().is_some() {
            return None;
        }
        let proposed = state.in_flight.iter().chain(&state.undecided).map(|proposal| &proposal.batch.change);
        let leads = |change: &ChangeSet| Pos::new(change.range.max(), change.post) == expected;
        (state.pos != expected && !proposed.into_iter().any(leads)).then_some(state.pos)
    }

    /// Whether it was dropped or replaced.
    pub fn is_dropped(&self) -> bool {
        self.lock().service.is_dropped()
    }

    /// Whether an operation that failed on it failed because it was dropped, or replaced, meanwhile. Waits for who has
    /// claimed it: perhaps for just that. Blocking.
    pub fn is_gone(&self) -> bool {
        self.wait_shared(self.lock()).service.is_dropped()
    }

    /// Handles of the database file that applications have.
    pub fn app_handles(&self) -> u32 {
        self.lock().handles
    }

    /// Lets go of everything held through the mount, so that it can be unmounted. What applications still have
    /// open is captured at the next start, from the log that is left behind.
    pub fn close(self: &Arc<Self>) {
        let mut state = self.lock();
        while state.in_flight.is_some() {
            state = state.wait(&self.changed);
        }
        match self.detach(&mut state) {
            Ok(true) => return,
            Ok(false) => tracing::info!(db = %self.name(), "still open while the node ends"),
            Err(error) => tracing::warn!(%error, "cannot detach"),
        }
        drop(state);
        // What is staged will not be committed. Nobody may read it, also not from the kernel's cache when this process is
        // gone and the journal cannot be found.
        let taken_back = self.take_back_in_place(&self.lock());
        if let Err(error) = taken_back.and_then(|()| self.drop_staged()) {
            tracing::warn!(db = %self.name(), %error, "cannot end a transaction that is under way");
        }
        // As far as its readers allow; the rest is only in its log, and nobody here moves it any more.
        if let Err(error) = self.make_durable() {
            tracing::warn!(%error, "the next start redoes what could not be made durable");
        }
        let mut state = self.lock();
        if let Some(wal) = state.open.wal_mut() {
            // Writers wait until they ask another node, or this one again. One at work is fenced when he is done, by who
            // keeps the fence.
            if let Err(error) = wal.fence.try_raise(&wal.locks) {
                tracing::warn!(db = %self.name(), %error, "cannot fence what is still open");
            }
            wal.fence.leave();
            wal.kept.take().into_iter().for_each(GuardedFile::leave);
        }
        state.open = if state.open.is_wal() { Opened::LeftBehind } else { Opened::Cold };
    }

    /// Whether applications had it open when the node let go of it.
    pub fn is_left_open(&self) -> bool {
        self.lock().open.is_left_behind()
    }

    /// The database is dropped or replaced: nothing of it is captured any more.
    pub fn set_dropped(&self) {
        let mut state = self.lock();
        state.service = Service::Dropped;
    }

    /// A database that is new under a name whose last one ended with entry `end`: nothing older is part of it. Not synced:
    /// where a power cut takes the note, redo makes the database anew.
    ///
    /// # Errors
    /// Where the note cannot be written.
    pub fn begin_behind(&self, end: LogIndex) -> Result<(), DbError> {
        let mut state = self.lock();
        if state.pos.txid.is_some() || state.index >= end {
            return Ok(());
        }
        state.index = end;
        let marker = Marker { index: end, ..Marker::NEW };
        state.checksums.note_marker(marker).map_err(|source| self.io_error("making it", source))
    }

    /// The entry that gave the database its name.
    pub fn set_index(&self, index: LogIndex) {
        let mut state = self.lock();
        state.index = index;
        state.touched_by(index);
    }

    /// Detaches where nobody has come back.
    ///
    /// # Errors
    /// `Unavailable` where something is still to be captured: try again later.
    pub(super) fn try_detach(self: &Arc<Self>) -> Result<(), DbError> {
        let mut state = self.lock();
        if state.handles > 0 || self.detach(&mut state)? {
            return Ok(());
        }
        drop(state);
        // What its last writer left may be news: a wal-index made anew from the log shows more than the one before.
        if let Some(watcher) = self.shared.watcher().filter(|_| self.access() == Access::Write) {
            watcher.watch(self);
        }
        Err(self.unavailable("still in use"))
    }

    /// Checksums of the committed pages.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn checksums_upto(&self, pages: PageCount) -> Result<Vec<Option<Checksum>>, DbError> {
        let mut sums = vec![None; pages.get() as usize];
        self.lock()
            .checksums
            .read_range(Pgno::FIRST, &mut sums)
            .map_err(|source| self.io_error("reading page checksums", source))?;
        Ok(sums)
    }

    /// Computes all checksums anew from what is really in the files.
    ///
    /// # Errors
    /// Where the files cannot be read.
    pub fn rescan(&self) -> Result<(), DbError> {
        let mut state = self.lock();
        self.rescan_locked(&mut state).map_err(|source| self.io_error("reading all pages", source))
    }

    fn rescan_locked(&self, state: &mut State) -> std::io::Result<()> {
        let mut total = Checksum::EMPTY;
        let mut sums = Vec::with_capacity(state.pages.get() as usize);
        self.each_page(state, true, |pgno, page| {
            let sum = ltx::page_checksum(pgno, page);
            total = total ^ sum;
            sums.push((pgno, sum));
            Ok(())
        })?;
        state.checksums.set(&sums)?;
        if !state.redoing() {
            // What is applied again is checked against the position it starts from.
            state.pos.checksum = total;
        }
        Ok(())
    }
}
