//! Rollback journals written by SQLite, whole and damaged: our playback must restore what SQLite's restores.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::{Connection, OpenFlags};
use skein::sqlite::header::DatabaseHeader;
use skein::sqlite::journal::{self, JournalHeader, RecordCount, ends_transaction, is_header_magic};
use skein::sqlite::journal_playback::Playback;

/// A database and its journal, as a killed process would leave them.
#[derive(Clone)]
struct Left {
    database: Vec<u8>,
    journal: Vec<u8>,
}

/// How the journal comes about.
#[derive(Clone, Copy, Debug)]
struct Setting {
    page_size: u32,
    mode: &'static str,
    synchronous: &'static str,
    /// Whether the disk promises not to tear neighbouring sectors: if not, SQLite writes sectors of 4096.
    powersafe: bool,
}

const PLAIN: Setting = Setting { page_size: 1024, mode: "delete", synchronous: "full", powersafe: true };

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

fn open(path: &Path, setting: Setting) -> Connection {
    let uri = format!("file:{}?psow={}", path.display(), i32::from(setting.powersafe));
    let db = Connection::open_with_flags(uri, OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI).unwrap();
    let pragmas = format!(
        "pragma page_size={}; pragma journal_mode={}; pragma synchronous={}; pragma cache_size=5;",
        setting.page_size, setting.mode, setting.synchronous
    );
    db.execute_batch(&pragmas).unwrap();
    db
}

fn fill(db: &Connection, count: u32) {
    let sql = format!(
        "with n(i) as (select 1 union all select i+1 from n where i < {count})
         insert into t(v) select hex(randomblob({})) from n",
        60
    );
    db.execute_batch(&sql).unwrap();
}

/// A transaction that has changed the database file in several cache spills and is still open.
/// Returns the database as it was before, too.
fn caught_open(setting: Setting) -> (Vec<u8>, Left) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let db = open(&path, setting);
    db.execute_batch("create table t(id integer primary key, v text)").unwrap();
    fill(&db, 300 * setting.page_size / 1024);
    // A longer transaction first: a kept journal then has old records behind the new ones.
    db.execute_batch("update t set v = v || 'x'").unwrap();
    let before = fs::read(&path).unwrap();
    db.execute_batch("begin; update t set v = upper(v) || 'y' where id % 2 = 0").unwrap();
    fill(&db, 100 * setting.page_size / 1024);
    let left =
        Left { database: fs::read(&path).unwrap(), journal: fs::read(beside(&path, "-journal")).unwrap() };
    db.execute_batch("rollback").unwrap();
    (before, left)
}

/// The database after SQLite has found the journal hot.
fn rolled_back_by_sqlite(left: &Left) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    fs::write(&path, &left.database).unwrap();
    fs::write(beside(&path, "-journal"), &left.journal).unwrap();
    let db = Connection::open(&path).unwrap();
    // Fails where the damage leaves no valid database; the playback has happened all the same.
    let _ = db.query_row("select count(*) from sqlite_schema", [], |_| Ok(()));
    drop(db);
    fs::read(&path).unwrap()
}

fn rolled_back_by_us(left: &Left) -> Vec<u8> {
    let page_size = DatabaseHeader::parse(&left.database).unwrap().page_size;
    let mut database = left.database.clone();
    let Some(mut playback) = Playback::open(Cursor::new(&left.journal), page_size).unwrap() else {
        return database;
    };
    database.resize(playback.initial_size().bytes(playback.page_size()) as usize, 0);
    let mut page = Vec::new();
    while let Some(pgno) = playback.next_record(&mut page).unwrap() {
        let at = pgno.offset(playback.page_size()) as usize;
        database[at..at + page.len()].copy_from_slice(&page);
    }
    database
}

fn assert_rolls_back(before: &[u8], left: &Left, what: impl std::fmt::Debug) {
    assert!(before != left.database, "{what:?}: the transaction has not touched the file");
    let ours = rolled_back_by_us(left);
    assert!(ours == before, "{what:?}: not what it was before");
    assert!(ours == rolled_back_by_sqlite(left), "{what:?}: not what SQLite makes of it");
}

#[test]
fn every_mode_and_page_size_rolls_back_to_what_was() {
    for mode in ["delete", "truncate", "persist"] {
        for page_size in [512, 4096, 65536] {
            let setting = Setting { mode, page_size, ..PLAIN };
            let (before, left) = caught_open(setting);
            assert_rolls_back(&before, &left, setting);
        }
    }
}

#[test]
fn cache_spills_make_several_segments() {
    let (before, left) = caught_open(PLAIN);
    let headers = left.journal.chunks(512).filter(|sector| is_header_magic(sector)).count();
    assert!(headers > 2, "{headers} segments");
    assert_rolls_back(&before, &left, PLAIN);
}

#[test]
fn larger_sectors_are_honoured() {
    for page_size in [512, 4096] {
        let setting = Setting { powersafe: false, page_size, ..PLAIN };
        let (before, left) = caught_open(setting);
        assert_eq!(JournalHeader::parse(&left.journal).unwrap().sector_size, 4096);
        assert_rolls_back(&before, &left, setting);
    }
}

#[test]
fn an_unsynced_journal_counts_its_records_by_its_size() {
    let setting = Setting { synchronous: "off", ..PLAIN };
    let (before, left) = caught_open(setting);
    assert_eq!(JournalHeader::parse(&left.journal).unwrap().records, RecordCount::ByFileSize);
    assert_rolls_back(&before, &left, setting);
}

#[test]
fn a_journal_not_yet_synced_rolls_back_nothing() {
    let (_, mut left) = caught_open(PLAIN);
    left.journal[8..12].fill(0);
    let page_size = DatabaseHeader::parse(&left.database).unwrap().page_size;
    let mut first = Playback::open(Cursor::new(&left.journal[..]), page_size).unwrap().unwrap();
    assert_eq!(first.header().records, RecordCount::Synced(0));
    assert!(first.next().is_none());
    assert!(rolled_back_by_us(&left) == rolled_back_by_sqlite(&left));
}

#[test]
fn journals_of_old_writers_without_a_page_size_roll_back() {
    let (before, mut left) = caught_open(PLAIN);
    left.journal[24..28].fill(0);
    assert_rolls_back(&before, &left, "page size 0");
}

#[test]
fn every_truncation_rolls_back_as_sqlite_does() {
    let (_, whole) = caught_open(PLAIN);
    let length = whole.journal.len();
    let cuts = (0..1100).step_by(37).chain((1100..length).step_by(1013)).chain(length - 20..length);
    for cut in cuts {
        let left = Left { journal: whole.journal[..cut].to_vec(), ..whole.clone() };
        assert!(rolled_back_by_us(&left) == rolled_back_by_sqlite(&left), "cut at {cut}");
    }
}

#[test]
fn damage_anywhere_rolls_back_as_sqlite_does() {
    for setting in [PLAIN, Setting { mode: "persist", ..PLAIN }, Setting { synchronous: "off", ..PLAIN }] {
        let (_, whole) = caught_open(setting);
        let mut random = StdRng::seed_from_u64(2);
        for round in 0..150 {
            let mut left = whole.clone();
            let at = if round < 60 { round % 30 } else { random.random_range(28..left.journal.len()) };
            if (16..19).contains(&at) {
                continue; // a size of up to 4 TiB to restore: the same, but slow
            }
            left.journal[at] ^= 1 << random.random_range(0..8);
            let same = rolled_back_by_us(&left) == rolled_back_by_sqlite(&left);
            assert!(same, "{setting:?}: byte {at}");
        }
    }
}

#[test]
fn damaged_page_numbers_roll_back_as_sqlite_does() {
    let (_, whole) = caught_open(PLAIN);
    let record = 1024 + 8;
    let lock_page = (1u32 << 30) / 1024 + 1;
    for number in 0..5 {
        for pgno in [0, 1, lock_page, 100_000] {
            let mut left = whole.clone();
            let at = 512 + number * record;
            left.journal[at..at + 4].copy_from_slice(&u32::to_be_bytes(pgno));
            let same = rolled_back_by_us(&left) == rolled_back_by_sqlite(&left);
            assert!(same, "record {number} of page {pgno}");
        }
    }
}

#[test]
fn an_ended_transaction_leaves_nothing_to_play_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let db = open(&path, Setting { mode: "persist", ..PLAIN });
    db.execute_batch("create table t(id integer primary key, v text)").unwrap();
    fill(&db, 50);
    let journal = fs::read(beside(&path, "-journal")).unwrap();
    assert!(journal.len() > 512);
    assert!(ends_transaction(0, &journal[..28]));
    let page_size = DatabaseHeader::parse(&fs::read(&path).unwrap()).unwrap().page_size;
    assert!(Playback::open(Cursor::new(&journal), page_size).unwrap().is_none());
}

/// Commits over two databases until someone has seen enough, at most 20,000 times.
fn commit_over_both(one: &Path, two: &Path, seen: &AtomicBool) {
    let db = open(one, PLAIN);
    db.execute_batch("create table t(id integer primary key, v text)").unwrap();
    db.execute("attach ? as two", [two.to_str().unwrap()]).unwrap();
    db.execute_batch("create table two.u(v text)").unwrap();
    for _ in 0..20_000 {
        if seen.load(Ordering::Relaxed) {
            break;
        }
        db.execute_batch("begin; insert into t(v) values('a'); insert into two.u values('b'); commit")
            .unwrap();
    }
    seen.store(true, Ordering::Relaxed);
}

#[test]
fn a_transaction_over_two_databases_names_its_super_journal() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = ["one.db", "two.db"].map(|name| dir.path().join(name));
    let (journals, seen) = ([&one, &two].map(|path| beside(path, "-journal")), AtomicBool::new(false));
    // Looks at the journal while the other thread commits, until it is caught with its super-journal.
    let caught = std::thread::scope(|scope| {
        scope.spawn(|| commit_over_both(&one, &two, &seen));
        let mut caught = None;
        while caught.is_none() && !seen.load(Ordering::Relaxed) {
            caught = fs::read(&journals[0])
                .ok()
                .and_then(|journal| journal::super_journal_name(&mut Cursor::new(journal)).unwrap())
                .and_then(|name| Some((fs::read(&name).ok()?, name)));
        }
        seen.store(true, Ordering::Relaxed);
        caught
    });
    let (content, name) = caught.expect("one of thousands of commits is caught between two fsyncs");
    assert!(name.to_str().unwrap().contains("one.db-mj"), "{}", name.display());
    let listed: Vec<_> = journal::journals_of_super_journal(&content).collect();
    assert_eq!(listed, journals);
}
