//! A dead writer: publishing the commit that it could not publish.
//!
//! A writer holds the write lock from before its first frame until after it has published. Who gets the lock while
//! captured frames are unpublished therefore knows that their writer died, and that nobody has overrun them yet: the
//! transaction is in the log, so it is published in the writer's stead.

use std::io;

use super::attach::WalAttachment;
use super::database::{Database, State};
use crate::io::fault;
use crate::sqlite::lock_bytes;
use crate::sqlite::wal_index::{HeaderRead, IndexHeader};
use crate::types::{Access, PageCount};

impl Database {
    /// Publishes the frames of a dead writer, if there are any. Never waits.
    pub(super) fn publish_for_dead_writer(&self, state: &mut State) {
        if state.in_flight.is_some() || state.restoring || self.access() != Access::Write {
            return;
        }
        if state.open.is_wal() && !self.recover_index(state) {
            return;
        }
        let pages = state.pages;
        let Some(wal) = state.open.wal_mut().filter(|wal| wal.captured.unpublished.is_some()) else { return };
        match wal.publish_unpublished(pages) {
            Ok(true) => {
                tracing::info!(db = %self.name(), "published a transaction whose writer died behind its commit");
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(db = %self.name(), %error, "cannot publish a transaction whose writer died")
            }
        }
    }
}

impl WalAttachment {
    fn publish_unpublished(&mut self, pages: PageCount) -> io::Result<bool> {
        if !self.still_unpublished()? || self.fence.raised() {
            return Ok(false);
        }
        let Some(_in_wal_mode) = self.main_lock.try_hold()? else { return Ok(false) };
        // Asked first, and the index once more: a writer that lives has published before it lets go, and is the only one
        // for whom this lock may ever be in the way, if only for a moment.
        if self.locks.is_taken(lock_bytes::WAL_WRITE)? || !self.still_unpublished()? {
            return Ok(false);
        }
        let Some(_writers_out) = self.locks.try_take(lock_bytes::WAL_WRITE)? else { return Ok(false) };
        self.publish_captured(pages)
    }

    /// Whether the captured frames are in the log and the wal-index does not know them.
    fn still_unpublished(&mut self) -> io::Result<bool> {
        // A commit that was overrun is another matter, and one that is published is none.
        Ok(!self.is_overrun()? && self.captured.unpublished.is_some())
    }

    /// Publishes captured frames, with the write lock held: their writer is dead then, or has published them itself.
    ///
    /// # Errors
    /// Where the log or its index cannot be read or written.
    pub(super) fn publish_captured(&mut self, pages: PageCount) -> io::Result<bool> {
        // Again, with the lock: the writer may have published and gone in between.
        if !self.still_unpublished()? {
            return Ok(false);
        }
        let HeaderRead::Valid(header) = self.index.header() else { return Ok(false) };
        let Some(file) = self.wal_header().filter(|file| file.salt == self.captured.salt) else {
            return Ok(false);
        };
        fault::point("dead_writer_publish")?;
        let known = if header.salt == file.salt { header.max_frame } else { 0 };
        for frame in known + 1..=self.captured.frame {
            let Some(content) = self.frame_header(frame, file.page_size)? else { return Ok(false) };
            self.index.enter(frame, content.pgno, known)?;
        }
        let published = IndexHeader {
            change: header.change.wrapping_add(1),
            big_endian_checksum: file.big_endian_checksum,
            page_size: file.page_size,
            max_frame: self.captured.frame,
            pages,
            frame_checksum: self.captured.checksum,
            salt: file.salt,
        };
        self.index.publish(&published);
        self.captured.change = published.change;
        self.captured.unpublished = None;
        self.unpublished_change = None;
        Ok(true)
    }
}
