//! The write-ahead log: its header, its frames and their chained checksum.
//!
//! Source: SQLite file format, section 4; `wal.c`.

use std::io;

use super::header::be32;
use crate::types::{InvalidPageSize, PageCount, PageSize, Pgno};

/// Size of the header of a WAL in bytes.
pub const WAL_HEADER_SIZE: usize = 32;
/// Size of the header of a frame in bytes; the page follows it.
pub const FRAME_HEADER_SIZE: usize = 24;

const MAGIC: u32 = 0x377f_0682;
const VERSION: u32 = 3_007_000;
const HEADER_BYTES_SUMMED: usize = 24;
const FRAME_BYTES_SUMMED: usize = 8;

/// Where the header of frame `frame` (1 for the first) starts in the WAL, in bytes.
///
/// Also the size of a WAL of `frame - 1` frames; frame 0 is not a frame and counts as 1.
pub fn frame_offset(frame: u32, page_size: PageSize) -> u64 {
    let before = u64::from(frame.saturating_sub(1));
    WAL_HEADER_SIZE as u64 + before * (page_size.bytes() + FRAME_HEADER_SIZE as u64)
}

/// The two numbers that tie frames to the WAL header before them.
///
/// SQLite adds 1 to the first and draws the second anew whenever it restarts the WAL.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Salt(pub u32, pub u32);

/// State of the WAL's checksum: both sums.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FrameChecksum(pub u32, pub u32);

/// The header of a WAL.
///
/// | offset | size | field, big-endian |
/// |---|---|---|
/// | 0 | 4 | magic 0x377f0682, or ..83 where checksums read the data big-endian |
/// | 4 | 4 | version 3007000 |
/// | 8 | 4 | page size |
/// | 12 | 4 | checkpoint sequence number |
/// | 16 | 8 | salt |
/// | 24 | 8 | checksum of the bytes before |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalHeader {
    /// Size of the pages in the frames.
    pub page_size: PageSize,
    /// Counts the restarts of this WAL.
    pub checkpoint_seq: u32,
    /// The salt every valid frame carries.
    pub salt: Salt,
    /// Whether checksums read the data as big-endian numbers.
    pub big_endian_checksum: bool,
    /// Checksum of the header: what the first frame's continues.
    pub checksum: FrameChecksum,
}

/// Bytes that are not a WAL.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// There are less than 32 bytes.
    #[error("wal header is cut short: {0} of 32 bytes")]
    CutShort(usize),
    /// The file is no WAL.
    #[error("wal header: magic {0:08x} is not that of a wal")]
    Magic(u32),
    /// The page size is not one of SQLite's.
    #[error("wal header: {0}")]
    PageSize(#[from] InvalidPageSize),
    /// The header was not written as a whole.
    #[error("wal header: checksum does not match")]
    Checksum,
    /// The WAL is of a version SQLite itself refuses.
    #[error("wal header: version {0} is not known (this program knows 3007000)")]
    Version(u32),
    /// The bytes could not be read.
    #[error("wal: byte {offset}: {source}")]
    Io {
        /// Where in the WAL.
        offset: u64,
        /// What the reader said.
        source: io::Error,
    },
}

impl WalHeader {
    /// A header with its checksum, in the byte order SQLite would use on this machine.
    pub fn new(page_size: PageSize, checkpoint_seq: u32, salt: Salt) -> Self {
        let big_endian_checksum = cfg!(target_endian = "big");
        let mut header =
            Self { page_size, checkpoint_seq, salt, big_endian_checksum, checksum: FrameChecksum::default() };
        let bytes = header.encode();
        header.checksum = FrameChecksum(be32(&bytes, 24), be32(&bytes, 28));
        header
    }

    /// Reads a header and checks its checksum, in the order SQLite's recovery does.
    ///
    /// # Errors
    /// [`WalError::Version`] is one SQLite reports, too; after any other SQLite takes the WAL as empty.
    pub fn parse(bytes: &[u8]) -> Result<Self, WalError> {
        let header = bytes.get(..WAL_HEADER_SIZE).ok_or(WalError::CutShort(bytes.len()))?;
        let magic = be32(header, 0);
        if magic & !1 != MAGIC {
            return Err(WalError::Magic(magic));
        }
        let page_size = PageSize::new(be32(header, 8))?;
        let big_endian_checksum = magic & 1 == 1;
        let sums = checksum(big_endian_checksum, FrameChecksum::default(), &header[..HEADER_BYTES_SUMMED]);
        if sums != FrameChecksum(be32(header, 24), be32(header, 28)) {
            return Err(WalError::Checksum);
        }
        let version = be32(header, 4);
        if version != VERSION {
            return Err(WalError::Version(version));
        }
        Ok(Self {
            page_size,
            checkpoint_seq: be32(header, 12),
            salt: Salt(be32(header, 16), be32(header, 20)),
            big_endian_checksum,
            checksum: sums,
        })
    }

    /// The bytes of the header, the checksum computed anew.
    pub fn encode(&self) -> [u8; WAL_HEADER_SIZE] {
        let mut bytes = [0; WAL_HEADER_SIZE];
        let magic = MAGIC | u32::from(self.big_endian_checksum);
        let fields = [magic, VERSION, self.page_size.get(), self.checkpoint_seq, self.salt.0, self.salt.1];
        put_all(&mut bytes, &fields);
        let sums =
            checksum(self.big_endian_checksum, FrameChecksum::default(), &bytes[..HEADER_BYTES_SUMMED]);
        put_all(&mut bytes[HEADER_BYTES_SUMMED..], &[sums.0, sums.1]);
        bytes
    }
}

/// The header of a frame; its page follows it.
///
/// | offset | size | field, big-endian |
/// |---|---|---|
/// | 0 | 4 | page number |
/// | 4 | 4 | size of the database in pages after the commit, 0 where the frame does not end one |
/// | 8 | 8 | salt |
/// | 16 | 8 | checksum over the frames so far, bytes 0 to 7 and the page |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// The page in the frame.
    pub pgno: Pgno,
    /// Size of the database after the commit this frame ends; zero where it ends none.
    pub commit: PageCount,
    /// The salt of the WAL header the frame belongs to.
    pub salt: Salt,
    /// The checksum the next frame's continues.
    pub checksum: FrameChecksum,
}

impl FrameHeader {
    /// Reads a header without checking it, or `None` for page number 0, which ends a WAL.
    pub fn parse(bytes: &[u8; FRAME_HEADER_SIZE]) -> Option<Self> {
        Some(Self {
            pgno: Pgno::new(be32(bytes, 0))?,
            commit: PageCount::new(be32(bytes, 4)),
            salt: Salt(be32(bytes, 8), be32(bytes, 12)),
            checksum: FrameChecksum(be32(bytes, 16), be32(bytes, 20)),
        })
    }

    /// The bytes of the header.
    pub fn encode(&self) -> [u8; FRAME_HEADER_SIZE] {
        let mut bytes = [0; FRAME_HEADER_SIZE];
        let (salt, sums) = (self.salt, self.checksum);
        put_all(&mut bytes, &[self.pgno.get(), self.commit.get(), salt.0, salt.1, sums.0, sums.1]);
        bytes
    }

    /// The header of a frame that continues a WAL whose checksum so far is `prev`.
    pub fn seal(
        pgno: Pgno,
        commit: PageCount,
        salt: Salt,
        big_endian: bool,
        prev: FrameChecksum,
        page: &[u8],
    ) -> FrameHeader {
        let mut frame = Self { pgno, commit, salt, checksum: prev };
        let sums = checksum(big_endian, prev, &frame.encode()[..FRAME_BYTES_SUMMED]);
        frame.checksum = checksum(big_endian, sums, page);
        frame
    }

    /// Whether SQLite's recovery would accept the frame after checksum `prev` in the WAL of `header`.
    ///
    /// `raw` is the frame's header as it stands in the file, `page` its page.
    pub fn follows(
        &self,
        header: &WalHeader,
        prev: FrameChecksum,
        raw: &[u8; FRAME_HEADER_SIZE],
        page: &[u8],
    ) -> bool {
        if self.salt != header.salt || page.len() != header.page_size.len() {
            return false;
        }
        let sums = checksum(header.big_endian_checksum, prev, &raw[..FRAME_BYTES_SUMMED]);
        checksum(header.big_endian_checksum, sums, page) == self.checksum
    }

    /// Whether the frame ends a transaction.
    pub fn ends_commit(&self) -> bool {
        self.commit != PageCount::ZERO
    }
}

/// Continues the WAL's checksum `seed` over `data`, whose length is a multiple of 8 bytes.
///
/// Two sums over pairs of 32-bit numbers, each step needing the one before: the pairs are unrolled so that
/// only the two dependent additions per pair remain. Source: `wal.c`, walChecksumBytes().
pub fn checksum(big_endian: bool, seed: FrameChecksum, data: &[u8]) -> FrameChecksum {
    debug_assert_eq!(data.len() % 8, 0, "SQLite sums pairs of 32-bit numbers");
    if big_endian {
        sum_pairs(u32::from_be_bytes, seed, data)
    } else {
        sum_pairs(u32::from_le_bytes, seed, data)
    }
}

#[inline(always)]
fn sum_pairs(number: impl Fn([u8; 4]) -> u32, seed: FrameChecksum, data: &[u8]) -> FrameChecksum {
    let (mut first, mut second) = (seed.0, seed.1);
    let mut step = |pair: &[u8; 8]| {
        let [a, b, c, d, e, f, g, h] = *pair;
        first = first.wrapping_add(number([a, b, c, d])).wrapping_add(second);
        second = second.wrapping_add(number([e, f, g, h])).wrapping_add(first);
    };
    let (blocks, rest) = data.as_chunks::<64>();
    for block in blocks {
        let (pairs, _) = block.as_chunks::<8>();
        pairs.iter().for_each(&mut step);
    }
    rest.as_chunks::<8>().0.iter().for_each(&mut step);
    FrameChecksum(first, second)
}

fn put_all(bytes: &mut [u8], numbers: &[u32]) {
    for (place, number) in bytes.chunks_exact_mut(4).zip(numbers) {
        place.copy_from_slice(&number.to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
