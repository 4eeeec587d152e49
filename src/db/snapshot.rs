//! Snapshots: a consistent view of one database that stays as it is while writers go on.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attach::WalAttachment;
use super::cow::Cow;
use super::database::{Database, State};
use super::main_lock::HeldMainLock;
use super::{DbError, FileKind, pin};
use crate::io::ofd_lock::{LockKind, try_lock};
use crate::io::read_or_zero;
use crate::ltx;
use crate::sqlite::lock_bytes;
use crate::sqlite::wal::{FRAME_HEADER_SIZE, frame_offset};
use crate::sqlite::wal_index::{HeaderRead, IndexHeader, READ_SLOTS};
use crate::types::{Checksum, JournalMode, LogIndex, PageCount, PageSize, Pgno, Pos};

/// How long a snapshot waits for a place among the readers of a WAL, and for a checkpoint under way.
const PLACE_WAIT_MAX: Duration = Duration::from_secs(30);
/// Between two attempts.
const PLACE_TRY_EVERY: Duration = Duration::from_millis(1);

/// What a snapshot is a snapshot of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotHeader {
    /// The position all pages belong to.
    pub pos: Pos,
    /// The log index the position was reached at: entries above it come after the snapshot.
    pub index: LogIndex,
    /// Page size in bytes.
    pub page_size: PageSize,
    /// Size in pages.
    pub commit: PageCount,
}

impl SnapshotHeader {
    /// Size of the database in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.commit.get()) * self.page_size.len() as u64
    }
}

/// A consistent view of one database that stays as it is while writers go on.
///
/// Of a WAL database it is a reader like any other: a read mark holds checkpoints and restarts back. Of a file
/// that is written in place it is copy on write: this daemon makes every write and saves what it overwrites.
pub struct SnapshotReader {
    database: Arc<Database>,
    header: SnapshotHeader,
    source: Source,
}

enum Source {
    Wal {
        /// Open file whose shared lock is the read mark; unlocked when closed.
        _mark: File,
        /// Keeps the last connection from moving the log into the file.
        _main_lock: HeldMainLock,
        wal: File,
        file: File,
        frames: HashMap<Pgno, u32>,
    },
    InPlace {
        cow: Arc<Cow>,
        file: File,
        /// Keeps out writers whose writes are not seen.
        _main_lock: Option<HeldMainLock>,
    },
    Empty,
}

impl Database {
    /// Takes a snapshot of the committed state. Blocking.
    ///
    /// # Errors
    /// Where the database is not served, or its files cannot be opened.
    pub fn snapshot(self: &Arc<Self>) -> Result<SnapshotReader, DbError> {
        let deadline = Instant::now() + PLACE_WAIT_MAX;
        loop {
            let (mut state, source) = self.attaching(|state| {
                self.may_serve(state)?;
                self.source_of(state)
            });
            if let Some(source) = source? {
                let header = header_of(&state);
                // Counts as a handle: the database is not detached under the reader.
                state.begin_snapshot();
                return Ok(SnapshotReader { database: self.clone(), header, source });
            }
            drop(state);
            if Instant::now() >= deadline {
                return Err(
                    self.unavailable("readers and checkpoints leave no place for a snapshot; try again")
                );
            }
            std::thread::sleep(PLACE_TRY_EVERY);
        }
    }

    /// Where the pages of the present position are read; `None` where that cannot be said right now.
    fn source_of(self: &Arc<Self>, state: &mut State) -> Result<Option<Source>, DbError> {
        let fail = |source| self.io_error("taking a snapshot", source);
        if state.pages == PageCount::ZERO {
            return Ok(Some(Source::Empty));
        }
        // What counts is how it is open, not what its header says: an import may have changed the mode meanwhile.
        let in_wal = state.mode == Some(JournalMode::Wal) && self.shared.cache().is_some();
        if in_wal || state.open.is_wal() {
            self.attach(state)?;
            let page_size = state.page_size;
            let wal = state.open.wal_mut().expect("just attached");
            return wal.read_mark(page_size).map_err(fail);
        }
        let _main_lock = self.hold_against_passed_through()?;
        // Only committed pages are in the file.
        let saved = tempfile::tempfile_in(&self.shared.tmp).map_err(fail)?;
        let file = self.open_backing(FileKind::Database)?;
        let (page_size, pages) = (state.page_size, state.pages);
        let cow = state.cow.begin(page_size, pages, saved);
        Ok(Some(Source::InPlace { cow, file, _main_lock }))
    }
}

impl WalAttachment {
    /// Becomes a reader of what is captured: neither what a writer has not published yet nor what it has published
    /// since is in the way, and no checkpoint moves a newer frame into the file while the mark is there.
    fn read_mark(&mut self, page_size: PageSize) -> io::Result<Option<Source>> {
        // A connection that has the file for itself heeds no mark.
        let Some(_main_lock) = self.main_lock.try_hold()? else { return Ok(None) };
        let mark = self.locks.reopen()?;
        let HeaderRead::Valid(before) = self.index.header() else { return Ok(None) };
        let frame = self.captured_frame(&before);
        let placed = match frame {
            0 => try_lock(&mark, LockKind::Shared, lock_bytes::read(0), 1)?,
            _ => self.take_slot(&mark, frame)?,
        };
        let HeaderRead::Valid(header) = self.index.header() else { return Ok(None) };
        // The log may have begun anew before the mark was there.
        if !placed || self.captured_frame(&header) != frame || !self.file_is_not_ahead(&header, frame)? {
            return Ok(None);
        }
        let mut frames = HashMap::new();
        for number in 1..=frame {
            let pgno = if number <= header.max_frame {
                self.index.page_of(number)?
            } else {
                // Its writer has been told that it is durable, and has not published it yet.
                self.frame_header(number, page_size)?.map(|frame| frame.pgno)
            };
            let Some(pgno) = pgno else { return Ok(None) };
            frames.insert(pgno, number);
        }
        let (wal, file) = (self.backing_wal.try_clone()?, self.backing_database.try_clone()?);
        Ok(Some(Source::Wal { _mark: mark, _main_lock, wal, file, frames }))
    }

    /// Takes a read slot; readers of other marks may have all of them.
    fn take_slot(&self, mark: &File, frame: u32) -> io::Result<bool> {
        for slot in 1..READ_SLOTS {
            if pin::take(mark, &self.index, slot, frame)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// With the mark at `frame` in place: whether the database file holds nothing of newer frames, and no checkpoint that
    /// began before the mark was there is about to bring them.
    ///
    /// A checkpoint copies nothing while slot 0 is held, and nothing behind a mark that it has seen. One that began
    /// earlier goes no further than what was published then. Source: `wal.c`, `walTryBeginRead`, `walCheckpoint`.
    fn file_is_not_ahead(&self, header: &IndexHeader, frame: u32) -> io::Result<bool> {
        let ends_here = frame == 0 || header.max_frame <= frame;
        if !ends_here && self.locks.is_taken(lock_bytes::CKPT)? {
            return Ok(false);
        }
        Ok(header.max_frame == 0 || self.index.backfilled() <= frame)
    }
}

fn header_of(state: &State) -> SnapshotHeader {
    SnapshotHeader { pos: state.pos, index: state.index, page_size: state.page_size, commit: state.pages }
}

impl SnapshotReader {
    /// What it is a snapshot of.
    pub fn header(&self) -> SnapshotHeader {
        self.header
    }

    /// The checksum of one page.
    ///
    /// # Errors
    /// Where the page cannot be read.
    pub fn page_checksum(&mut self, pgno: Pgno) -> Result<Checksum, DbError> {
        let mut page = vec![0; self.header.page_size.len()];
        self.read_page(pgno, &mut page)?;
        Ok(ltx::page_checksum(pgno, &page))
    }

    /// Reads one page into `page`, whose length is the page size.
    ///
    /// # Errors
    /// Where the page cannot be read.
    pub fn read_page(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<(), DbError> {
        let offset = pgno.offset(self.header.page_size);
        let read = match &self.source {
            Source::Wal { wal, file, frames, .. } => match frames.get(&pgno) {
                Some(frame) => wal.read_exact_at(
                    page,
                    frame_offset(*frame, self.header.page_size) + FRAME_HEADER_SIZE as u64,
                ),
                None => read_or_zero(file, offset, page),
            },
            Source::InPlace { cow, file, .. } => cow.read(file, pgno, page),
            Source::Empty => {
                page.fill(0);
                Ok(())
            }
        };
        read.map_err(|source| self.database.io_error(format!("reading page {pgno} of a snapshot"), source))
    }
}

impl Drop for SnapshotReader {
    fn drop(&mut self) {
        self.database.snapshot_ended();
    }
}
