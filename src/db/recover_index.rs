//! The wal-index made anew from the log, where whoever wrote its header did not get to the end.
//!
//! SQLite does that when the next connection begins to read. The daemon cannot wait for one: until then it would see no
//! transaction, and a database that nobody opens any more would be closed without what is only in its log.
//! Source: `wal.c`, `walIndexRecover`.

use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;

use super::attach::WalAttachment;
use super::database::{Database, State};
use super::pin::read_byte;
use crate::io::fault;
use crate::sqlite::lock_bytes;
use crate::sqlite::wal::{Salt, WalError};
use crate::sqlite::wal_index::{HeaderRead, IndexHeader, READ_MARK_UNUSED, READ_SLOTS};
use crate::sqlite::wal_scanner::WalScanner;
use crate::types::{PageCount, PageSize};

/// Bytes of the log read at once.
const READ_BYTES: usize = 256 * 1024;

impl Database {
    /// Makes a wal-index usable whose writer died while it wrote the header. Never waits; says whether it is usable.
    pub(super) fn recover_index(&self, state: &mut State) -> bool {
        let (pages, page_size) = (state.pages, state.page_size);
        let Some(wal) = state.open.wal_mut() else { return false };
        match wal.recover_index(pages, page_size) {
            Ok(usable) => usable,
            Err(error) => {
                tracing::warn!(db = %self.name(), %error, "cannot recover the wal-index");
                false
            }
        }
    }
}

impl WalAttachment {
    /// Makes the index from the log where its header is not valid and nobody is at it: with the locks that SQLite's
    /// recovery takes. Says whether the header is valid now; `pages` and `page_size` are those of a log without frames.
    ///
    /// # Errors
    /// Where the log cannot be read or the index not be written.
    pub fn recover_index(&mut self, pages: PageCount, page_size: PageSize) -> io::Result<bool> {
        let is_valid = |wal: &Self| matches!(wal.index.header(), HeaderRead::Valid(_));
        if is_valid(self) {
            return Ok(true);
        }
        // A connection in EXCLUSIVE mode takes none of the locks below, but has the database file locked.
        let Some(_none_exclusive) = self.main_lock.try_hold()? else { return Ok(false) };
        // Asked first, and the header once more: a writer that lives has published before it lets go, and must not find this
        // lock in its way, if only for a moment.
        if self.locks.is_taken(lock_bytes::WAL_WRITE)? {
            return Ok(false);
        }
        if is_valid(self) {
            return Ok(true);
        }
        // A writer that lives holds the first, a connection that recovers all three.
        let Some(_writers_out) = self.locks.try_take(lock_bytes::WAL_WRITE)? else { return Ok(false) };
        let Some(_others_out) = self.locks.try_take_all(lock_bytes::CKPT, 2)? else { return Ok(false) };
        if is_valid(self) {
            return Ok(true);
        }
        fault::point("recover_index")?;
        let header = self.index_of_log(pages, page_size)?;
        self.index.set_backfilled(0);
        self.index.set_backfill_attempted(header.max_frame);
        self.index.set_read_mark(0, 0);
        for slot in 1..READ_SLOTS {
            // A reader that is there keeps its mark.
            if let Some(_free) = self.locks.try_take(read_byte(slot))? {
                let mark = if slot == 1 { header.max_frame } else { READ_MARK_UNUSED };
                self.index.set_read_mark(slot, mark);
            }
        }
        self.index.publish(&header);
        tracing::info!(frames = header.max_frame, "made a wal-index anew from its log");
        Ok(true)
    }

    /// Enters the frames of the log that SQLite's recovery would take, and gives the header that publishes those that
    /// are committed.
    fn index_of_log(&mut self, pages: PageCount, page_size: PageSize) -> io::Result<IndexHeader> {
        let mut header = IndexHeader {
            change: self.captured.change.wrapping_add(1),
            big_endian_checksum: false,
            page_size,
            max_frame: 0,
            pages,
            frame_checksum: Default::default(),
            salt: if self.captured.frame == 0 { self.captured.salt } else { Salt(0, 0) },
        };
        let log = FromStart { file: self.backing_wal.try_clone()?, at: 0 };
        let mut scanner = match WalScanner::new(BufReader::with_capacity(READ_BYTES, log)) {
            Ok(scanner) => scanner,
            Err(WalError::Io { source, .. }) => return Err(source),
            Err(error @ WalError::Version(_)) => return Err(io::Error::other(error)),
            // Empty, as for SQLite.
            Err(_) => return Ok(header),
        };
        let file = *scanner.header();
        (header.page_size, header.salt) = (file.page_size, file.salt);
        (header.big_endian_checksum, header.frame_checksum) = (file.big_endian_checksum, file.checksum);
        let (mut page, mut number) = (Vec::new(), 0);
        while let Some(frame) = scanner.next_frame(&mut page).map_err(io::Error::other)? {
            number += 1;
            self.index.enter(number, frame.pgno, 0)?;
            if frame.ends_commit() {
                header.max_frame = number;
                (header.pages, header.frame_checksum) = (frame.commit, frame.checksum);
            }
        }
        Ok(header)
    }
}

/// Reads a file from its start, wherever others that share the open file are in it.
struct FromStart {
    file: std::fs::File,
    at: u64,
}

impl Read for FromStart {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read_at(out, self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}
