//! Taking back a commit that is in the log and did not become history, as long as nobody has seen it.
//!
//! Its frame gets a header that no recovery accepts. The writer may not be the one whose fsync failed: a checkpoint of
//! another connection syncs the log, too, and captures what stands there. So the place is remembered: the writer's own
//! fsync fails as well, and where it never asks for one (`synchronous=NORMAL`) and publishes, the frame is put back.

use std::io;
use std::os::unix::fs::FileExt;

use super::attach::WalAttachment;
use crate::io::fault;
use crate::sqlite::lock_bytes;
use crate::sqlite::wal::{FRAME_HEADER_SIZE, Salt, frame_offset};
use crate::sqlite::wal_index::HeaderRead;
use crate::types::PageSize;

/// A commit frame that was taken back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Invalidated {
    salt: Salt,
    frame: u32,
    page_size: PageSize,
    /// The header it had.
    header: [u8; FRAME_HEADER_SIZE],
}

impl WalAttachment {
    /// Makes a frame one that no recovery accepts: its commit never happened. One that is published by now is left: it
    /// is a transaction that others may have read.
    ///
    /// # Errors
    /// Where the log cannot be read or written.
    pub fn invalidate_frame(&mut self, frame: u32, page_size: PageSize) -> io::Result<()> {
        fault::point("invalidate_frame")?;
        let salt = self.captured.salt;
        if self.is_published(salt, frame) {
            return Ok(());
        }
        let mut header = [0; FRAME_HEADER_SIZE];
        self.backing_wal.read_exact_at(&mut header, frame_offset(frame, page_size))?;
        self.overwrite_wal(&[0; FRAME_HEADER_SIZE], frame_offset(frame, page_size))?;
        if header != [0; FRAME_HEADER_SIZE] {
            self.invalidated = Some(Invalidated { salt, frame, page_size, header });
        }
        self.mend_invalidated()
    }

    /// Puts the header back of a frame that its writer has published although it was taken back.
    ///
    /// # Errors
    /// Where the log cannot be read or written.
    pub fn mend_invalidated(&mut self) -> io::Result<()> {
        let Some(taken_back) = self.invalidated else { return Ok(()) };
        if taken_back.salt != self.captured.salt {
            self.invalidated = None;
        } else if self.is_published(taken_back.salt, taken_back.frame) {
            // Otherwise a later writer has written over it.
            if self.is_taken_back(&taken_back)? {
                self.overwrite_wal(&taken_back.header, frame_offset(taken_back.frame, taken_back.page_size))?;
            }
            self.invalidated = None;
        }
        Ok(())
    }

    /// Whether the writer at work is the one whose commit was taken back: what it waits for never happens. Answered with
    /// yes once: the next transaction of that writer may begin the log anew, and syncs the header of it while the
    /// frames of the failed one are still there.
    ///
    /// # Errors
    /// Where the log cannot be read, or its locks not be asked for.
    pub fn writer_lost_its_commit(&mut self) -> io::Result<bool> {
        let Some(taken_back) = self.invalidated else { return Ok(false) };
        let at_work = self.locks.is_taken(lock_bytes::WAL_WRITE)? && self.is_taken_back(&taken_back)?;
        self.invalidated = None;
        Ok(at_work)
    }

    fn is_published(&self, salt: Salt, frame: u32) -> bool {
        matches!(self.index.header(), HeaderRead::Valid(header) if header.salt == salt && header.max_frame >= frame)
    }

    fn is_taken_back(&self, taken_back: &Invalidated) -> io::Result<bool> {
        let mut header = [0; FRAME_HEADER_SIZE];
        let at = frame_offset(taken_back.frame, taken_back.page_size);
        self.backing_wal.read_exact_at(&mut header, at)?;
        Ok(header == [0; FRAME_HEADER_SIZE])
    }
}
