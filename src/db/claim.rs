//! Claim: a database stays as it is while the log decides about its name or its end.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch::Frame;
use super::database::{Database, State};
use super::import::bump_change_counter;
use super::page_checksums::{Marker, PageChecksums};
use super::replace::HeldWriters;
use super::{DbError, DbFiles, FileKind};
use crate::io::{durable, fault, read_or_zero};
use crate::sqlite::wal_index::HeaderRead;
use crate::types::{Access, LogIndex, Pgno};

/// The kernel tells the daemon of a closed file only after close(2) has returned, so a claim looks again this often.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A claimed database: captures, opens and imports of it wait for as long as this lives.
pub(crate) struct Claim {
    database: Arc<Database>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.database.end_exclusive();
    }
}

impl Database {
    /// Claims the database, whoever has it open. Waits for the change set on its way through the log, so that none of
    /// this database can come behind the entry that ends it. Blocking.
    ///
    /// # Errors
    /// `Conflict` where it is not to be had until `deadline`.
    pub(crate) fn claim(self: &Arc<Self>, deadline: Instant) -> Result<Claim, DbError> {
        let mut state = self.lock();
        while state.exclusive || state.in_flight.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.conflict("is busy with a transaction or an import; try again"));
            }
            state = state.wait_timeout(&self.changed, left);
        }
        state.exclusive = true;
        Ok(Claim { database: self.clone() })
    }

    /// Claims a database that no application has open, with everything captured and copied into its file. Blocking.
    ///
    /// # Errors
    /// `Conflict` where it is still open at `deadline`; `Corrupt` where it is not served.
    pub(crate) fn claim_closed(self: &Arc<Self>, deadline: Instant) -> Result<Claim, DbError> {
        loop {
            if self.access() == Access::Write {
                self.capture_and_wait()?;
            }
            let claim = self.claim(deadline)?;
            if self.detach_claimed()? {
                return Ok(claim);
            }
            drop(claim);
            if Instant::now() >= deadline {
                return Err(self.conflict("is open; close it before renaming"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Claims a database that applications have open, with its writers kept out until both guards are dropped. Blocking.
    ///
    /// # Errors
    /// `Conflict` where a transaction is still under way at `deadline`.
    pub(crate) fn claim_open(
        self: &Arc<Self>,
        deadline: Instant,
    ) -> Result<(HeldWriters<'_>, Claim), DbError> {
        loop {
            let held = self.hold_writers_until(deadline)?;
            self.capture_and_wait()?;
            let claim = self.claim(deadline)?;
            if held.covers(&self.lock()) {
                return Ok((held, claim));
            }
            // Opened in another way in between.
            drop(claim);
        }
    }

    /// Ends the attachment of a claimed database; whether it is cold now.
    pub(crate) fn detach_claimed(&self) -> Result<bool, DbError> {
        let mut state = self.lock();
        if let Some(why) = state.service.failure() {
            return Err(self.corrupt(format!("not served until it is repaired: {why}")));
        }
        if state.undecided.is_some() {
            return Err(self.conflict("the fate of its last transaction is unknown; try again"));
        }
        // The claim keeps all others from detaching; this is the claim's own.
        state.exclusive = false;
        let cold = self.detach(&mut state);
        state.exclusive = true;
        Ok(cold? && state.handles == 0)
    }

    /// Commits a change counter that nobody has seen in a database this one is about to take the place of: in the rollback
    /// modes (a connection anywhere may be from a time when it was in one) SQLite takes what it has cached for good where the counter is the same. For a claimed database that is cold.
    ///
    /// # Errors
    /// `Unavailable` where the log does not take it.
    pub(crate) fn renew_change_counter(self: &Arc<Self>, other: &Self) -> Result<(), DbError> {
        let fail = |source| self.io_error("preparing a rename", source);
        let state = self.lock();
        let (page_size, pages) = (state.page_size, state.pages);
        // No two renames over it come to the same: its entry grows, and is spread over all bits.
        let salt = other.index().get().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let file = self.open_backing(FileKind::Database)?;
        let batch = Frame::on(self.name(), &state, page_size, pages)
            .encode(&self.shared, &state.checksums, [Pgno::FIRST].into_iter(), |pgno, page| {
                read_or_zero(&file, pgno.offset(page_size), page)?;
                bump_change_counter(page, salt, pages);
                Ok(())
            })
            .map_err(fail)?;
        drop(state);
        self.commit_built(batch)
    }

    /// Whether applications have it open, and it is not only kept ready for the next one.
    pub(crate) fn is_open(&self) -> bool {
        self.lock().handles > 0
    }

    /// The log gives this cold database another name with entry `index`: its file is made durable together with that
    /// index. Whatever the log holds of either name before then is no part of it any more, so redo of this database ends
    /// here. Blocking.
    ///
    /// # Errors
    /// `Corrupt` where its pages are not those of its position; `Io`.
    pub(crate) fn close_history(self: &Arc<Self>, index: LogIndex) -> Result<(), DbError> {
        let fail = |source| self.io_error("preparing a rename", source);
        let mut state = self.lock();
        if state.redoing() {
            self.check_redone(&state)?;
            state.replaying = false;
        }
        let pending = state.index;
        state.checksums.lower_pending(pending).map_err(fail)?;
        let marker =
            Marker { pos: state.pos, index, page_size: state.page_size, pages: state.pages, wal: None };
        fault::point("rename_sync").map_err(fail)?;
        self.open_backing(FileKind::Database)?.sync_data().map_err(fail)?;
        durable::sync_dir(self.files().dir()).map_err(fail)?;
        state.checksums.set_marker(marker).map_err(fail)?;
        (state.index, state.dirty_since, state.captured) = (index, None, None);
        Ok(())
    }

    /// Writes the committed content as a database of its own into the empty directory `dir`, standing at entry `index`.
    /// For a database that is renamed while applications still have it open here. Blocking.
    ///
    /// # Errors
    /// Where files cannot be read or written.
    pub(crate) fn copy_to(&self, dir: &std::path::Path, index: LogIndex) -> Result<(), DbError> {
        let fail = |source| self.io_error("copying a renamed database", source);
        let files = DbFiles::new(dir.to_path_buf());
        let mut state = self.lock();
        let (page_size, pages) = (state.page_size, state.pages);
        let copy = File::options()
            .write(true)
            .create_new(true)
            .open(files.path(FileKind::Database))
            .map_err(fail)?;
        let mut sums = Vec::new();
        self.each_page(&mut state, false, |pgno, page| {
            use std::os::unix::fs::FileExt;
            sums.push((pgno, crate::ltx::page_checksum(pgno, page)));
            copy.write_all_at(page, pgno.offset(page_size))
        })
        .map_err(fail)?;
        copy.set_len(pages.bytes(page_size)).and_then(|()| copy.sync_data()).map_err(fail)?;
        let mut checksums = PageChecksums::open(&files.pages()).map_err(fail)?;
        checksums.set(&sums).map_err(fail)?;
        let marker = Marker { pos: state.pos, index, page_size, pages, wal: None };
        checksums.set_marker(marker).and_then(|()| durable::sync_dir(dir)).map_err(fail)
    }

    /// What a database in these files durably holds; `None` where there is none.
    ///
    /// # Errors
    /// Where the files cannot be read.
    pub(crate) fn marker_in(files: &DbFiles) -> std::io::Result<Option<Marker>> {
        match files.pages().exists() {
            true => PageChecksums::open(&files.pages()).map(|pages| Some(pages.marker())),
            false => Ok(None),
        }
    }

    /// Visits every page in order, from the log where it is there, else from the file; with `published` also what is in
    /// the log and not captured.
    pub(super) fn each_page(
        &self,
        state: &mut State,
        published: bool,
        mut visit: impl FnMut(Pgno, &[u8]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let (page_size, pages) = (state.page_size, state.pages);
        let mut frames = std::collections::HashMap::new();
        if let Some(wal) = state.open.wal_mut()
            && let HeaderRead::Valid(header) = wal.index.header()
        {
            let captured = if header.salt == wal.captured.salt { wal.captured.frame } else { 0 };
            let last = if published { header.max_frame } else { captured.min(header.max_frame) };
            for frame in 1..=last {
                if let Some(pgno) = wal.index.page_of(frame)? {
                    frames.insert(pgno, frame);
                }
            }
        }
        let file = File::open(self.files().path(FileKind::Database))?;
        let mut page = vec![0; page_size.len()];
        for pgno in pages.pages(page_size) {
            match (frames.get(&pgno), state.open.wal()) {
                (Some(frame), Some(wal)) => wal.read_frame(*frame, &mut page)?,
                _ => read_or_zero(&file, pgno.offset(page_size), &mut page)?,
            }
            visit(pgno, &page)?;
        }
        Ok(())
    }
}
