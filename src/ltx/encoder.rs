use std::io::Write;

use super::crc::{FileDigest, page_checksum};
use super::error::LtxError;
use super::header::Header;
use super::index::Index;
use crate::types::{Checksum, Pgno};

/// Bytes before the compressed page in a frame: page number, flags, size.
pub(super) const FRAME_HEADER_SIZE: usize = 4 + 2 + 4;
/// Bytes that end the pages.
pub(super) const END_OF_PAGES: [u8; 6] = [0; 6];
/// Flag of a frame: a size and an LZ4 block follow, not an LZ4 frame.
pub(super) const FRAME_FLAG_SIZE: u16 = 1;

/// How the pages are put into LZ4 blocks; every reader of LTX reads both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// Compressed: small, for the network and for archives.
    Lz4,
    /// An LZ4 block made of literals only: as fast as a copy, for what is written and read once.
    Stored,
}

/// Writes an LTX file (version 3, block format), page by page in ascending order.
///
/// Writes small pieces: give it a `Vec<u8>` or a buffered writer. Keeps about 12 bytes per page for the index.
pub struct Encoder<W> {
    writer: W,
    header: Header,
    compression: Compression,
    digest: FileDigest,
    index: Index,
    offset: u64,
    prev: Option<Pgno>,
    /// XOR of the pages: what `post` must be in a snapshot.
    pages: Checksum,
    /// The frame being built, reused.
    frame: Vec<u8>,
}

/// An LTX file written to its end.
#[derive(Debug)]
pub struct Finished<W> {
    /// What the file was written to.
    pub writer: W,
    /// The file checksum of the trailer, bit 63 set.
    pub file_checksum: u64,
    /// Size of the whole file.
    pub size_bytes: u64,
}

impl<W: Write> Encoder<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// [`LtxError::Invalid`] where the header breaks a rule of the format, [`LtxError::Io`] from the writer.
    pub fn new(writer: W, header: Header, compression: Compression) -> Result<Self, LtxError> {
        if let Some((offset, why)) = header.fault() {
            return Err(LtxError::invalid(format!("header field at byte {offset}: {why}")));
        }
        let frame_max = FRAME_HEADER_SIZE + block_size_max(header.page_size.len());
        let mut encoder = Self {
            writer,
            header,
            compression,
            digest: FileDigest::new(),
            index: Index::new(),
            offset: 0,
            prev: None,
            pages: Checksum::EMPTY,
            frame: vec![0; frame_max],
        };
        encoder.put_summed(&header.encode())?;
        Ok(encoder)
    }

    /// The header written.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Writes a page.
    ///
    /// # Errors
    /// [`LtxError::Invalid`] where the page is of the wrong size, out of order, beyond the database, the lock
    /// page, or leaves a gap in a snapshot; [`LtxError::Io`] from the writer.
    pub fn page(&mut self, pgno: Pgno, page: &[u8]) -> Result<(), LtxError> {
        if page.len() != self.header.page_size.len() {
            let why = format!("{} bytes, the page size is {}", page.len(), self.header.page_size);
            return Err(LtxError::invalid_page(pgno, why));
        }
        if let Some(why) = self.header.page_fault(self.prev, pgno) {
            return Err(LtxError::invalid_page(pgno, why));
        }
        let block = &mut self.frame[FRAME_HEADER_SIZE..];
        let (stored_here, block_size) = match self.compression {
            Compression::Lz4 => {
                let size = lz4_flex::block::compress_into(page, block)
                    .map_err(|e| LtxError::invalid_page(pgno, e.to_string()))?;
                (size, size)
            }
            Compression::Stored => {
                let token = put_literal_length(block, page.len());
                (token, token + page.len())
            }
        };
        self.frame[0..4].copy_from_slice(&pgno.get().to_be_bytes());
        self.frame[4..6].copy_from_slice(&FRAME_FLAG_SIZE.to_be_bytes());
        self.frame[6..FRAME_HEADER_SIZE].copy_from_slice(&(block_size as u32).to_be_bytes());
        self.digest.update(&self.frame[..FRAME_HEADER_SIZE]);
        self.digest.update(page);
        self.write_frame(stored_here, page)?;
        let frame_size = (FRAME_HEADER_SIZE + block_size) as u64;
        self.index.add(pgno, self.offset, frame_size);
        self.offset += frame_size;
        self.prev = Some(pgno);
        if self.header.is_snapshot() && !self.header.no_checksum {
            self.pages = self.pages ^ page_checksum(pgno, page);
        }
        Ok(())
    }

    /// Writes index and trailer; `post` is the checksum of the database after the change.
    ///
    /// # Errors
    /// [`LtxError::Invalid`] where `post` is missing or wrong (it is left out exactly in files without
    /// checksums; an empty database has [`Checksum::EMPTY`]; a snapshot's is the XOR of its pages) or a
    /// snapshot lacks pages; [`LtxError::Io`] from the writer, which is not flushed.
    pub fn finish(mut self, post: Option<Checksum>) -> Result<Finished<W>, LtxError> {
        if let Some(why) = self.header.end_fault(self.prev) {
            return Err(LtxError::invalid(why));
        }
        if let Some(why) = self.header.post_fault(post) {
            return Err(LtxError::invalid(why));
        }
        if let Some(post) = post.filter(|post| self.header.is_snapshot() && *post != self.pages) {
            let why = format!("checksum after is {post}, the snapshot's pages give {}", self.pages);
            return Err(LtxError::invalid(why));
        }
        self.put_summed(&END_OF_PAGES)?;
        let index = std::mem::replace(&mut self.index, Index::new()).finish();
        self.put_summed(&index)?;
        self.put_summed(&post.map_or(0, Checksum::get).to_be_bytes())?;
        let file_checksum = self.digest.value();
        self.put(&file_checksum.to_be_bytes())?;
        Ok(Finished { writer: self.writer, file_checksum, size_bytes: self.offset })
    }

    /// Writes the frame, whose block is in the frame's buffer for `here` bytes and, if stored, goes on in `page`.
    fn write_frame(&mut self, here: usize, page: &[u8]) -> Result<(), LtxError> {
        let offset = self.offset;
        let failed = |source| LtxError::Io { offset, source };
        self.writer.write_all(&self.frame[..FRAME_HEADER_SIZE + here]).map_err(failed)?;
        match self.compression {
            Compression::Lz4 => Ok(()),
            Compression::Stored => self.writer.write_all(page).map_err(failed),
        }
    }

    fn put_summed(&mut self, bytes: &[u8]) -> Result<(), LtxError> {
        self.digest.update(bytes);
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), LtxError> {
        let offset = self.offset;
        self.writer.write_all(bytes).map_err(|source| LtxError::Io { offset, source })?;
        self.offset += bytes.len() as u64;
        Ok(())
    }
}

/// The most bytes a page can take in a frame: what the compressor asks for.
fn block_size_max(page_bytes: usize) -> usize {
    lz4_flex::block::get_maximum_output_size(page_bytes)
}

/// Writes the token of an LZ4 sequence of `length` literals without a match; returns its size.
///
/// Source: LZ4 block format, "Compressed block format": the last sequence has literals only; lengths from 15
/// on go on in bytes of 255 and a last one below.
fn put_literal_length(block: &mut [u8], length: usize) -> usize {
    const IN_TOKEN_MAX: usize = 15;
    if length < IN_TOKEN_MAX {
        block[0] = (length as u8) << 4;
        return 1;
    }
    block[0] = 0xf0;
    let rest = length - IN_TOKEN_MAX;
    let full = rest / 255;
    block[1..=full].fill(255);
    block[full + 1] = (rest % 255) as u8;
    full + 2
}
