//! The frames of a WAL left behind by a crash that no log entry has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::FileKind;
use super::batch::{Batch, Frame};
use super::commit::now_ms;
use super::database::{Database, State};
use super::discard::write_discarded;
use super::page_checksums::WalPoint;
use crate::io::read_or_zero;
use crate::ltx;
use crate::sqlite::wal::{CommittedFrames, FRAME_HEADER_SIZE, Salt, frame_offset};
use crate::types::{PageCount, PageSize, Pgno};

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

/// The frames of the log at `path` behind `captured`, `None` where there are none.
///
/// # Errors
/// Where the log cannot be read. A log cut short or damaged ends where its checksums end, as for SQLite.
pub(super) fn uncaptured(path: &Path, captured: Option<WalPoint>) -> io::Result<Option<TailFrames>> {
    let file = File::open(path)?;
    let Ok(scanned) = CommittedFrames::scan(BufReader::with_capacity(1 << 20, &file)) else {
        return Ok(None);
    };
    let salt = scanned.header.salt;
    let first = match captured {
        None => 1,
        Some(point) if point.salt == salt => point.frame + 1,
        // The log began anew after everything was captured: each time the first salt counts one up.
        Some(point) if salt.0 == point.salt.0.wrapping_add(1) || point.salt == Salt(0, 0) => 1,
        // Older than what is captured: what replaced it was lost with the page cache, and is in the log.
        Some(_) => return Ok(None),
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
