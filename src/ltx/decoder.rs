use std::io::{self, Read};

use super::crc::{FileDigest, page_checksum};
use super::encoder::{END_OF_PAGES, FRAME_FLAG_SIZE};
use super::error::LtxError;
use super::header::{HEADER_SIZE, Header, TRAILER_SIZE, Trailer, be32, be64, checksum_field};
use super::index::Index;
use crate::types::{Checksum, Pgno};

/// Magic, flags and block size of an LZ4 frame. Source: LZ4 frame format, "Frame Descriptor".
const LZ4_DESCRIPTOR_SIZE: usize = 4 + 1 + 1;
const LZ4_MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
/// Version (bits 7 and 6), independent blocks (bit 5), dictionary (bit 0).
const LZ4_FLAGS_CHECKED: u8 = 0b1110_0001;
/// Version 1, blocks that stand alone, no dictionary: all that writers of LTX use, and little memory to read.
const LZ4_FLAGS_EXPECTED: u8 = 0b0110_0000;

/// Reads an LTX file (version 3, both page formats) and checks everything it says about itself.
///
/// Nothing it yielded may be trusted before [`Decoder::finish`] has returned. Reads small pieces: give it a
/// buffered reader. Allocates one page, one block and about 12 bytes per page read, whatever the file claims.
pub struct Decoder<R> {
    input: Input<R>,
    header: Header,
    digest: FileDigest,
    index: Index,
    prev: Option<Pgno>,
    pages: Checksum,
    block: Vec<u8>,
    frame: (u64, u64),
    ended: bool,
}

impl<R: Read> Decoder<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// Where the file is not LTX version 3 or its header breaks a rule; every error names the byte.
    pub fn new(reader: R) -> Result<Self, LtxError> {
        let mut input = Input { reader, offset: 0 };
        let mut bytes = [0; HEADER_SIZE];
        input.read_whole(&mut bytes, "header")?;
        let header = Header::decode(&bytes)?;
        let mut digest = FileDigest::new();
        digest.update(&bytes);
        Ok(Self {
            input,
            header,
            digest,
            index: Index::new(),
            prev: None,
            pages: Checksum::EMPTY,
            block: Vec::new(),
            frame: (0, 0),
            ended: false,
        })
    }

    /// The header of the file.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next page, its bytes in `page` (resized to the page size); `None` behind the last one.
    ///
    /// # Errors
    /// Where the frame is damaged or breaks a rule; every error names the byte and the page.
    pub fn next_page(&mut self, page: &mut Vec<u8>) -> Result<Option<Pgno>, LtxError> {
        if self.ended {
            return Ok(None);
        }
        let start = self.input.offset;
        let mut frame = END_OF_PAGES;
        self.input.read_whole(&mut frame, "header of a page")?;
        self.digest.update(&frame);
        let Some(pgno) = Pgno::new(be32(&frame, 0)) else { return self.end_of_pages(start, frame) };
        if let Some(why) = self.header.page_fault(self.prev, pgno) {
            return Err(LtxError::corrupt_page(start, pgno, why));
        }
        page.resize(self.header.page_size.len(), 0);
        match u16::from_be_bytes([frame[4], frame[5]]) {
            0 => self.read_lz4_frame(pgno, page)?,
            FRAME_FLAG_SIZE => self.read_lz4_block(pgno, page)?,
            flags => {
                let why = format!("flags {flags:04x} of page {pgno} are not known");
                return Err(LtxError::Unsupported { offset: start + 4, why });
            }
        }
        self.digest.update(page);
        self.frame = (start, self.input.offset - start);
        self.index.add(pgno, start, self.input.offset - start);
        self.prev = Some(pgno);
        if self.header.is_snapshot() && !self.header.no_checksum {
            self.pages = self.pages ^ page_checksum(pgno, page);
        }
        Ok(Some(pgno))
    }

    /// Offset and size in bytes of the frame of the page that came last.
    pub fn frame(&self) -> (u64, u64) {
        self.frame
    }

    /// Reads what is left of the file (pages not taken yet, index, trailer) and checks it.
    ///
    /// # Errors
    /// Where index or checksums do not match what was read, or the trailer breaks a rule.
    pub fn finish(self) -> Result<Trailer, LtxError> {
        self.finish_input().map(|(_, trailer)| trailer)
    }

    fn finish_input(mut self) -> Result<(Input<R>, Trailer), LtxError> {
        let mut page = Vec::new();
        while self.next_page(&mut page)?.is_some() {}
        self.check_index()?;
        let start = self.input.offset;
        let mut bytes = [0; TRAILER_SIZE];
        self.input.read_whole(&mut bytes, "trailer")?;
        self.digest.update(&bytes[..8]);
        let (computed, stored) = (self.digest.value(), be64(&bytes, 8));
        if computed != stored {
            let why = format!("file checksum is {stored:016x}, the file's content gives {computed:016x}");
            return Err(LtxError::corrupt(start + 8, why));
        }
        let post_apply = checksum_field(start, be64(&bytes, 0))?;
        if let Some(why) = self.header.post_fault(post_apply) {
            return Err(LtxError::corrupt(start, why));
        }
        if let Some(post) = post_apply.filter(|post| self.header.is_snapshot() && *post != self.pages) {
            let why = format!("checksum after is {post}, the snapshot's pages give {}", self.pages);
            return Err(LtxError::corrupt(start, why));
        }
        Ok((self.input, Trailer { post_apply, file_checksum: stored }))
    }

    fn end_of_pages(&mut self, start: u64, frame: [u8; 6]) -> Result<Option<Pgno>, LtxError> {
        if frame != END_OF_PAGES {
            return Err(LtxError::corrupt(start, "page number 0 with flags"));
        }
        if let Some(why) = self.header.end_fault(self.prev) {
            return Err(LtxError::corrupt(start, why));
        }
        self.ended = true;
        Ok(None)
    }

    /// Version 3b: the size of an LZ4 block, and the block.
    fn read_lz4_block(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<(), LtxError> {
        let start = self.input.offset;
        let mut size_bytes = [0; 4];
        self.input.read_whole(&mut size_bytes, "size of a page")?;
        self.digest.update(&size_bytes);
        let size = u32::from_be_bytes(size_bytes);
        let size_max = lz4_block_size_max(self.header.page_size.get());
        if size == 0 || size > size_max {
            let why = format!("compressed size {size} is not from 1 to {size_max}");
            return Err(LtxError::corrupt_page(start, pgno, why));
        }
        self.block.resize(size as usize, 0);
        self.input.read_whole(&mut self.block, "content of a page")?;
        match lz4_flex::block::decompress_into(&self.block, page) {
            Ok(got) if got == page.len() => Ok(()),
            Ok(got) => {
                let why = format!("decompresses to {got} bytes, the page size is {}", page.len());
                Err(LtxError::corrupt_page(start + 4, pgno, why))
            }
            Err(error) => Err(LtxError::corrupt_page(start + 4, pgno, format!("lz4 block: {error}"))),
        }
    }

    /// Version 3a: an LZ4 frame of one page, its size not given.
    fn read_lz4_frame(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<(), LtxError> {
        let start = self.input.offset;
        let mut descriptor = [0; LZ4_DESCRIPTOR_SIZE];
        self.input.read_whole(&mut descriptor, "content of a page")?;
        if descriptor[..4] != LZ4_MAGIC || descriptor[4] & LZ4_FLAGS_CHECKED != LZ4_FLAGS_EXPECTED {
            let why = format!("lz4 frame begins with {descriptor:02x?}: no frame of independent blocks");
            return Err(LtxError::corrupt_page(start, pgno, why));
        }
        let frame = (&descriptor[..]).chain(&mut self.input);
        let mut lz4 = lz4_flex::frame::FrameDecoder::new(frame);
        let mut more = [0];
        let result = lz4.read_exact(page).and_then(|()| lz4.read(&mut more));
        match result {
            Ok(0) => Ok(()),
            Ok(_) => Err(LtxError::corrupt_page(start, pgno, "lz4 frame holds more than a page")),
            Err(source) => Err(match source.kind() {
                io::ErrorKind::UnexpectedEof => {
                    LtxError::CutShort { offset: self.input.offset, inside: "content of a page" }
                }
                io::ErrorKind::InvalidData | io::ErrorKind::Other if source.raw_os_error().is_none() => {
                    LtxError::corrupt_page(start, pgno, format!("lz4 frame: {source}"))
                }
                _ => LtxError::Io { offset: self.input.offset, source },
            }),
        }
    }

    /// Compares the index with the frames read.
    fn check_index(&mut self) -> Result<(), LtxError> {
        let start = self.input.offset;
        let expected = std::mem::replace(&mut self.index, Index::new()).finish();
        let mut found = [0; 4096];
        for (at, part) in expected.chunks(found.len()).enumerate() {
            let found = &mut found[..part.len()];
            self.input.read_whole(found, "index")?;
            if let Some(differs) = part.iter().zip(&*found).position(|(a, b)| a != b) {
                let offset = start + (at * 4096 + differs) as u64;
                return Err(LtxError::corrupt(offset, "index does not match the pages"));
            }
        }
        self.digest.update(&expected);
        Ok(())
    }
}

/// Reads and checks a whole LTX file; nothing may follow it.
///
/// # Errors
/// The first thing wrong with the file, and where.
pub fn verify(reader: impl Read) -> Result<(Header, Trailer), LtxError> {
    let decoder = Decoder::new(reader)?;
    let header = *decoder.header();
    let (mut input, trailer) = decoder.finish_input()?;
    match input.read(&mut [0]) {
        Ok(0) => Ok((header, trailer)),
        Ok(_) => Err(LtxError::corrupt(input.offset - 1, "bytes follow the trailer")),
        Err(source) => Err(LtxError::Io { offset: input.offset, source }),
    }
}

/// The most bytes an LZ4 block of `page_bytes` bytes can have. Source: LZ4, LZ4_COMPRESSBOUND.
fn lz4_block_size_max(page_bytes: u32) -> u32 {
    page_bytes + page_bytes / 255 + 16
}

/// The file, and how far it was read.
struct Input<R> {
    reader: R,
    offset: u64,
}

impl<R: Read> Input<R> {
    fn read_whole(&mut self, bytes: &mut [u8], inside: &'static str) -> Result<(), LtxError> {
        self.read_exact(bytes).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => LtxError::CutShort { offset: self.offset, inside },
            _ => LtxError::Io { offset: self.offset, source },
        })
    }
}

impl<R: Read> Read for Input<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(bytes)?;
        self.offset += count as u64;
        Ok(count)
    }
}
