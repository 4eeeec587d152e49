//! The six change sets and the snapshot of `tests/data/ltx`; what they must give is in its README.

use std::fmt::Write as _;
use std::path::Path;

use rusqlite::Connection;
use sha2::{Digest, Sha256};
use skein::ltx::{self, Compression, Decoder, Encoder, Header, LtxError};
use skein::types::{Checksum, PageCount, Pgno};

const SHA256: &str = "ffde41f05b74b1c2bce9d8f3570555c4de5ad2fccc98252d3015c474bf8576d9";
const CHECKSUM: &str = "fba53bce262440f3";
/// Pages of the database after it, pages in the file, offset and size in the WAL.
const FACTS: [(u32, usize, u64, u64); 6] = [
    (4, 4, 32, 16480),
    (6, 4, 16512, 16480),
    (8, 5, 32992, 20600),
    (9, 4, 53592, 16480),
    (9, 6, 70072, 24720),
    (7, 7, 94792, 28840),
];

fn sample(level: u32, txid: u64) -> Vec<u8> {
    let name = format!("level{level}-{txid:016x}-{txid:016x}.ltx");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/ltx").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn transactions() -> Vec<Vec<u8>> {
    (1..=6).map(|txid| sample(0, txid)).collect()
}

/// Applies a change set to the bytes of a database; returns its header and the pages it had.
fn apply(database: &mut Vec<u8>, file: &[u8]) -> (Header, usize) {
    let mut decoder = Decoder::new(file).unwrap();
    let header = *decoder.header();
    let mut page = Vec::new();
    let mut count = 0;
    database.resize(header.commit.bytes(header.page_size) as usize, 0);
    while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
        let at = pgno.offset(header.page_size) as usize;
        database[at..at + page.len()].copy_from_slice(&page);
        count += 1;
    }
    decoder.finish().unwrap();
    (header, count)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

fn database_checksum(database: &[u8], header: &Header) -> Checksum {
    let pages = header.commit.pages(header.page_size);
    pages
        .zip(database.chunks(header.page_size.len()))
        .fold(Checksum::EMPTY, |sum, (pgno, page)| sum ^ ltx::page_checksum(pgno, page))
}

#[test]
fn six_transactions_in_order_give_the_stated_database() {
    let mut database = Vec::new();
    for (number, (file, facts)) in transactions().iter().zip(FACTS).enumerate() {
        let (header, pages) = apply(&mut database, file);
        assert_eq!((header.commit.get(), pages, header.wal_offset, header.wal_size_bytes), facts);
        assert!(header.no_checksum);
        assert_eq!(header.wal_salt, (0x5d16_4501, 0xc2a1_f4cb));
        assert_eq!(header.range.max().get(), number as u64 + 1);
        if number == 5 {
            assert_eq!(database_checksum(&database, &header).to_string(), CHECKSUM);
        }
    }
    assert_eq!(database.len(), 28_672);
    assert_eq!(sha256(&database), SHA256);
}

#[test]
fn the_database_the_transactions_give_is_one_sqlite_reads() {
    let mut database = Vec::new();
    transactions().iter().for_each(|file| {
        apply(&mut database, file);
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    std::fs::write(&path, &database).unwrap();
    let db = Connection::open(&path).unwrap();
    let row: (i64, i64) = db
        .query_row("select count(*), sum(length(v)) from t", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    assert_eq!(row, (150, 8627));
    let check: String = db.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
}

#[test]
fn the_snapshot_is_the_first_transaction() {
    let (mut of_first, mut of_snapshot) = (Vec::new(), Vec::new());
    apply(&mut of_first, &sample(0, 1));
    apply(&mut of_snapshot, &sample(9, 1));
    assert!(!of_first.is_empty());
    assert_eq!(of_first, of_snapshot);
}

#[test]
fn compacted_transactions_give_the_same_database() {
    let files = transactions();
    for compression in [Compression::Lz4, Compression::Stored] {
        let merged = ltx::compact(files.iter().map(|file| &file[..]), Vec::new(), compression).unwrap();
        let mut database = Vec::new();
        let (header, pages) = apply(&mut database, &merged.writer);
        assert_eq!(sha256(&database), SHA256);
        assert_eq!((header.range.min().get(), header.range.max().get(), pages), (1, 6, 7));
        assert!(header.no_checksum);
    }
}

#[test]
fn the_tail_of_the_transactions_compacts_on_its_own() {
    let files = transactions();
    let mut database = Vec::new();
    apply(&mut database, &files[0]);
    let merged = ltx::compact(files[1..].iter().map(|file| &file[..]), Vec::new(), Compression::Lz4).unwrap();
    apply(&mut database, &merged.writer);
    assert_eq!(sha256(&database), SHA256);
}

#[test]
fn a_file_written_again_says_the_same() {
    for file in transactions() {
        let mut decoder = Decoder::new(&file[..]).unwrap();
        let mut encoder = Encoder::new(Vec::new(), *decoder.header(), Compression::Lz4).unwrap();
        let mut page = Vec::new();
        while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
            encoder.page(pgno, &page).unwrap();
        }
        let trailer = decoder.finish().unwrap();
        let written = encoder.finish(trailer.post_apply).unwrap().writer;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        assert_eq!(apply(&mut before, &file), apply(&mut after, &written));
        assert_eq!(before, after);
    }
}

#[test]
fn every_truncation_of_every_sample_says_where_the_file_ends() {
    for (number, file) in transactions().iter().enumerate() {
        for cut in 0..file.len() {
            match ltx::verify(&file[..cut]) {
                Err(LtxError::CutShort { offset, .. }) => assert_eq!(offset, cut as u64),
                other => panic!("file {number} cut at {cut}: {other:?}"),
            }
        }
    }
}

#[test]
fn every_changed_byte_of_every_sample_is_noticed_or_harmless() {
    for (number, file) in transactions().iter().enumerate() {
        let mut good = Vec::new();
        let facts = apply(&mut good, file);
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 0x55;
            match ltx::verify(&damaged[..]) {
                Err(error) => assert!(error.is_damage() && error.to_string().contains("byte"), "{error}"),
                Ok(_) => {
                    let mut database = Vec::new();
                    assert_eq!(apply(&mut database, &damaged), facts, "file {number} byte {at}");
                    assert_eq!(database, good, "file {number} byte {at}");
                }
            }
        }
    }
}

#[test]
fn the_first_page_of_a_sample_is_a_database_header() {
    let mut database = Vec::new();
    let (header, _) = apply(&mut database, &sample(0, 1));
    let parsed = skein::sqlite::header::DatabaseHeader::parse(&database).unwrap();
    assert_eq!(parsed.page_size, header.page_size);
    assert_eq!(parsed.trusted_page_count(), Some(PageCount::new(4)));
    assert!(header.commit.contains(Pgno::FIRST));
}
