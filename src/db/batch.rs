//! A change set under construction: pages in, LTX and new checksums out.

use std::io;

use bytes::Bytes;

use super::commit::now_ms;
use super::database::State;
use super::page_checksums::{PageChecksums, WalPoint};
use super::shared::Shared;
use crate::io::blobs::BlobWriter;
use crate::ltx::{self, BlobRef, Body, ChangeSet, Compression, Encoder};
use crate::sqlite::header;
use crate::sqlite::wal::frame_offset;
use crate::types::{Checksum, DbName, JournalMode, PageCount, PageSize, Pgno, Pos, Txid, TxidRange};

/// Largest change set, in bytes of pages, that rides in a log entry.
pub const INLINE_BYTES_MAX: u64 = 1 << 20;

/// Largest change set, in bytes of pages, that rides in a log entry uncompressed. Compressing a page takes longer than
/// writing it to the log, and hides from a replica's stream what it has in common with its last version.
const STORED_INLINE_BYTES_MAX: u64 = 64 << 10;

/// What a change set starts from and leads to.
pub struct Frame<'a> {
    /// The database.
    pub db: &'a DbName,
    /// The position before.
    pub base: Pos,
    /// Size before, in pages of the page size before.
    pub base_pages: PageCount,
    /// Page size before.
    pub base_page_size: PageSize,
    /// Commits covered, at least 1.
    pub commits: u64,
    /// Page size after.
    pub page_size: PageSize,
    /// Size after.
    pub pages: PageCount,
    /// Where in the WAL the change set was read: the last frame before, the last frame of it.
    pub wal: Option<(WalPoint, u32)>,
    /// Most bytes of pages that ride in the log entry; what has more becomes a blob.
    pub inline_bytes_max: u64,
    /// When, milliseconds since 1970.
    pub timestamp_ms: i64,
}

/// A change set ready to be proposed, with what its commit will change here.
pub struct Batch {
    /// What is proposed.
    pub change: ChangeSet,
    /// The new checksums of its pages, ascending.
    pub checksums: Vec<(Pgno, Checksum)>,
    /// How far the WAL is captured with it.
    pub wal_end: Option<WalPoint>,
    /// When it was captured, milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Whether the change rewrites the database with another page size.
    pub reset: bool,
    /// The journal mode page 1 names, where it is among the pages.
    pub mode: Option<JournalMode>,
}

enum Target {
    Inline(Vec<u8>),
    Blob(BlobWriter),
}

impl io::Write for Target {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Target::Inline(bytes) => {
                bytes.extend_from_slice(data);
                Ok(data.len())
            }
            Target::Blob(writer) => writer.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> Frame<'a> {
    /// One commit on the present position of a database that leads to `pages` pages.
    pub fn on(db: &'a DbName, state: &State, page_size: PageSize, pages: PageCount) -> Self {
        Self {
            db,
            base: state.pos,
            base_pages: state.pages,
            base_page_size: state.page_size,
            commits: 1,
            page_size,
            pages,
            wal: None,
            inline_bytes_max: INLINE_BYTES_MAX,
            timestamp_ms: now_ms(),
        }
    }

    /// Whether the page size changes, which makes every page a new one.
    fn resets(&self) -> bool {
        self.page_size != self.base_page_size && self.base_pages != PageCount::ZERO
    }

    /// Pages that the change adds to the database and that are not among `touched`: SQLite may leave them
    /// unwritten, yet they are part of the file.
    pub fn untouched_growth(&self, touched: &std::collections::BTreeSet<Pgno>) -> Vec<Pgno> {
        let from = if self.resets() { 1 } else { self.base_pages.get() + 1 };
        let lock = Pgno::lock_page(self.page_size);
        (from..=self.pages.get())
            .filter_map(Pgno::new)
            .filter(|pgno| *pgno != lock && !touched.contains(pgno))
            .collect()
    }

    /// Encodes the pages, given in ascending order, each read by `read`.
    ///
    /// # Errors
    /// Where reading a page or writing a blob fails.
    pub fn encode(
        &self,
        shared: &Shared,
        old: &PageChecksums,
        pages: impl ExactSizeIterator<Item = Pgno>,
        mut read: impl FnMut(Pgno, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<Batch> {
        let min = self.base.next_txid();
        let max = min
            .checked_add(self.commits.max(1) - 1)
            .ok_or_else(|| io::Error::other("transaction numbers are used up"))?;
        let bytes = pages.len() as u64 * self.page_size.bytes();
        let inline = bytes <= self.inline_bytes_max;
        // A capture that is tried again and again must not fill the disk with what nobody takes.
        if !inline && let Some(why) = shared.sink().and_then(|sink| sink.refuses()) {
            return Err(io::Error::other(format!("the log takes no large change set now: {why}")));
        }
        let target = if inline {
            Target::Inline(Vec::with_capacity(bytes as usize + 512))
        } else {
            Target::Blob(shared.blobs.create()?)
        };
        // Large change sets are written at memory speed; those in between are worth the log space they save.
        let stored = !inline || bytes <= STORED_INLINE_BYTES_MAX;
        let compression = if stored { Compression::Stored } else { Compression::Lz4 };
        let mut encoder =
            Encoder::new(target, self.header(shared, min, max), compression).map_err(io::Error::other)?;
        let mut checksums = Vec::with_capacity(pages.len());
        let mut total = self.checksum_without_removed(old)?;
        let mut page = vec![0; self.page_size.len()];
        let mut mode = None;
        for pgno in pages {
            read(pgno, &mut page)?;
            if pgno == Pgno::FIRST {
                mode = header::DatabaseHeader::parse(&page).ok().map(|header| header.mode);
            }
            let checksum = ltx::page_checksum(pgno, &page);
            if !self.resets() && self.base_pages.contains(pgno) {
                total = total ^ old.get(pgno)?.unwrap_or(Checksum::EMPTY);
            }
            total = total ^ checksum;
            checksums.push((pgno, checksum));
            encoder.page(pgno, &page).map_err(io::Error::other)?;
        }
        let done = encoder.finish(Some(total)).map_err(io::Error::other)?;
        let body = match done.writer {
            Target::Inline(ltx) => Body::Inline(Bytes::from(ltx)),
            Target::Blob(writer) => {
                let blob = BlobRef { digest: done.file_checksum, size_bytes: done.size_bytes };
                shared.blobs.keep(writer, (blob.digest, blob.size_bytes))?;
                Body::Blob(blob)
            }
        };
        let change = self.change(min, max, total, body);
        let (wal_end, timestamp_ms, reset) = (self.wal_end(), self.timestamp_ms, self.resets());
        Ok(Batch { change, checksums, wal_end, timestamp_ms, reset, mode })
    }

    fn change(&self, min: Txid, max: Txid, post: Checksum, body: Body) -> ChangeSet {
        ChangeSet {
            db: self.db.clone(),
            range: TxidRange::new(min, max).expect("max is min plus something"),
            pre: self.base.checksum,
            post,
            page_size: self.page_size,
            commit: self.pages,
            body,
        }
    }

    fn wal_end(&self) -> Option<WalPoint> {
        self.wal.map(|(before, last)| WalPoint { salt: before.salt, frame: last })
    }

    /// The checksum before, without the pages the change cuts off.
    fn checksum_without_removed(&self, old: &PageChecksums) -> io::Result<Checksum> {
        if self.resets() {
            return Ok(Checksum::EMPTY);
        }
        let mut total = self.base.checksum;
        if self.pages < self.base_pages {
            total = total ^ old.fold(self.pages.get() + 1, self.base_pages.get())?;
        }
        Ok(total)
    }

    fn header(&self, shared: &Shared, min: Txid, max: Txid) -> ltx::Header {
        let (wal_offset, wal_size_bytes, wal_salt) = match self.wal {
            Some((before, last)) => {
                let first = frame_offset(before.frame + 1, self.page_size);
                (first, frame_offset(last + 1, self.page_size) - first, (before.salt.0, before.salt.1))
            }
            None => (0, 0, (0, 0)),
        };
        ltx::Header {
            no_checksum: false,
            page_size: self.page_size,
            commit: self.pages,
            range: TxidRange::new(min, max).expect("max is min plus something"),
            timestamp_ms: self.timestamp_ms,
            pre_apply: (min != Txid::FIRST).then_some(self.base.checksum),
            wal_offset,
            wal_size_bytes,
            wal_salt,
            node_id: shared.node,
        }
    }
}
