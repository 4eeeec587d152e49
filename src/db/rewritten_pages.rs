//! Pages that a checkpoint of an application brought into the database file with other bytes than its log had.
//!
//! Where pages have reserved bytes at their end, a VFS below SQLite may fill them when a page is written to the database
//! file and not when it is written to the log: SQLite's checksum VFS does. The log is what was captured, so while it counts
//! nothing has changed. When it begins anew or ends, the file counts, and what differs in it is a transaction of its own.
//! Source: `ext/misc/cksumvfs.c`, cksmWrite(); SQLite file format, section 1.3.4.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, mpsc};

use super::DbError;
use super::attach::WalAttachment;
use super::batch::Frame;
use super::commit::{InFlight, Source};
use super::database::{Database, State};
use crate::io::fault;
use crate::ltx::{self, ChangeSet};
use crate::types::Pgno;

impl Database {
    /// Where the log has begun anew: puts what its last checkpoint brought into the file with other bytes in flight, to be
    /// proposed before anything of the new log. `None` where there is nothing.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub(super) fn capture_rewritten(&self, state: &mut State) -> Result<Option<ChangeSet>, DbError> {
        let anew = |wal: &WalAttachment| {
            !wal.rewritable.is_empty()
                && wal.captured.unpublished.is_none()
                && wal.wal_header().is_some_and(|header| header.salt != wal.captured.salt)
        };
        if !state.open.wal().is_some_and(anew) {
            return Ok(None);
        }
        self.rewritten(state)
    }

    /// The same where the log ends. Blocking; answers when it is durable.
    ///
    /// # Errors
    /// `Unavailable` where the log does not take it; `Io`.
    pub(super) fn commit_rewritten(self: &Arc<Self>) -> Result<(), DbError> {
        let mut state = self.wait_for_capture();
        // What the last connection did not copy is copied here, as the log has it.
        if state.open.wal().is_none_or(|wal| wal.lacks_in_file()) {
            return Ok(());
        }
        let Some(change) = self.rewritten(&mut state)? else { return Ok(()) };
        let (sender, receiver) = mpsc::channel();
        if let Some(in_flight) = &mut state.in_flight {
            in_flight.waiters.push(Box::new(move |answer| drop(sender.send(answer))));
        }
        drop(state);
        self.propose(change);
        receiver.recv().unwrap_or_else(|_| Err(self.unavailable("the log was closed")))
    }

    fn rewritten(&self, state: &mut State) -> Result<Option<ChangeSet>, DbError> {
        if !self.may_commit() || state.undecided.is_some() || state.service.failure().is_some() {
            return Ok(None);
        }
        let fail = |source| self.io_error("comparing what a checkpoint wrote", source);
        fault::point("capture_rewritten").map_err(fail)?;
        let Some(wal) = state.open.wal().filter(|wal| !wal.rewritable.is_empty()) else { return Ok(None) };
        let (page_size, end) = (state.page_size, wal.captured);
        let file = wal.backing_database.try_clone().map_err(fail)?;
        let read = |pgno: Pgno, page: &mut [u8]| file.read_exact_at(page, pgno.offset(page_size));
        let (mut differing, mut page) = (BTreeSet::new(), vec![0; page_size.len()]);
        for pgno in wal.rewritable.pages().filter(|pgno| state.pages.contains(*pgno)) {
            read(pgno, &mut page).map_err(fail)?;
            if state.checksums.get(pgno).map_err(fail)? != Some(ltx::page_checksum(pgno, &page)) {
                differing.insert(pgno);
            }
        }
        if differing.is_empty() {
            if let Some(wal) = state.open.wal_mut() {
                wal.rewritable.forget();
            }
            return Ok(None);
        }
        let batch = Frame::on(self.name(), state, page_size, state.pages)
            .encode(&self.shared, &state.checksums, differing.into_iter(), read)
            .map_err(fail)?;
        let change = batch.change.clone();
        let source = Source::Wal { end, published: true };
        state.in_flight = Some(InFlight { batch, waiters: Vec::new(), source });
        Ok(Some(change))
    }
}
