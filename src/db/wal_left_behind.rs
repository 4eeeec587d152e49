//! The frames of a WAL left behind by a crash that no log entry has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch::{Batch, Frame};
use super::commit::now_ms;
use super::database::{Database, State};
use super::discard::write_discarded;
use super::overrun::frames_between;
use super::page_checksums::WalPoint;
use super::{DbError, FileKind};
use crate::io::{fault, read_or_zero};
use crate::ltx;
use crate::sqlite::wal::{FRAME_HEADER_SIZE, frame_offset};
use crate::sqlite::wal_scanner::CommittedFrames;
use crate::types::{Access, PageCount, PageSize, Pgno};

/// How long an application that opens a database waits for a decision about its tail.
const TAIL_WAIT_MAX: Duration = Duration::from_secs(10);
/// Between two looks.
const TAIL_LOOK_EVERY: Duration = Duration::from_millis(2);

impl Database {
    /// After redo: the WAL left by a crash becomes history where it continues the position. Blocking; on the primary
    /// only.
    ///
    /// # Errors
    /// Where the files cannot be read, or the log does not take the tail.
    pub fn settle_tail(self: &Arc<Self>) -> Result<(), DbError> {
        let fail = |source| self.io_error("settling what a crash left in the WAL", source);
        let Some((tail, frames)) = self.tail_frames().map_err(fail)? else { return Ok(()) };
        let sound = match &frames {
            Some(frames) => frames.continue_what_was_captured(&self.lock()).map_err(fail)?,
            None => true,
        };
        match frames {
            Some(frames) if !sound => {
                let file = frames.discard(self, &self.lock()).map_err(fail)?;
                self.check_pages_below(&frames)?;
                tracing::error!(db = %self.name(), frames = frames.count(), file = %file.display(), "transactions that were not replicated, and stand on a commit that was, are discarded and kept");
            }
            Some(frames) if !frames.are_known(&self.lock()).map_err(fail)? => {
                fault::point("tail_capture").map_err(fail)?;
                tracing::info!(db = %self.name(), frames = frames.count(), "capturing transactions that a crash left in the WAL");
                self.commit_own(|state| frames.encode(self, state).map(Some).map_err(fail))?;
            }
            _ => {}
        }
        self.forget_tail(&tail).map_err(fail)
    }

    /// Waits until the log has been applied again after a crash, and it is known what becomes of the WAL that the crash left
    /// behind: applications may have read what is in it, and would see history go backwards. Blocking.
    ///
    /// # Errors
    /// `Unavailable` where that is not known soon: no quorum can be reached.
    pub(super) fn wait_for_tail(&self) -> Result<(), DbError> {
        let deadline = Instant::now() + TAIL_WAIT_MAX;
        loop {
            let (redoing, tail) = {
                let state = self.lock();
                (state.redoing() && state.service.failure().is_none(), state.tail.is_some())
            };
            if !redoing && (!tail || self.access() == Access::ReadOnly) {
                return Ok(());
            }
            self.check_not_ending()?;
            if Instant::now() >= deadline {
                if redoing {
                    // The open itself says how far redo is.
                    return Ok(());
                }
                return Err(
                    self.unavailable("what a crash left in its WAL is neither committed nor discarded yet")
                );
            }
            std::thread::sleep(TAIL_LOOK_EVERY);
        }
    }

    /// Fails the database where its file has pages that are neither history nor in the log: with `synchronous=OFF` a
    /// checkpoint copies frames before anybody has captured them, and a crash leaves them in the file.
    fn check_pages_below(&self, frames: &TailFrames) -> Result<(), DbError> {
        let fail = |source| self.io_error("comparing its file with its checksums", source);
        let foreign = frames.first_foreign_page(self, &mut self.lock()).map_err(fail)?;
        if let Some(pgno) = foreign {
            self.fail(
                &self.corrupt(format!(
                    "page {pgno} in its file is of a transaction that never became history"
                )),
            );
        }
        Ok(())
    }

    /// Another node is primary, or has changed the database since: what a crash left in the WAL never becomes history,
    /// and is kept. Blocking.
    ///
    /// # Errors
    /// Where a file cannot be read or written.
    pub fn discard_tail(&self) -> Result<(), DbError> {
        let fail = |source| self.io_error("setting aside what a crash left in the WAL", source);
        let Some((tail, frames)) = self.tail_frames().map_err(fail)? else { return Ok(()) };
        if let Some(frames) = frames
            && !frames.are_known(&self.lock()).map_err(fail)?
        {
            let file = frames.discard(self, &self.lock()).map_err(fail)?;
            self.check_pages_below(&frames)?;
            self.report_discarded(frames.count(), &file);
        }
        self.forget_tail(&tail).map_err(fail)
    }

    pub(super) fn report_discarded(&self, frames: usize, file: &Path) {
        tracing::error!(db = %self.name(), frames, file = %file.display(), "transactions that were not replicated before another node became primary are discarded and kept");
    }

    /// Whether a crash left a WAL behind whose fate is not known yet.
    pub fn has_tail(&self) -> bool {
        self.lock().tail.is_some()
    }

    fn tail_frames(&self) -> io::Result<Option<(PathBuf, Option<TailFrames>)>> {
        let (tail, captured, newest) = {
            let state = self.lock();
            let Some(tail) = &state.tail else { return Ok(None) };
            (tail.clone(), state.captured, state.tail_is_newest)
        };
        match uncaptured(&tail, captured, newest) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            frames => Ok(Some((tail, frames?))),
        }
    }

    fn forget_tail(&self, tail: &Path) -> io::Result<()> {
        fault::point("tail_remove")?;
        match std::fs::remove_file(tail) {
            // Two had the same to do: the node's change of roles, and an entry of the new primary.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut state = self.lock();
        state.tail = None;
        if !state.open.is_wal() {
            state.captured = None;
        }
        Ok(())
    }
}

/// Frames of a tail that are to be captured.
pub(super) struct TailFrames {
    file: File,
    page_size: PageSize,
    pages: PageCount,
    commits: u64,
    frames: BTreeMap<Pgno, u32>,
    /// The last captured frame of each page.
    captured: BTreeMap<Pgno, u32>,
    count: usize,
}

/// The frames of the log at `path` behind `captured`, `None` where there are none. A log that is `newest` goes on behind it
/// whatever salts it began with: a connection that begins one without having begun another before draws them anew.
///
/// # Errors
/// Where the log cannot be read. A log cut short or damaged ends where its checksums end, as for SQLite.
pub(super) fn uncaptured(
    path: &Path,
    captured: Option<WalPoint>,
    newest: bool,
) -> io::Result<Option<TailFrames>> {
    let file = File::open(path)?;
    let Ok(scanned) = CommittedFrames::scan(BufReader::with_capacity(1 << 20, &file)) else {
        return Ok(None);
    };
    let salt = scanned.header.salt;
    let first = match captured {
        None => 1,
        Some(point) => match point.first_uncaptured(salt) {
            Some(first) => first,
            None if newest => 1,
            // Older than what is captured: what replaced it was lost with the page cache, and is in the log.
            None => return Ok(None),
        },
    };
    let Some(pages) = scanned.commit() else { return Ok(None) };
    let (mut frames, mut captured, mut commits, mut count) = (BTreeMap::new(), BTreeMap::new(), 0, 0);
    for (frame, number) in scanned.frames.iter().zip(1u32..) {
        if number < first {
            captured.insert(frame.pgno, number);
            continue;
        }
        frames.insert(frame.pgno, number);
        commits += u64::from(frame.ends_commit());
        count += 1;
    }
    if commits == 0 {
        return Ok(None);
    }
    Ok(Some(TailFrames {
        file,
        page_size: scanned.header.page_size,
        pages,
        commits,
        frames,
        captured,
        count,
    }))
}

impl TailFrames {
    /// How many frames there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether the frames before them are the ones that were captured.
    ///
    /// They are not where a writer has overrun a commit that was captured but never published: its commit is in the
    /// log, and what was written over it was made on a state without it. That happens while nobody watches, when the
    /// daemon dies before its applications.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn continue_what_was_captured(&self, state: &State) -> io::Result<bool> {
        let mut page = vec![0; self.page_size.len()];
        let lock_page = Pgno::lock_page(self.page_size);
        for (pgno, number) in &self.captured {
            if !state.pages.contains(*pgno) || *pgno == lock_page {
                continue;
            }
            self.read(*number, &mut page)?;
            if state.checksums.get(*pgno)? != Some(ltx::page_checksum(*pgno, &page)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether they say nothing new: the log brought the same, or a crash came between capturing them and removing
    /// their file.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn are_known(&self, state: &State) -> io::Result<bool> {
        if self.pages != state.pages || self.page_size != state.page_size {
            return Ok(false);
        }
        let mut page = vec![0; self.page_size.len()];
        for (pgno, number) in self.frames.iter().filter(|(pgno, _)| self.pages.contains(**pgno)) {
            self.read(*number, &mut page)?;
            if state.checksums.get(*pgno)? != Some(ltx::page_checksum(*pgno, &page)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The first of their pages that the database has with another content than its checksum says.
    ///
    /// # Errors
    /// Where a file cannot be read.
    fn first_foreign_page(&self, database: &Database, state: &mut State) -> io::Result<Option<Pgno>> {
        let applied = match state.open.wal_mut() {
            Some(wal) => frames_between(wal, 1, wal.captured.frame)?,
            None => BTreeMap::new(),
        };
        let file = File::open(database.files().path(FileKind::Database))?;
        let mut page = vec![0; state.page_size.len()];
        for pgno in self.frames.keys().filter(|pgno| state.pages.contains(**pgno)) {
            match (applied.get(pgno), state.open.wal()) {
                (Some(frame), Some(wal)) => wal.read_frame(*frame, &mut page)?,
                _ => read_or_zero(&file, pgno.offset(state.page_size), &mut page)?,
            }
            let expected = state.checksums.get(*pgno)?;
            if expected.is_some_and(|expected| expected != ltx::page_checksum(*pgno, &page)) {
                return Ok(Some(*pgno));
            }
        }
        Ok(None)
    }

    /// Keeps them in `discarded/`: they lose, but not without a trace.
    ///
    /// # Errors
    /// Where a file cannot be read or written.
    pub fn discard(&self, database: &Database, state: &State) -> io::Result<PathBuf> {
        let mut read = |pgno: &Pgno, page: &mut [u8]| self.read(self.frames[pgno], page);
        let (shared, name, numbers) = (&database.shared, database.name(), self.frames.keys());
        write_discarded(shared, name, state.pos, self.page_size, self.pages, numbers, &mut read, now_ms())
    }

    fn read(&self, number: u32, page: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(page, frame_offset(number, self.page_size) + FRAME_HEADER_SIZE as u64)
    }

    /// Encodes them on the database's position.
    ///
    /// # Errors
    /// Where a file cannot be read, or the tail does not belong to this database.
    pub fn encode(self, database: &Database, state: &mut State) -> io::Result<Batch> {
        if state.pages != PageCount::ZERO && self.page_size != state.page_size {
            return Err(super::replace::bad_data(format!(
                "its pages have {} bytes, not {}",
                self.page_size, state.page_size
            )));
        }
        let frame =
            Frame { commits: self.commits, ..Frame::on(database.name(), state, self.page_size, self.pages) };
        let lock_page = Pgno::lock_page(self.page_size);
        let mut pages: BTreeSet<Pgno> = self.frames.keys().copied().collect();
        pages.retain(|pgno| self.pages.contains(*pgno) && *pgno != lock_page);
        pages.extend(frame.untouched_growth(&pages));
        let backing = File::open(database.files().path(FileKind::Database))?;
        frame.encode(&database.shared, &state.checksums, pages.into_iter(), |pgno, page| {
            match self.frames.get(&pgno) {
                Some(number) => self.read(*number, page),
                None => read_or_zero(&backing, pgno.offset(self.page_size), page),
            }
        })
    }
}
