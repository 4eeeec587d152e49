//! The write-ahead log: its header, its frames and their chained checksum.
//!
//! Source: SQLite file format, section 4; `wal.c`.

use std::io;

use super::header::be32;
pub use super::wal_scanner::{CommittedFrames, WalScanner};
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, one addition at a time.
    fn slow_checksum(big_endian: bool, seed: FrameChecksum, data: &[u8]) -> FrameChecksum {
        let number = |at: usize| {
            let bytes = [data[at], data[at + 1], data[at + 2], data[at + 3]];
            if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
        };
        let mut sums = seed;
        for at in (0..data.len()).step_by(8) {
            sums.0 = sums.0.wrapping_add(number(at)).wrapping_add(sums.1);
            sums.1 = sums.1.wrapping_add(number(at + 4)).wrapping_add(sums.0);
        }
        sums
    }

    fn frame_bytes(frame: &FrameHeader, page: &[u8]) -> Vec<u8> {
        [&frame.encode()[..], page].concat()
    }

    /// A WAL of the given commit sizes, one frame each (0 for a frame that commits nothing).
    fn wal_of(header: &WalHeader, commits: &[u32]) -> Vec<u8> {
        let mut bytes = header.encode().to_vec();
        let mut chain = header.checksum;
        for (number, commit) in commits.iter().enumerate() {
            let page = vec![number as u8; header.page_size.len()];
            let pgno = Pgno::new(number as u32 + 1).unwrap();
            let commit = PageCount::new(*commit);
            let frame =
                FrameHeader::seal(pgno, commit, header.salt, header.big_endian_checksum, chain, &page);
            chain = frame.checksum;
            bytes.extend(frame_bytes(&frame, &page));
        }
        bytes
    }

    fn header() -> WalHeader {
        WalHeader::new(PageSize::new(512).unwrap(), 3, Salt(5, 6))
    }

    proptest! {
        #[test]
        fn the_unrolled_checksum_is_the_plain_one(
            pairs in proptest::collection::vec(any::<u64>(), 0..40),
            seed in any::<(u32, u32)>(),
            big_endian in any::<bool>(),
        ) {
            let data: Vec<u8> = pairs.iter().flat_map(|pair| pair.to_le_bytes()).collect();
            let seed = FrameChecksum(seed.0, seed.1);
            prop_assert_eq!(checksum(big_endian, seed, &data), slow_checksum(big_endian, seed, &data));
        }

        #[test]
        fn headers_round_trip(exponent in 9u32..=16, seq: u32, salt: (u32, u32), big_endian: bool) {
            let page_size = PageSize::new(1 << exponent).unwrap();
            let mut header = WalHeader::new(page_size, seq, Salt(salt.0, salt.1));
            header.big_endian_checksum = big_endian;
            let parsed = WalHeader::parse(&header.encode()).unwrap();
            prop_assert_eq!(WalHeader { checksum: parsed.checksum, ..header }, parsed);
            prop_assert_eq!(header.encode(), parsed.encode());
        }

        #[test]
        fn frames_round_trip(pgno in 1u32.., commit: u32, salt: (u32, u32), sums: (u32, u32)) {
            let frame = FrameHeader {
                pgno: Pgno::new(pgno).unwrap(),
                commit: PageCount::new(commit),
                salt: Salt(salt.0, salt.1),
                checksum: FrameChecksum(sums.0, sums.1),
            };
            prop_assert_eq!(FrameHeader::parse(&frame.encode()), Some(frame));
        }
    }

    #[test]
    fn a_new_header_carries_its_checksum() {
        assert_eq!(WalHeader::parse(&header().encode()).unwrap(), header());
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let bytes = header().encode();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(WalHeader::parse(&damaged).is_err(), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert!(matches!(WalHeader::parse(&bytes[..cut]), Err(WalError::CutShort(got)) if got == cut));
        }
    }

    #[test]
    fn another_version_is_told_apart_from_damage() {
        let mut bytes = header().encode();
        bytes[7] ^= 1;
        let little = cfg!(target_endian = "little");
        let sums = checksum(!little, FrameChecksum::default(), &bytes[..24]);
        put_all(&mut bytes[24..], &[sums.0, sums.1]);
        assert!(matches!(WalHeader::parse(&bytes), Err(WalError::Version(3_007_001))));
    }

    #[test]
    fn frame_offsets_leave_room_for_headers() {
        assert_eq!(frame_offset(1, PageSize::DEFAULT), 32);
        assert_eq!(frame_offset(3, PageSize::DEFAULT), 32 + 2 * (24 + 4096));
        assert_eq!(frame_offset(u32::MAX, PageSize::MAX), 32 + 4_294_967_294 * (24 + 65_536));
    }

    #[test]
    fn the_scanner_stops_at_the_last_commit() {
        let header = header();
        let bytes = wal_of(&header, &[0, 2, 0, 4, 0, 0]);
        let found = CommittedFrames::scan(&bytes[..]).unwrap();
        assert_eq!((found.last_frame(), found.commit()), (4, Some(PageCount::new(4))));
        assert_eq!(found.chain(), found.frames[3].checksum);
        for cut in 32..bytes.len() {
            let found = CommittedFrames::scan(&bytes[..cut]).unwrap();
            let whole = (cut - 32) / (512 + 24);
            let expected = [0, 0, 2, 2, 4, 4, 4][whole];
            assert_eq!(found.last_frame(), expected, "cut at {cut}");
        }
    }

    #[test]
    fn frames_of_an_earlier_life_of_the_wal_are_not_taken() {
        let old = WalHeader::new(header().page_size, 2, Salt(4, 9));
        let mut bytes = wal_of(&old, &[1, 2, 3]);
        let new = wal_of(&header(), &[1]);
        bytes[..new.len()].copy_from_slice(&new);
        assert_eq!(CommittedFrames::scan(&bytes[..]).unwrap().last_frame(), 1);
    }

    #[test]
    fn a_frame_follows_only_its_own_chain() {
        let header = header();
        let page = vec![1; 512];
        let frame = FrameHeader::seal(
            Pgno::FIRST,
            PageCount::new(1),
            header.salt,
            header.big_endian_checksum,
            header.checksum,
            &page,
        );
        let raw = frame.encode();
        assert!(frame.follows(&header, header.checksum, &raw, &page));
        assert!(!frame.follows(&header, FrameChecksum(1, 1), &raw, &page));
        assert!(!frame.follows(&header, header.checksum, &raw, &page[..256]));
        let other = WalHeader { salt: Salt(0, 0), ..header };
        assert!(!frame.follows(&other, header.checksum, &raw, &page));
    }

    #[test]
    fn a_failing_reader_is_an_error_with_its_place() {
        struct Fails<'a>(&'a [u8]);
        impl io::Read for Fails<'_> {
            fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                if self.0.is_empty() { Err(io::ErrorKind::TimedOut.into()) } else { self.0.read(out) }
            }
        }
        let bytes = wal_of(&header(), &[1, 2]);
        let cut = &bytes[..32 + 536 + 100];
        let failed = CommittedFrames::scan(Fails(cut));
        assert!(matches!(failed, Err(WalError::Io { offset: 568, .. })), "{failed:?}");
    }
}
