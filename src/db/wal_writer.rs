//! Writing a WAL as SQLite does: frames first, then the wal-index, then the header that publishes them.
//!
//! Holds: the caller has the write lock. Readers keep the frame they began with; nobody waits for anybody.
//! Source: `wal.c`, `sqlite3WalFrames`, `walIndexAppend`, `walRestartHdr`.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;

use super::attach::WalAttachment;
use crate::io::fault;
use crate::sqlite::lock_bytes;
use crate::sqlite::wal::{FrameChecksum, FrameHeader, Salt, WalHeader, frame_offset};
use crate::sqlite::wal_index::{HeaderRead, IndexHeader};
use crate::types::{PageCount, PageSize, Pgno};

/// Frames written together.
const WRITE_BYTES: usize = 256 * 1024;

/// A transaction being appended to a WAL, invisible until it is published.
pub(super) struct WalAppend<'a> {
    wal: &'a mut WalAttachment,
    file: WalHeader,
    published: IndexHeader,
    page_size: PageSize,
    last: u32,
    checksum: FrameChecksum,
    /// The newest frame waits: only the next page tells whether it is the commit frame.
    held: Option<(Pgno, Vec<u8>)>,
    buffer: Vec<u8>,
    buffer_first: u32,
}

impl<'a> WalAppend<'a> {
    /// Begins behind the last published frame, or anew where everything is in the database file.
    ///
    /// # Errors
    /// Where the log or its index cannot be read or written.
    pub fn begin(wal: &'a mut WalAttachment, page_size: PageSize) -> io::Result<Self> {
        let HeaderRead::Valid(mut published) = wal.index.header() else {
            return Err(io::Error::other("the wal-index has no valid header"));
        };
        let mut file =
            wal.wal_header().filter(|header| header.salt == published.salt && published.max_frame > 0);
        if published.max_frame > 0 && wal.index.backfilled() == published.max_frame {
            published = wal.restart(published)?;
            if published.max_frame == 0 {
                file = None;
            }
        }
        let file = match file {
            Some(header) => header,
            None if published.max_frame == 0 => wal.write_header(&mut published, page_size)?,
            None => return Err(io::Error::other("the WAL's header does not belong to its index")),
        };
        if file.page_size != page_size {
            return Err(io::Error::other(format!(
                "the WAL has pages of {} bytes, not {page_size}",
                file.page_size
            )));
        }
        let (last, checksum) = (published.max_frame, published.frame_checksum);
        let buffer_first = last + 1;
        Ok(Self {
            wal,
            file,
            published,
            page_size,
            last,
            checksum,
            held: None,
            buffer: Vec::new(),
            buffer_first,
        })
    }

    /// Appends a page.
    ///
    /// # Errors
    /// Where the log cannot be written; nothing is visible then.
    pub fn page(&mut self, pgno: Pgno, page: &[u8]) -> io::Result<()> {
        let mut spare = Vec::new();
        if let Some((held, content)) = self.held.take() {
            self.frame(held, &content, PageCount::ZERO)?;
            spare = content;
        }
        spare.clear();
        spare.extend_from_slice(page);
        self.held = Some((pgno, spare));
        Ok(())
    }

    fn frame(&mut self, pgno: Pgno, page: &[u8], commit: PageCount) -> io::Result<()> {
        let header = FrameHeader::seal(
            pgno,
            commit,
            self.file.salt,
            self.file.big_endian_checksum,
            self.checksum,
            page,
        );
        self.checksum = header.checksum;
        self.last += 1;
        self.buffer.extend_from_slice(&header.encode());
        self.buffer.extend_from_slice(page);
        self.wal.index.enter(self.last, pgno, self.published.max_frame)?;
        if self.buffer.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        fault::point("wal_write")?;
        self.wal.append_wal(&self.buffer, frame_offset(self.buffer_first, self.page_size))?;
        self.buffer_first = self.last + 1;
        self.buffer.clear();
        Ok(())
    }

    /// Writes the commit frame and publishes: from here on readers that begin see the transaction.
    ///
    /// # Errors
    /// Where the log cannot be written, or no page was given; nothing is visible then.
    pub fn publish(mut self, pages: PageCount) -> io::Result<()> {
        let (pgno, page) = self.held.take().ok_or_else(|| io::Error::other("a transaction without pages"))?;
        self.frame(pgno, &page, pages)?;
        self.flush()?;
        fault::point("wal_publish")?;
        let header = IndexHeader {
            change: self.published.change.wrapping_add(1),
            big_endian_checksum: self.file.big_endian_checksum,
            page_size: self.page_size,
            max_frame: self.last,
            pages,
            frame_checksum: self.checksum,
            salt: self.file.salt,
        };
        self.wal.index.publish(&header);
        let captured = &mut self.wal.captured;
        (captured.salt, captured.frame, captured.checksum) =
            (header.salt, header.max_frame, header.frame_checksum);
        (captured.change, captured.unpublished) = (header.change, None);
        Ok(())
    }
}

impl WalAttachment {
    /// Begins the log anew where no reader still uses it; otherwise leaves it as it is.
    fn restart(&mut self, header: IndexHeader) -> io::Result<IndexHeader> {
        let (first, count) = (lock_bytes::read(1), 4);
        if self.pin.held() {
            return Ok(header);
        }
        let Some(_readers_out) = self.locks.try_take_all(first, count)? else { return Ok(header) };
        let anew = IndexHeader {
            max_frame: 0,
            salt: Salt(header.salt.0.wrapping_add(1), random()),
            frame_checksum: FrameChecksum(0, 0),
            ..header
        };
        self.index.publish(&anew);
        self.index.reset_checkpoint_info();
        Ok(anew)
    }

    /// Writes the header of a log without frames.
    fn write_header(&mut self, published: &mut IndexHeader, page_size: PageSize) -> io::Result<WalHeader> {
        if published.salt == Salt(0, 0) {
            published.salt = Salt(random(), random());
        }
        let header = WalHeader::new(page_size, 0, published.salt);
        fault::point("wal_header")?;
        self.append_wal(&header.encode(), 0)?;
        published.frame_checksum = header.checksum;
        published.big_endian_checksum = header.big_endian_checksum;
        Ok(header)
    }
}

/// A number that differs from run to run; salts need no more.
fn random() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}
