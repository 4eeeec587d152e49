//! WALs written by SQLite, whole and damaged: our scanner must find what SQLite's own recovery finds.

use std::fs;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::{Connection, config::DbConfig};
use skein::sqlite::header::DatabaseHeader;
use skein::sqlite::wal::{FrameHeader, Salt, WalError, WalHeader, frame_offset};
use skein::sqlite::wal_scanner::{CommittedFrames, WalScanner};
use skein::types::{JournalMode, PageCount, PageSize};

/// A database and its WAL, as a killed process would leave them.
struct Left {
    database: Vec<u8>,
    wal: Vec<u8>,
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

/// Some transactions of different kinds, none of them checkpointed at the end.
fn written_by_sqlite(page_size: u32, restarts: u32) -> Left {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let db = Connection::open(&path).unwrap();
    let setup = format!(
        "pragma page_size={page_size}; pragma journal_mode=wal; pragma wal_autocheckpoint=0;
         create table t(id integer primary key, v text);"
    );
    db.execute_batch(&setup).unwrap();
    for _ in 0..restarts {
        insert(&db, 60);
        db.execute_batch("pragma wal_checkpoint(restart)").unwrap();
    }
    for count in [1, 30, 3] {
        insert(&db, count);
    }
    db.execute_batch("delete from t where id % 3 = 0; vacuum; pragma cache_size=5; begin").unwrap();
    insert(&db, 200 * page_size.div_ceil(1024));
    // The transaction is open and the cache has spilled: frames without a commit are in the WAL.
    let left = Left { database: fs::read(&path).unwrap(), wal: fs::read(beside(&path, "-wal")).unwrap() };
    db.execute_batch("rollback").unwrap();
    left
}

fn insert(db: &Connection, count: u32) {
    let sql = format!(
        "with n(i) as (select 1 union all select i+1 from n where i < {count})
         insert into t(v) select hex(randomblob(40)) from n"
    );
    db.execute_batch(&sql).unwrap();
}

/// What SQLite makes of the two files: number of frames recovered, and the database after a checkpoint.
fn recovered_by_sqlite(left: &Left) -> rusqlite::Result<(u32, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    fs::write(&path, &left.database).unwrap();
    fs::write(beside(&path, "-wal"), &left.wal).unwrap();
    let db = Connection::open(&path)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    db.query_row("select count(*) from sqlite_schema", [], |_| Ok(()))?;
    let frames: i64 = db.query_row("pragma wal_checkpoint(full)", [], |row| row.get(1))?;
    drop(db);
    Ok((u32::try_from(frames).unwrap(), fs::read(&path).unwrap()))
}

/// What we make of them.
fn recovered_by_us(left: &Left) -> (u32, Vec<u8>) {
    let mut database = left.database.clone();
    let found = match CommittedFrames::scan(&left.wal[..]) {
        Ok(found) => found,
        Err(WalError::Version(_) | WalError::Io { .. }) => panic!("not part of this test"),
        Err(_) => return (0, database),
    };
    let page_size = found.header.page_size;
    for (number, frame) in (1..).zip(&found.frames) {
        let from = frame_offset(number, page_size) as usize + 24;
        let at = frame.pgno.offset(page_size) as usize;
        if database.len() < at + page_size.len() {
            database.resize(at + page_size.len(), 0);
        }
        database[at..at + page_size.len()].copy_from_slice(&left.wal[from..from + page_size.len()]);
    }
    if let Some(commit) = found.commit() {
        database.truncate(commit.bytes(page_size) as usize);
    }
    (found.last_frame(), database)
}

#[test]
fn every_page_size_is_recovered_as_sqlite_does() {
    for page_size in [512, 1024, 4096, 65536] {
        for restarts in [0, 2] {
            let left = written_by_sqlite(page_size, restarts);
            let ours = recovered_by_us(&left);
            assert!(ours.0 > 5, "{page_size}: {} frames", ours.0);
            let frames = (left.wal.len() - 32) / (24 + page_size as usize);
            assert!((ours.0 as usize) < frames, "{page_size}: frames without a commit follow");
            assert_eq!(recovered_by_sqlite(&left).unwrap(), ours, "{page_size}, {restarts} restarts");
        }
    }
}

#[test]
fn every_truncation_is_recovered_as_sqlite_does() {
    let whole = written_by_sqlite(512, 1);
    let frame = 512 + 24;
    for number in 0..(whole.wal.len() - 32) / frame {
        for cut in [0, 1, 24, frame - 1] {
            let wal = whole.wal[..32 + number * frame + cut].to_vec();
            let left = Left { database: whole.database.clone(), wal };
            assert_eq!(recovered_by_sqlite(&left).unwrap(), recovered_by_us(&left), "{number} + {cut}");
        }
    }
}

#[test]
fn damage_anywhere_is_recovered_as_sqlite_does() {
    let whole = written_by_sqlite(1024, 1);
    let mut random = StdRng::seed_from_u64(1);
    for round in 0..300 {
        let mut wal = whole.wal.clone();
        let at = if round < 100 { round % 64 } else { random.random_range(0..wal.len()) };
        wal[at] ^= 1 << random.random_range(0..8);
        let left = Left { database: whole.database.clone(), wal };
        assert_eq!(recovered_by_sqlite(&left).unwrap(), recovered_by_us(&left), "byte {at}");
    }
}

#[test]
fn a_wal_of_a_later_version_is_refused_as_sqlite_does() {
    let mut left = written_by_sqlite(4096, 0);
    left.wal[4..8].copy_from_slice(&3_007_001u32.to_be_bytes());
    let sums = skein::sqlite::wal::checksum(
        WalHeader::new(PageSize::DEFAULT, 0, Salt(0, 0)).big_endian_checksum,
        Default::default(),
        &left.wal[..24],
    );
    left.wal[24..28].copy_from_slice(&sums.0.to_be_bytes());
    left.wal[28..32].copy_from_slice(&sums.1.to_be_bytes());
    assert!(matches!(CommittedFrames::scan(&left.wal[..]), Err(WalError::Version(3_007_001))));
    assert!(recovered_by_sqlite(&left).is_err());
}

#[test]
fn sqlite_recovers_the_wal_we_write() {
    let left = written_by_sqlite(4096, 0);
    let (frames, database) = recovered_by_us(&left);
    let mut scanner = WalScanner::new(&left.wal[..]).unwrap();
    let header = WalHeader::new(scanner.header().page_size, 9, Salt(1, 2));
    let mut wal = header.encode().to_vec();
    let mut chain = header.checksum;
    let mut page = Vec::new();
    for _ in 0..frames {
        let theirs = scanner.next_frame(&mut page).unwrap().unwrap();
        let big_endian = header.big_endian_checksum;
        let ours = FrameHeader::seal(theirs.pgno, theirs.commit, header.salt, big_endian, chain, &page);
        chain = ours.checksum;
        wal.extend_from_slice(&ours.encode());
        wal.extend_from_slice(&page);
    }
    let rewritten = Left { database: left.database, wal };
    assert_eq!(recovered_by_sqlite(&rewritten).unwrap(), (frames, database));
}

#[test]
fn a_big_endian_wal_is_recovered_as_sqlite_does() {
    let left = written_by_sqlite(4096, 0);
    let (frames, database) = recovered_by_us(&left);
    let mut scanner = WalScanner::new(&left.wal[..]).unwrap();
    let mut header = WalHeader { big_endian_checksum: true, ..*scanner.header() };
    let mut wal = header.encode().to_vec();
    header = WalHeader::parse(&wal).unwrap();
    let mut chain = header.checksum;
    let mut page = Vec::new();
    for _ in 0..frames {
        let theirs = scanner.next_frame(&mut page).unwrap().unwrap();
        let ours = FrameHeader::seal(theirs.pgno, theirs.commit, header.salt, true, chain, &page);
        chain = ours.checksum;
        wal.extend_from_slice(&ours.encode());
        wal.extend_from_slice(&page);
    }
    let big = Left { database: left.database, wal };
    assert_eq!(recovered_by_us(&big), (frames, database.clone()));
    assert_eq!(recovered_by_sqlite(&big).unwrap(), (frames, database));
}

#[test]
fn the_header_of_a_wal_database_says_so() {
    let left = written_by_sqlite(512, 1);
    let (_, database) = recovered_by_us(&left);
    let header = DatabaseHeader::parse(&database).unwrap();
    assert_eq!(header.mode, JournalMode::Wal);
    let pages = PageCount::new((database.len() / 512) as u32);
    assert_eq!(header.trusted_page_count(), Some(pages));
}
