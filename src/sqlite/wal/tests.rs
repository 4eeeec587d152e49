//! Headers, frames and the scanner; WALs written by SQLite are in `tests/compat`.

use crate::sqlite::wal_scanner::CommittedFrames;
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
        let frame = FrameHeader::seal(pgno, commit, header.salt, header.big_endian_checksum, chain, &page);
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
