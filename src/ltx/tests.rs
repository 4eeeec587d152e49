//! Round trips and damage; files of other programs are in `tests/compat`.

use std::io::Write;

use lz4_flex::frame::{BlockSize, FrameEncoder, FrameInfo};
use proptest::prelude::*;

use super::crc::FileDigest;
use super::index::Index;
use super::*;
use crate::types::{Checksum, NodeId, PageCount, PageSize, Pgno, Txid, TxidRange};

const PAGE: PageSize = PageSize::DEFAULT;

fn pgno(number: u32) -> Pgno {
    Pgno::new(number).unwrap()
}

fn range(min: u64, max: u64) -> TxidRange {
    TxidRange::new(Txid::new(min).unwrap(), Txid::new(max).unwrap()).unwrap()
}

fn change(min: u64, max: u64, commit: u32) -> Header {
    Header::new(PAGE, PageCount::new(commit), range(min, max), Some(Checksum::new(min)))
}

fn filled(byte: u8) -> Vec<u8> {
    vec![byte; PAGE.len()]
}

fn write(header: Header, pages: &[(u32, Vec<u8>)], post: Option<Checksum>) -> Result<Vec<u8>, LtxError> {
    let mut encoder = Encoder::new(Vec::new(), header, Compression::Lz4)?;
    for (number, page) in pages {
        encoder.page(pgno(*number), page)?;
    }
    Ok(encoder.finish(post)?.writer)
}

fn read(bytes: &[u8]) -> (Header, Vec<(u32, Vec<u8>)>, Trailer) {
    let mut decoder = Decoder::new(bytes).unwrap();
    let header = *decoder.header();
    let mut pages = Vec::new();
    let mut page = Vec::new();
    while let Some(number) = decoder.next_page(&mut page).unwrap() {
        pages.push((number.get(), page.clone()));
    }
    (header, pages, decoder.finish().unwrap())
}

fn sample() -> Vec<u8> {
    let pages = [(1, filled(1)), (3, (0..PAGE.len()).map(|n| (n * 7 / 3) as u8).collect())];
    write(change(5, 6, 4), &pages, Some(Checksum::new(9))).unwrap()
}

fn any_header() -> impl Strategy<Value = Header> {
    let fields = (any::<bool>(), 9u32..=16, 2u64..u64::MAX, any::<u64>(), any::<i64>(), any::<u64>());
    let wal = (1u64..1 << 40, 0u64..1 << 40, any::<(u32, u32)>(), any::<u64>());
    (fields, wal, 10u32..).prop_map(|(fields, wal, commit)| {
        let (no_checksum, exponent, min, span, timestamp_ms, pre) = fields;
        let range = range(min, min.saturating_add(span));
        Header {
            no_checksum,
            page_size: PageSize::new(1 << exponent).unwrap(),
            commit: PageCount::new(commit),
            range,
            timestamp_ms,
            pre_apply: (!no_checksum).then(|| Checksum::new(pre)),
            wal_offset: wal.0,
            wal_size_bytes: wal.1,
            wal_salt: wal.2,
            node_id: NodeId::new(wal.3),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn files_round_trip(
        header in any_header(),
        numbers in proptest::collection::btree_set(1u32..10, 0..6),
        noise in proptest::collection::vec(any::<u8>(), 1..600),
        stored: bool,
        post: u64,
    ) {
        let compression = if stored { Compression::Stored } else { Compression::Lz4 };
        let post = (!header.no_checksum).then(|| Checksum::new(post));
        let mut encoder = Encoder::new(Vec::new(), header, compression).unwrap();
        let content = |number: u32| -> Vec<u8> {
            noise.iter().cycle().skip(number as usize).take(header.page_size.len()).copied().collect()
        };
        for number in &numbers {
            encoder.page(pgno(*number), &content(*number)).unwrap();
        }
        let finished = encoder.finish(post).unwrap();
        prop_assert_eq!(finished.size_bytes, finished.writer.len() as u64);
        let (got_header, pages, trailer) = read(&finished.writer);
        prop_assert_eq!(got_header, header);
        prop_assert_eq!(trailer, Trailer { post_apply: post, file_checksum: finished.file_checksum });
        prop_assert!(pages.iter().map(|(number, _)| number).eq(&numbers));
        for (number, page) in pages {
            prop_assert_eq!(page, content(number));
        }
    }

    #[test]
    fn random_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut file = sample();
        prop_assert!(verify(&bytes[..]).is_err());
        let at = 100.min(file.len());
        file.truncate(at);
        file.extend_from_slice(&bytes);
        prop_assert!(verify(&file[..]).is_err());
    }
}

#[test]
fn every_truncation_says_where_the_file_ends() {
    let file = sample();
    for cut in 0..file.len() {
        match verify(&file[..cut]) {
            Err(LtxError::CutShort { offset, .. }) => assert_eq!(offset, cut as u64),
            other => panic!("cut at {cut}: {other:?}"),
        }
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let file = sample();
    for bit in 0..file.len() * 8 {
        let mut damaged = file.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        match verify(&damaged[..]) {
            Err(error) => assert!(error.is_damage(), "bit {bit}: {error}"),
            // Two bytes of an LZ4 block can say the same: then nothing was lost.
            Ok(_) => assert_eq!(read(&damaged).1, read(&file).1, "bit {bit}"),
        }
    }
}

#[test]
fn a_byte_behind_the_trailer_is_noticed() {
    let mut file = sample();
    let end = file.len() as u64;
    file.push(0);
    assert!(matches!(verify(&file[..]), Err(LtxError::Corrupt { offset, .. }) if offset == end));
}

#[test]
fn a_claimed_size_is_refused_before_it_is_allocated() {
    let mut file = sample();
    file[106..110].copy_from_slice(&u32::MAX.to_be_bytes());
    let error = verify(&file[..]).unwrap_err();
    assert_eq!(error.to_string(), "ltx: byte 106 (page 1): compressed size 4294967295 is not from 1 to 4128");
}

#[test]
fn the_encoder_refuses_what_the_format_forbids() {
    let refused = |header: Header, numbers: &[u32], post: Option<Checksum>| {
        let pages: Vec<_> = numbers.iter().map(|number| (*number, filled(0))).collect();
        matches!(write(header, &pages, post), Err(LtxError::Invalid { .. }))
    };
    let post = Some(Checksum::new(3));
    assert!(!refused(change(2, 2, 9), &[1, 9], post));
    assert!(refused(change(2, 2, 9), &[2, 2], post), "the same page twice");
    assert!(refused(change(2, 2, 9), &[3, 2], post), "descending pages");
    assert!(refused(change(2, 2, 9), &[10], post), "beyond the database");
    assert!(refused(change(2, 2, 9), &[1], None), "no checksum after");
    assert!(refused(change(2, 2, 0), &[], post), "a dropped database is empty");
    assert!(!refused(change(2, 2, 0), &[], Some(Checksum::EMPTY)));
    assert!(refused(change(2, 2, u32::MAX), &[Pgno::lock_page(PAGE).get()], post), "the lock page");
    assert!(refused(Header { pre_apply: None, ..change(2, 2, 9) }, &[], post), "no checksum before");
    assert!(refused(change(1, 2, 1), &[1], post), "a snapshot has no checksum before");
    let unchecked = Header { no_checksum: true, pre_apply: None, ..change(2, 2, 9) };
    assert!(!refused(unchecked, &[], None));
    assert!(refused(unchecked, &[], post), "a checksum in a file without");
    assert!(refused(Header { wal_size_bytes: 1, ..change(2, 2, 9) }, &[], post));
    assert!(refused(Header { wal_salt: (1, 0), ..change(2, 2, 9) }, &[], post));
    let mut encoder = Encoder::new(Vec::new(), change(2, 2, 9), Compression::Stored).unwrap();
    assert!(encoder.page(pgno(1), &[0; 512]).is_err(), "a page of another size");
}

#[test]
fn a_snapshot_has_every_page_and_their_checksum() {
    let snapshot = Header::new(PAGE, PageCount::new(2), range(1, 7), None);
    let pages = [(1, filled(1)), (2, filled(2))];
    let sum = page_checksum(pgno(1), &pages[0].1) ^ page_checksum(pgno(2), &pages[1].1);
    let file = write(snapshot, &pages, Some(sum)).unwrap();
    assert_eq!(verify(&file[..]).unwrap().1.post_apply, Some(sum));
    assert!(write(snapshot, &pages, Some(Checksum::new(1))).is_err());
    assert!(write(snapshot, &pages[..1], Some(sum)).is_err());
    assert!(write(snapshot, &pages[1..], Some(sum)).is_err());
}

#[test]
fn a_snapshot_leaves_out_the_lock_page() {
    let page_size = PageSize::MAX;
    let lock = Pgno::lock_page(page_size).get();
    let header = Header::new(page_size, PageCount::new(lock + 1), range(1, 1), None);
    assert_eq!(header.page_fault(Some(pgno(lock - 1)), pgno(lock + 1)), None);
    assert!(header.page_fault(Some(pgno(lock - 1)), pgno(lock)).is_some());
    assert_eq!(header.end_fault(Some(pgno(lock + 1))), None);
    let ends_there = Header { commit: PageCount::new(lock), ..header };
    assert_eq!(ends_there.end_fault(Some(pgno(lock - 1))), None);
}

#[test]
fn files_of_other_versions_are_told_apart_from_damage() {
    let with = |offset: usize, value: u8| {
        let mut file = sample();
        file[offset] = value;
        verify(&file[..]).unwrap_err().to_string()
    };
    assert!(with(7, 1).contains("version 1"), "{}", with(7, 1));
    assert!(with(4, 1).contains("flags 01000000 are not known"));
    assert!(with(80, 1).contains("byte 80"));
    assert!(with(3, b'4').contains("not an LTX file"));
}

/// A file of version 3a: a whole LZ4 frame per page, without its size.
fn sample_of_lz4_frames() -> Vec<u8> {
    let mut file = change(5, 6, 4).encode().to_vec();
    let mut digest = FileDigest::new();
    let mut index = Index::new();
    digest.update(&file);
    for (number, page) in [(1u32, filled(1)), (3, (0..PAGE.len()).map(|n| (n * 7 / 3) as u8).collect())] {
        let start = file.len();
        let frame_header = [&number.to_be_bytes()[..], &[0, 0]].concat();
        let options = FrameInfo::new().block_size(BlockSize::Max64KB).content_checksum(true);
        let mut lz4 = FrameEncoder::with_frame_info(options, Vec::new());
        lz4.write_all(&page).unwrap();
        digest.update(&frame_header);
        digest.update(&page);
        file.extend_from_slice(&frame_header);
        file.extend(lz4.finish().unwrap());
        index.add(pgno(number), start as u64, (file.len() - start) as u64);
    }
    let tail = [&[0; 6][..], &index.finish(), &Checksum::new(9).get().to_be_bytes()].concat();
    digest.update(&tail);
    file.extend(tail);
    file.extend(digest.value().to_be_bytes());
    file
}

#[test]
fn files_with_an_lz4_frame_per_page_are_read() {
    let (frames, blocks) = (read(&sample_of_lz4_frames()), read(&sample()));
    assert_eq!((frames.0, frames.1, frames.2.post_apply), (blocks.0, blocks.1, blocks.2.post_apply));
}

#[test]
fn damage_of_lz4_frames_is_noticed() {
    let file = sample_of_lz4_frames();
    for bit in 0..file.len() * 8 {
        let mut damaged = file.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        match verify(&damaged[..]) {
            Err(error) => assert!(error.is_damage(), "bit {bit}: {error}"),
            Ok(_) => assert_eq!(read(&damaged).1, read(&file).1, "bit {bit}"),
        }
    }
    for cut in 0..file.len() {
        let error = verify(&file[..cut]).unwrap_err();
        assert!(error.is_damage(), "cut at {cut}: {error}");
    }
}

#[test]
fn an_lz4_frame_of_more_than_a_page_is_refused() {
    let mut file = sample_of_lz4_frames();
    file[8..12].copy_from_slice(&2048u32.to_be_bytes());
    let error = verify(&file[..]).unwrap_err();
    assert_eq!(error.to_string(), "ltx: byte 106 (page 1): lz4 frame holds more than a page");
}

#[test]
fn compaction_keeps_the_newest_image_of_each_page() {
    let post = |n| Some(Checksum::new(n));
    let first = write(change(2, 2, 4), &[(1, filled(1)), (2, filled(1)), (4, filled(1))], post(3)).unwrap();
    let second = write(change(3, 4, 5), &[(2, filled(2)), (5, filled(2))], post(5)).unwrap();
    let mut last = change(5, 5, 4);
    last.timestamp_ms = 77;
    let last = write(last, &[(1, filled(3))], post(8)).unwrap();
    let merged = compact([&first[..], &second[..], &last[..]], Vec::new(), Compression::Stored).unwrap();
    let (header, pages, trailer) = read(&merged.writer);
    assert_eq!((header.range, header.commit.get(), header.timestamp_ms), (range(2, 5), 4, 77));
    assert_eq!((header.pre_apply, trailer.post_apply), (post(2), post(8)));
    assert_eq!(pages, [(1, filled(3)), (2, filled(2)), (4, filled(1))]);
}

/// What a database of `base` becomes when the files are applied in order: cut or filled with zeros, then written.
fn applied<'a>(base: &[Vec<u8>], files: impl IntoIterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let mut database = base.to_vec();
    for file in files {
        let (header, pages, _) = read(file);
        database.resize(header.commit.get() as usize, filled(0));
        pages.into_iter().for_each(|(number, page)| database[number as usize - 1] = page);
    }
    database
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_compacted_file_changes_a_database_as_its_inputs_do(
        base in 0usize..8,
        changes in proptest::collection::vec((0u32..8, any::<u8>()), 1..6),
    ) {
        let base: Vec<Vec<u8>> = (0..base).map(|number| filled(100 + number as u8)).collect();
        let files: Vec<Vec<u8>> = (0u8..).zip(&changes).map(|(number, (commit, mask))| {
            let txid = u64::from(number) + 2;
            let numbers = (1..=*commit).filter(|page| mask >> page & 1 == 1);
            let pages: Vec<_> = numbers.map(|page| (page, filled(10 * number + page as u8))).collect();
            let header = Header { no_checksum: true, pre_apply: None, ..change(txid, txid, *commit) };
            write(header, &pages, None).unwrap()
        }).collect();
        let files: Vec<&[u8]> = files.iter().map(|file| &file[..]).collect();
        let merged = compact(files.iter().copied(), Vec::new(), Compression::Stored).unwrap();
        prop_assert_eq!(applied(&base, [&merged.writer[..]]), applied(&base, files));
    }
}

#[test]
fn a_false_size_does_not_make_compaction_write_without_end() {
    let page_size = PageSize::new(512).unwrap();
    let small = Header { page_size, ..change(2, 2, 0) };
    let small = write(small, &[], Some(Checksum::EMPTY)).unwrap();
    let huge = Header { page_size, pre_apply: Some(Checksum::EMPTY), ..change(3, 3, u32::MAX) };
    let huge = write(huge, &[], Some(Checksum::new(1))).unwrap();
    let refused = compact([&small[..], &huge[..]], std::io::sink(), Compression::Stored);
    assert!(matches!(refused, Err(LtxError::Invalid { pgno: Some(_), .. })));
}

#[test]
fn stored_files_are_the_same_byte_for_byte_in_every_release() {
    let mut encoder = Encoder::new(Vec::new(), change(5, 6, 4), Compression::Stored).unwrap();
    encoder.page(pgno(3), &filled(7)).unwrap();
    let finished = encoder.finish(Some(Checksum::new(9))).unwrap();
    assert_eq!((finished.size_bytes, finished.file_checksum), (4259, 0x8d5d_17d4_8ad7_f6ce));
    assert_eq!(finished.writer[100..110], [0, 0, 0, 3, 0, 1, 0, 0, 0x10, 0x12]);
    assert_eq!(finished.writer[110..129], [&[0xf0][..], &[255; 16], &[1, 7]].concat());
}

#[test]
fn compaction_refuses_files_that_do_not_continue_each_other() {
    let file = |min, max, pre, post| {
        let header = Header { pre_apply: Some(Checksum::new(pre)), ..change(min, max, 1) };
        write(header, &[], Some(Checksum::new(post))).unwrap()
    };
    let blamed =
        |files: &[Vec<u8>]| match compact(files.iter().map(|file| &file[..]), Vec::new(), Compression::Lz4) {
            Err(LtxError::Input { input, .. }) => Some(input),
            Err(other) => panic!("{other}"),
            Ok(_) => None,
        };
    assert_eq!(blamed(&[file(2, 3, 1, 2), file(4, 4, 2, 3)]), None);
    assert_eq!(blamed(&[file(2, 3, 1, 2), file(5, 5, 2, 3)]), Some(1), "a gap");
    assert_eq!(blamed(&[file(4, 4, 1, 2), file(2, 3, 2, 3)]), Some(1), "the wrong order");
    assert_eq!(blamed(&[file(2, 3, 1, 2), file(4, 4, 7, 3)]), Some(1), "another history");
    let mut damaged = file(4, 4, 2, 3);
    damaged[150 - 30] ^= 1;
    assert_eq!(blamed(&[file(2, 3, 1, 2), damaged]), Some(1), "damage");
    let none = compact(Vec::<&[u8]>::new(), Vec::new(), Compression::Lz4);
    assert!(matches!(none, Err(LtxError::Invalid { .. })));
}
