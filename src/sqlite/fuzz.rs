//! Targets for [`crate::fuzz`].

use std::io::{Cursor, Write};

use super::header::DatabaseHeader;
use super::journal::{
    JournalHeader, ends_transaction, is_header_magic, journals_of_super_journal, record_checksum,
    super_journal_name,
};
use super::journal_playback::Playback;
use super::wal::{FrameHeader, WalHeader};
use super::wal_index::{HeaderRead, WalIndex};
use super::wal_scanner::{CommittedFrames, WalScanner};
use crate::types::{PageSize, Pgno};

const PAGE: usize = 512;
/// A header block and the hash table of the frames in it.
const BLOCK: usize = 32 * 1024;

fn page_size() -> PageSize {
    PageSize::new(PAGE as u32).expect("a valid size")
}

/// The header of a database.
pub fn header(data: &[u8]) {
    if let Ok(header) = DatabaseHeader::parse(data) {
        let _ = header.trusted_page_count();
    }
}

/// Valid headers.
pub fn headers() -> Vec<Vec<u8>> {
    let database = |mode: &str| {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.db");
        let db = rusqlite::Connection::open(&path).expect("a database");
        db.execute_batch(&format!("PRAGMA journal_mode={mode}; CREATE TABLE t(v)")).expect("a table");
        drop(db);
        std::fs::read(&path).expect("its file")[..100].to_vec()
    };
    vec![database("wal"), database("delete")]
}

/// A write-ahead log.
pub fn wal(data: &[u8]) {
    let _ = CommittedFrames::scan(data).map(|found| (found.last_frame(), found.commit(), found.chain()));
    let Ok(mut scanner) = WalScanner::new(data) else { return };
    let mut page = Vec::new();
    while let Ok(Some(frame)) = scanner.next_frame(&mut page) {
        let _ = frame.ends_commit();
    }
}

/// Valid logs.
pub fn wals() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.db");
    let db = rusqlite::Connection::open(&path).expect("a database");
    let statements = "PRAGMA page_size=512; PRAGMA journal_mode=WAL; CREATE TABLE t(v); INSERT INTO t VALUES(randomblob(2000))";
    db.execute_batch(statements).expect("a log");
    let real = std::fs::read(dir.path().join("a.db-wal")).expect("its log");
    let header = WalHeader::new(page_size(), 0, super::wal::Salt(1, 2));
    vec![real, header.encode().to_vec()]
}

/// A rollback journal, and what else stands in one or beside it.
pub fn journal(data: &[u8]) {
    let _ = (is_header_magic(data), ends_transaction(0, data), JournalHeader::parse(data));
    let _ = super_journal_name(&mut Cursor::new(data));
    let _ = journals_of_super_journal(data).count();
    if let Some(bytes) = data.first_chunk() {
        let _ = FrameHeader::parse(bytes);
    }
    let Ok(Some(mut playback)) = Playback::open(Cursor::new(data), page_size()) else { return };
    let mut page = Vec::new();
    while let Ok(Some(pgno)) = playback.next_record(&mut page) {
        assert!(playback.initial_size().contains(pgno) && page.len() == playback.page_size().len());
    }
}

/// Valid journals.
pub fn journals() -> Vec<Vec<u8>> {
    let (nonce, sector) = (77u32, 512u32);
    let mut plain = vec![0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
    for field in [2, nonce, 10, sector, PAGE as u32] {
        plain.extend_from_slice(&field.to_be_bytes());
    }
    plain.resize(sector as usize, 0);
    for pgno in 1..=2u32 {
        let page = [pgno as u8; PAGE];
        plain.extend_from_slice(&pgno.to_be_bytes());
        plain.extend_from_slice(&page);
        plain.extend_from_slice(&record_checksum(nonce, &page).to_be_bytes());
    }
    let name = b"/srv/app.db-mj0123459AB".as_slice();
    let sum: u32 = name.iter().map(|byte| u32::from(*byte)).sum();
    let mut with_super = plain.clone();
    with_super.extend_from_slice(&3u32.to_be_bytes());
    with_super.extend_from_slice(name);
    with_super.extend_from_slice(&(name.len() as u32).to_be_bytes());
    with_super.extend_from_slice(&sum.to_be_bytes());
    with_super.extend_from_slice(&plain[..8]);
    vec![plain, with_super, b"/srv/a.db-journal\0/srv/b.db-journal\0".to_vec()]
}

/// A wal-index that another process may have written anything into.
pub fn wal_index(data: &[u8]) {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&data[..data.len().min(4 * BLOCK)]).expect("room for it");
    let backing = file.try_clone().expect("a descriptor");
    let mut index = WalIndex::map(file, backing, false).expect("a file can be mapped");
    let last = match index.header() {
        HeaderRead::Valid(header) => header.max_frame,
        _ => 0,
    };
    // A frame far behind would make the file as long as that: callers ask for frames of a log that is there.
    for frame in (1..=last.min(9000)).step_by(97) {
        let _ = index.page_of(frame);
    }
    let _ = (index.backfilled(), (0..5).map(|slot| index.read_mark(slot)).max());
    let _ = index.enter(last.min(9000).saturating_add(1), Pgno::FIRST, last.min(9000));
}

/// Valid wal-indexes.
pub fn wal_indexes() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.db");
    let db = rusqlite::Connection::open(&path).expect("a database");
    let statements =
        "PRAGMA page_size=512; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(v);
        INSERT INTO t VALUES(randomblob(2200000))";
    db.execute_batch(statements).expect("a log of two blocks");
    vec![std::fs::read(dir.path().join("a.db-shm")).expect("its wal-index")]
}
