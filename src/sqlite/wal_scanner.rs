//! Reading a write-ahead log from its start to the last frame whose checksums hold.

use std::io::{self, Read};

use super::wal::{FRAME_HEADER_SIZE, FrameChecksum, FrameHeader, WAL_HEADER_SIZE, WalError, WalHeader};
use crate::types::PageCount;

/// Walks a WAL from its first byte and yields the frames SQLite's recovery would accept.
///
/// Used for a WAL left behind by an earlier run. Stops at the first frame that is incomplete, of another
/// salt, of page 0 or with a checksum that does not continue the chain. Holds one page at a time; give it a
/// buffered reader. Source: `wal.c`, walIndexRecover().
#[derive(Debug)]
pub struct WalScanner<R> {
    reader: R,
    header: WalHeader,
    chain: FrameChecksum,
    frame: u32,
    ended: bool,
}

/// The committed part of a WAL: the frames up to and including its last commit frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommittedFrames {
    /// The WAL's header.
    pub header: WalHeader,
    /// Frame 1 to the last commit frame, in order; frame `n` is at index `n - 1`.
    pub frames: Vec<FrameHeader>,
}

impl CommittedFrames {
    /// Scans a whole WAL and keeps the headers up to the last commit: 24 bytes of memory per frame, no pages.
    ///
    /// # Errors
    /// Those of [`WalScanner::new`], and where the reader fails.
    pub fn scan(reader: impl Read) -> Result<Self, WalError> {
        let mut scanner = WalScanner::new(reader)?;
        let mut page = Vec::new();
        let mut frames = Vec::new();
        let mut committed = 0;
        while let Some(frame) = scanner.next_frame(&mut page)? {
            frames.push(frame);
            if frame.ends_commit() {
                committed = frames.len();
            }
        }
        frames.truncate(committed);
        Ok(Self { header: scanner.header, frames })
    }

    /// Number of the last commit frame, 0 where the WAL commits nothing.
    pub fn last_frame(&self) -> u32 {
        u32::try_from(self.frames.len()).expect("frames are counted in 32 bits while scanning")
    }

    /// Size of the database after the last commit, `None` where the WAL commits nothing.
    pub fn commit(&self) -> Option<PageCount> {
        self.frames.last().map(|frame| frame.commit)
    }

    /// The checksum that a frame appended behind the last commit continues.
    pub fn chain(&self) -> FrameChecksum {
        self.frames.last().map_or(self.header.checksum, |frame| frame.checksum)
    }
}

impl<R: Read> WalScanner<R> {
    /// Reads the WAL's header.
    ///
    /// # Errors
    /// [`WalError::Io`] and [`WalError::Version`] are to be reported; after any other error SQLite takes
    /// the WAL as empty.
    pub fn new(mut reader: R) -> Result<Self, WalError> {
        let mut bytes = [0; WAL_HEADER_SIZE];
        let got = fill(&mut reader, &mut bytes).map_err(|source| WalError::Io { offset: 0, source })?;
        let header = WalHeader::parse(&bytes[..got])?;
        Ok(Self { reader, header, chain: header.checksum, frame: 0, ended: false })
    }

    /// The WAL's header.
    pub fn header(&self) -> &WalHeader {
        &self.header
    }

    /// The next valid frame, with its page in `page`; `None` at the end of the valid part.
    ///
    /// Yields frames behind the last commit, too: only a later commit frame makes them count.
    ///
    /// # Errors
    /// Where the reader fails; a WAL that ends early is no error.
    pub fn next_frame(&mut self, page: &mut Vec<u8>) -> Result<Option<FrameHeader>, WalError> {
        if self.ended {
            return Ok(None);
        }
        page.resize(self.header.page_size.len(), 0);
        let mut raw = [0; FRAME_HEADER_SIZE];
        let complete = self.read_whole(&mut raw)? && self.read_whole(page)?;
        let frame = FrameHeader::parse(&raw)
            .filter(|frame| complete && frame.follows(&self.header, self.chain, &raw, page));
        match (frame, self.frame.checked_add(1)) {
            (Some(valid), Some(number)) => {
                self.frame = number;
                self.chain = valid.checksum;
            }
            _ => self.ended = true,
        }
        Ok(frame.filter(|_| !self.ended))
    }

    fn read_whole(&mut self, bytes: &mut [u8]) -> Result<bool, WalError> {
        let offset = super::wal::frame_offset(self.frame.saturating_add(1), self.header.page_size);
        let got = fill(&mut self.reader, bytes).map_err(|source| WalError::Io { offset, source })?;
        Ok(got == bytes.len())
    }
}

/// Reads until `bytes` is full or the reader ends; returns the number of bytes read.
fn fill(reader: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match reader.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
