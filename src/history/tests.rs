//! The keeper against a model of a database: every point that it says it has is what the model was.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::HistoryOptions;
use super::generation::Generation;
use super::keeper::Keeper;
use super::point::Point;
use crate::io::blobs::BlobStore;
use crate::ltx::{Body, ChangeSet, Compression, Encoder, Header, page_checksum};
use crate::store::{Change, ChangeKind, CommittedLog, LogReadError, Origin};
use crate::types::{
    Checksum, DbName, LogIndex, NodeId, PageCount, PageSize, Pgno, PointInTime, Pos, Timestamp, Txid,
    TxidRange,
};

const PAGE: usize = 512;

#[derive(Default)]
struct Log(Mutex<Vec<Bytes>>);

impl Log {
    fn push(&self, kind: ChangeKind, ms: i64) {
        let origin = Origin { node: NodeId::new(1), run: 1, seq: 0 };
        self.0.lock().unwrap().push(Change { origin, timestamp_ms: ms, kind }.encode());
    }
}

impl CommittedLog for Log {
    fn first_index(&self) -> LogIndex {
        LogIndex::new(1)
    }

    fn applied(&self) -> watch::Receiver<LogIndex> {
        watch::channel(LogIndex::new(self.0.lock().unwrap().len() as u64)).1
    }

    fn read(&self, from: LogIndex, _: usize) -> Result<Vec<(LogIndex, Bytes)>, LogReadError> {
        let entries = self.0.lock().unwrap();
        let numbered = (1..).map(LogIndex::new).zip(entries.iter().cloned());
        Ok(numbered.skip(from.get() as usize - 1).take(10).collect())
    }
}

/// A database, and what it was after each transaction.
struct Model {
    pages: Vec<[u8; PAGE]>,
    pos: Pos,
    past: Vec<(Txid, i64, Vec<[u8; PAGE]>)>,
    seed: u64,
}

impl Model {
    fn new(seed: u64) -> Self {
        Self { pages: Vec::new(), pos: Pos::ZERO, past: Vec::new(), seed }
    }

    fn draw(&mut self, below: u64) -> u64 {
        // Source: G. Marsaglia, "Xorshift RNGs".
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % below
    }

    /// One transaction: a few pages change, and the size may.
    fn commit(&mut self, db: &DbName, ms: i64) -> ChangeSet {
        let before = self.pages.len();
        let size = match self.draw(4) {
            0 => 1 + self.draw(40) as usize,
            _ => before.max(3),
        };
        self.pages.resize(size, [0; PAGE]);
        let txid = self.pos.next_txid();
        let mut changed: Vec<usize> =
            (0..1 + self.draw(5)).map(|_| self.draw(size as u64) as usize).collect();
        // A snapshot has every page; SQLite writes the last page of what it grows.
        changed.extend(if before == 0 { 0..size } else { size.saturating_sub(1)..size });
        changed.sort_unstable();
        changed.dedup();
        for page in &changed {
            self.pages[*page] = [self.draw(256) as u8; PAGE];
        }
        let post = self.checksum();
        let page_size = PageSize::new(PAGE as u32).unwrap();
        let (range, commit) = (TxidRange::single(txid), PageCount::new(size as u32));
        let pre = (txid != Txid::FIRST).then_some(self.pos.checksum);
        let header = Header { timestamp_ms: ms, ..Header::new(page_size, commit, range, pre) };
        let mut encoder = Encoder::new(Vec::new(), header, Compression::Stored).unwrap();
        for page in &changed {
            encoder.page(Pgno::new(*page as u32 + 1).unwrap(), &self.pages[*page]).unwrap();
        }
        let body = Body::Inline(encoder.finish(Some(post)).unwrap().writer.into());
        let set = ChangeSet { db: db.clone(), range, pre: self.pos.checksum, post, page_size, commit, body };
        self.pos = Pos::new(txid, post);
        self.past.push((txid, ms, self.pages.clone()));
        set
    }

    fn checksum(&self) -> Checksum {
        let pages = self.pages.iter().zip(1..);
        pages.fold(Checksum::EMPTY, |sum, (page, pgno)| sum ^ page_checksum(Pgno::new(pgno).unwrap(), page))
    }
}

fn keeper(root: &Path, log: &Arc<Log>, bytes_max: u64) -> Keeper {
    let options = HistoryOptions { keep: Duration::from_secs(3600), bytes_max, disk_reserve_bytes: 0 };
    let blobs = Arc::new(BlobStore::open_unsynced(root.join("blobs")).unwrap());
    let mut keeper = Keeper::new(root.join("history"), options, log.clone(), blobs);
    keeper.catch_up().unwrap();
    keeper
}

fn open(keeper: &Keeper, db: &DbName, at: PointInTime) -> Result<Point, super::HistoryError> {
    let found = keeper.find(db, at, Timestamp::from_ms(i64::MAX))?;
    Point::open(found.parts(), found.at)
}

fn pages_of(point: &Point) -> Vec<[u8; PAGE]> {
    let mut pages = Vec::new();
    point
        .for_each_page(|_, page| {
            pages.push(page.try_into().unwrap());
            Ok(())
        })
        .unwrap();
    pages
}

/// Compares all points with the model; returns how many there are.
fn compare(keeper: &Keeper, db: &DbName, model: &Model) -> usize {
    let mut found = 0;
    for (txid, ms, pages) in &model.past {
        let Ok(point) = open(keeper, db, PointInTime::Txid(*txid)) else { continue };
        assert!(pages_of(&point) == *pages, "after {txid}");
        let at = open(keeper, db, PointInTime::Time(Timestamp::from_ms(*ms))).unwrap();
        assert_eq!(at.header().pos.txid, Some(*txid), "at its own time");
        found += 1;
    }
    assert!(pages_of(&open(keeper, db, PointInTime::Txid(model.pos.txid.unwrap())).unwrap()) == model.pages);
    found
}

#[test]
fn every_point_is_what_the_database_was_whatever_is_merged_folded_and_read_again() {
    for seed in 1..=12 {
        let dir = tempfile::tempdir().unwrap();
        let (log, db, mut model) =
            (Arc::new(Log::default()), DbName::new("a.db").unwrap(), Model::new(seed * 7919));
        let mut kept = keeper(dir.path(), &log, u64::MAX);
        let mut ms = 1_000_000;
        for _ in 0..60 {
            ms += 1 + model.draw(9_000) as i64;
            let set = model.commit(&db, ms);
            log.push(ChangeKind::Commit(vec![set]), ms);
            kept.catch_up().unwrap();
            match model.draw(12) {
                0 => {
                    kept.store_cursor().unwrap();
                    kept = keeper(dir.path(), &log, u64::MAX);
                }
                1 => kept = keeper(dir.path(), &log, u64::MAX),
                2 => kept.current(&db).unwrap().close().unwrap(),
                _ => {}
            }
        }
        assert_eq!(compare(&kept, &db, &model), model.past.len(), "seed {seed}");
        // An hour after the middle all before it is in the base.
        let (_, middle, _) = model.past[30];
        kept.tidy(Timestamp::from_ms(middle + 3_600_000));
        let left = compare(&kept, &db, &model);
        assert!((30..model.past.len()).contains(&left), "seed {seed}: {left}");
        let again = keeper(dir.path(), &log, u64::MAX);
        assert_eq!(compare(&again, &db, &model), left, "seed {seed}: read again");
    }
}

#[test]
fn a_fold_that_a_crash_breaks_off_anywhere_is_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let (log, db, mut model) = (Arc::new(Log::default()), DbName::new("a.db").unwrap(), Model::new(3));
    let mut kept = keeper(dir.path(), &log, u64::MAX);
    for ms in [10_000, 20_000, 60_000, 70_000] {
        let set = model.commit(&db, ms);
        log.push(ChangeKind::Commit(vec![set]), ms);
        kept.catch_up().unwrap();
    }
    let generation = kept.current(&db).unwrap();
    assert_eq!(generation.segments.len(), 2, "half a minute ends a segment");
    // What is done first, and half of what is done next.
    generation.meta.first = generation.segments[0].range.max().get();
    generation.meta.write(&generation.dir).unwrap();
    std::fs::write(generation.dir.join("base"), [7; PAGE * 2]).unwrap();
    let kept = keeper(dir.path(), &log, u64::MAX);
    assert_eq!(compare(&kept, &db, &model), 3, "the first transaction is in the base");
}

#[test]
fn what_takes_too_much_loses_its_oldest_points_and_what_is_read_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (log, db, mut model) = (Arc::new(Log::default()), DbName::new("a.db").unwrap(), Model::new(5));
    let mut kept = keeper(dir.path(), &log, 40_000);
    let mut ms = 0;
    for _ in 0..80 {
        ms += 10_000;
        let set = model.commit(&db, ms);
        log.push(ChangeKind::Commit(vec![set]), ms);
    }
    kept.catch_up().unwrap();
    assert!(kept.bytes() > 40_000);
    let oldest = open(&kept, &db, PointInTime::Txid(Txid::FIRST)).unwrap();
    kept.tidy(Timestamp::from_ms(ms));
    assert!(pages_of(&oldest) == model.past[0].2, "somebody reads it");
    drop(oldest);
    kept.tidy(Timestamp::from_ms(ms));
    assert!(kept.bytes() <= 40_000, "{}", kept.bytes());
    assert!(open(&kept, &db, PointInTime::Txid(Txid::FIRST)).is_err());
    let left = compare(&kept, &db, &model);
    assert!((1..80).contains(&left), "{left}");
}

#[test]
fn a_database_that_is_dropped_and_made_again_has_both_pasts() {
    let dir = tempfile::tempdir().unwrap();
    let (log, db) = (Arc::new(Log::default()), DbName::new("a.db").unwrap());
    let (mut first, mut second) = (Model::new(1), Model::new(2));
    let set = first.commit(&db, 100);
    log.push(ChangeKind::Commit(vec![set]), 100);
    log.push(ChangeKind::Drop(db.clone()), 200);
    for ms in [300, 400] {
        let set = second.commit(&db, ms);
        log.push(ChangeKind::Commit(vec![set]), ms);
    }
    let kept = keeper(dir.path(), &log, u64::MAX);
    assert_eq!(compare(&kept, &db, &second), 2);
    let at = |ms| open(&kept, &db, PointInTime::Time(Timestamp::from_ms(ms)));
    assert!(pages_of(&at(150).unwrap()) == first.pages);
    assert!(at(250).err().unwrap().to_string().contains("dropped"));
    assert!(at(50).err().unwrap().to_string().contains("goes from"));
    let listed = kept.list(&db, 100).unwrap();
    assert_eq!((listed.transactions.len(), listed.gaps.len(), listed.more), (3, 1, false));
    assert_eq!(listed.gaps[0].from, Timestamp::from_ms(200));
    assert!(kept.list(&db, 2).unwrap().more);
    // Under another name it is the same.
    let to = DbName::new("sub/b.db").unwrap();
    log.push(ChangeKind::Rename { from: db.clone(), to: to.clone() }, 500);
    let kept = keeper(dir.path(), &log, u64::MAX);
    assert_eq!(compare(&kept, &to, &second), 2);
    assert!(kept.list(&db, 1).is_err() && !dir.path().join("history/a.db").exists());
}

#[test]
fn a_change_set_that_does_not_follow_ends_the_chain_and_asks_for_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (log, db, mut model) = (Arc::new(Log::default()), DbName::new("a.db").unwrap(), Model::new(9));
    let mut kept = keeper(dir.path(), &log, u64::MAX);
    for (ms, seen) in [(100, true), (200, true), (300, false), (400, true)] {
        let set = model.commit(&db, ms);
        if seen {
            log.push(ChangeKind::Commit(vec![set]), ms);
        }
    }
    kept.catch_up().unwrap();
    assert!(kept.needs_base.contains(&db) && kept.current(&db).is_none());
    let known = |txid| open(&kept, &db, PointInTime::Txid(Txid::new(txid).unwrap())).is_ok();
    assert!(known(1) && known(2) && !known(3) && !known(4));
    let gap = &kept.list(&db, 10).unwrap().gaps[0];
    assert!(gap.why.contains("not seen") && gap.to.is_none(), "{gap:?}");
}

#[test]
fn a_torn_end_is_cut_off_and_the_log_brings_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let (log, db, mut model) = (Arc::new(Log::default()), DbName::new("a.db").unwrap(), Model::new(4));
    let mut kept = keeper(dir.path(), &log, u64::MAX);
    for ms in [100, 200, 300] {
        let set = model.commit(&db, ms);
        log.push(ChangeKind::Commit(vec![set]), ms);
    }
    kept.catch_up().unwrap();
    let generation: &mut Generation = kept.current(&db).unwrap();
    let path = generation.segments[0].single_path(&generation.dir);
    let whole = std::fs::read(&path).unwrap();
    for cut in [1, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        // No note of how far the log was: as after a power cut.
        let kept = keeper(dir.path(), &log, u64::MAX);
        assert_eq!(compare(&kept, &db, &model), 3, "cut at {cut}");
    }
}
