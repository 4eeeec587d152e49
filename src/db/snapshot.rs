//! Snapshots: a consistent view of one database that stays as it is while writers go on.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::cow::Cow;
use super::database::{Database, State};
use super::main_lock::HeldMainLock;
use super::{DbError, FileKind, pin};
use crate::io::read_or_zero;
use crate::ltx;
use crate::sqlite::wal::{FRAME_HEADER_SIZE, frame_offset};
use crate::sqlite::wal_index::READ_SLOTS;
use crate::types::{Checksum, JournalMode, LogIndex, PageCount, PageSize, Pgno, Pos};

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
        let fail = |source| self.io_error("taking a snapshot", source);
        let mut state = self.wait_shared(self.lock());
        self.may_serve(&state)?;
        if state.pages == PageCount::ZERO {
            let header = header_of(&state);
            state.begin_snapshot();
            return Ok(SnapshotReader { database: self.clone(), header, source: Source::Empty });
        }
        let source = if state.mode == Some(JournalMode::Wal) && self.shared.cache().is_some() {
            self.attach(&mut state)?;
            self.read_mark(&mut state).map_err(fail)?
        } else {
            let _main_lock = self.hold_against_passed_through()?;
            // Only committed pages are in the file.
            let saved = tempfile::tempfile_in(&self.shared.tmp).map_err(fail)?;
            let file = self.open_backing(FileKind::Database)?;
            let (page_size, pages) = (state.page_size, state.pages);
            let cow = state.cow.begin(page_size, pages, saved);
            Source::InPlace { cow, file, _main_lock }
        };
        let header = header_of(&state);
        // Counts as a handle: the database is not detached under the reader.
        state.begin_snapshot();
        Ok(SnapshotReader { database: self.clone(), header, source })
    }

    fn read_mark(&self, state: &mut State) -> io::Result<Source> {
        let cache = self.shared.cache().ok_or_else(|| io::Error::other("the mount is not up yet"))?;
        let mut shm = cache.mount_point().join(self.name().as_str()).into_os_string();
        shm.push("-shm");
        let mark = File::options().read(true).write(true).open(shm)?;
        let wal = state.open.wal_mut().expect("just attached");
        let main_lock = wal.main_lock.try_hold()?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::WouldBlock, "an application holds the database exclusively")
        })?;
        let frame = wal.captured.frame;
        let slots = 1..READ_SLOTS;
        // With every slot taken by readers of other marks there is no place; they come and go.
        let mut placed = false;
        for slot in slots {
            if pin::take(&mark, &wal.index, slot, frame)? {
                placed = true;
                break;
            }
        }
        if !placed {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "all read slots of the database are in use; try again",
            ));
        }
        let mut frames = HashMap::new();
        for number in 1..=frame {
            if let Some(pgno) = wal.index.page_of(number)? {
                frames.insert(pgno, number);
            }
        }
        Ok(Source::Wal {
            _mark: mark,
            _main_lock: main_lock,
            wal: wal.backing_wal.try_clone()?,
            file: wal.database.try_clone()?,
            frames,
        })
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
