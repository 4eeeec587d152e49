//! The frames of a WAL left behind by a crash that no log entry has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::FileKind;
use super::batch::{Batch, Frame};
use super::database::{Database, State};
use super::page_checksums::WalPoint;
use crate::io::read_or_zero;
use crate::sqlite::wal::{CommittedFrames, FRAME_HEADER_SIZE, Salt, frame_offset};
use crate::types::{PageCount, PageSize, Pgno};

/// Frames of a tail that are to be captured.
pub(super) struct TailFrames {
    file: File,
    page_size: PageSize,
    pages: PageCount,
    commits: u64,
    frames: BTreeMap<Pgno, u32>,
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
    let behind = scanned.frames.iter().zip(1u32..).filter(|(_, number)| *number >= first);
    let (mut frames, mut commits, mut count) = (BTreeMap::new(), 0, 0);
    for (frame, number) in behind {
        frames.insert(frame.pgno, number);
        commits += u64::from(frame.ends_commit());
        count += 1;
    }
    if commits == 0 {
        return Ok(None);
    }
    Ok(Some(TailFrames { file, page_size: scanned.header.page_size, pages, commits, frames, count }))
}

impl TailFrames {
    /// How many frames there are.
    pub fn count(&self) -> usize {
        self.count
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
                Some(number) => self
                    .file
                    .read_exact_at(page, frame_offset(*number, self.page_size) + FRAME_HEADER_SIZE as u64),
                None => read_or_zero(&backing, pgno.offset(self.page_size), page),
            }
        })
    }
}
