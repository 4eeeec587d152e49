//! Databases in memory that apply, install and hand out pages as the store does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use bytes::{Buf, BufMut, Bytes};

use crate::db::{DbError, SnapshotHeader};
use crate::ltx::{BlobRef, Body, ChangeSet};
use crate::store::{Change, ChangeKind, NameList, Origin, PrimaryInfo, StoreError};
use crate::stream::{BlobSink, ListedDatabase, PageSource, ReplicaTarget, SnapshotSource};
use crate::types::{Checksum, DbName, LogIndex, NodeId, PageCount, PageSize, Pgno, Pos, Txid, TxidRange};

pub const PAGE: usize = 512;

#[derive(Clone, Default, PartialEq, Debug)]
pub struct FakeDb {
    pub pages: BTreeMap<u32, Bytes>,
    pub txid: u64,
    pub index: LogIndex,
}

#[derive(Default)]
pub struct State {
    pub dbs: BTreeMap<DbName, FakeDb>,
    pub applied: LogIndex,
    pub installed_pages: u64,
    pub installs: u64,
    pub blocked: HashSet<DbName>,
    pub names: NameList,
    pub primary: Option<PrimaryInfo>,
    pub seen: Vec<(LogIndex, std::time::Instant)>,
}

#[derive(Default)]
pub struct FakeStore {
    pub state: Mutex<State>,
    pub unblocked: Condvar,
    pub blobs: Mutex<HashMap<BlobRef, Blob>>,
}

/// A blob: only its size and last 8 bytes where it is large, so that memory shows what the stream takes.
#[derive(Clone, Copy)]
pub struct Blob {
    pub size: u64,
    pub tail: u64,
}

fn checksum(pgno: u32, page: &[u8]) -> Checksum {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    Checksum::new(page.iter().fold(0xcbf2_9ce4 ^ u64::from(pgno), fold))
}

impl FakeDb {
    pub fn pos(&self) -> Pos {
        let sum = self.pages.iter().fold(Checksum::EMPTY, |sum, (pgno, page)| sum ^ checksum(*pgno, page));
        Pos { txid: Txid::new(self.txid), checksum: sum }
    }
}

pub fn name(text: &str) -> DbName {
    DbName::new(text).unwrap()
}

pub fn page(byte: u8) -> Vec<u8> {
    vec![byte; PAGE]
}

impl FakeStore {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn dbs(&self) -> BTreeMap<DbName, FakeDb> {
        self.lock().dbs.clone()
    }

    pub fn block(&self, db: &str) {
        self.lock().blocked.insert(name(db));
    }

    pub fn unblock(&self, db: &str) {
        self.lock().blocked.remove(&name(db));
        self.unblocked.notify_all();
    }

    /// The next change of these databases.
    pub fn change(&self, writes: &[(&str, &[(u32, u8)])], blob: Option<BlobRef>) -> Change {
        let state = self.lock();
        let sets = writes.iter().map(|(db, pages)| {
            let before = state.dbs.get(&name(db)).cloned().unwrap_or_default();
            let mut body = Vec::new();
            for (pgno, byte) in *pages {
                body.put_u32(*pgno);
                body.put_slice(&page(*byte));
            }
            let body = blob.map_or_else(|| Body::Inline(body.into()), Body::Blob);
            let range = TxidRange::single(Txid::new(before.txid + 1).unwrap());
            let page_size = PageSize::new(PAGE as u32).unwrap();
            let (pre, post, commit) = (before.pos().checksum, Checksum::EMPTY, PageCount::new(0));
            ChangeSet { db: name(db), range, pre, post, page_size, commit, body }
        });
        let kind = ChangeKind::Commit(sets.collect());
        Change { origin: Origin { node: NodeId::new(1), run: 1, seq: 1 }, timestamp_ms: 0, kind }
    }

    fn apply_set(&self, state: &mut State, index: LogIndex, set: &ChangeSet) -> Result<(), StoreError> {
        let db = state.dbs.entry(set.db.clone()).or_default();
        if db.index >= index {
            return Ok(());
        }
        if set.range.min().get() != db.txid + 1 || set.pre != db.pos().checksum {
            return Err(StoreError::Invalid(format!(
                "gap in {}: {} after {}",
                set.db,
                set.range.min(),
                db.txid
            )));
        }
        match &set.body {
            Body::Inline(bytes) => {
                let mut bytes = bytes.clone();
                while !bytes.is_empty() {
                    let pgno = bytes.get_u32();
                    db.pages.insert(pgno, bytes.split_to(PAGE));
                }
            }
            Body::Blob(blob) if self.contains_blob(*blob) => {
                db.pages.insert(1, page(blob.digest as u8).into());
            }
            Body::Blob(blob) => return Err(StoreError::Invalid(format!("blob {blob} is missing"))),
        }
        (db.txid, db.index) = (set.range.max().get(), index);
        Ok(())
    }
}

impl ReplicaTarget for FakeStore {
    fn apply(&self, index: LogIndex, change: &Change) -> Result<(), StoreError> {
        let mut state = self.lock();
        while change.change_sets().iter().any(|set| state.blocked.contains(&set.db)) {
            state = self.unblocked.wait(state).unwrap();
        }
        match &change.kind {
            ChangeKind::Commit(sets) => {
                for set in sets {
                    self.apply_set(&mut state, index, set)?;
                }
            }
            ChangeKind::Drop(db) => drop(state.dbs.remove(db)),
            ChangeKind::Create { .. }
            | ChangeKind::SetAttributes { .. }
            | ChangeKind::MakeDirectory { .. }
            | ChangeKind::RemoveDirectory(_)
            | ChangeKind::RenameDirectory { .. } => {}
            ChangeKind::Rename { from, to } => {
                if let Some(mut db) = state.dbs.remove(from) {
                    db.index = index;
                    state.dbs.insert(to.clone(), db);
                }
            }
        }
        state.seen.push((index, std::time::Instant::now()));
        Ok(())
    }

    fn applied(&self, index: LogIndex) {
        let mut state = self.lock();
        assert!(index >= state.applied, "the applied index only grows");
        state.applied = index;
    }

    fn applied_index(&self) -> LogIndex {
        self.lock().applied
    }

    fn durable_index(&self) -> LogIndex {
        self.lock().applied
    }

    fn would_block(&self, db: &DbName) -> bool {
        self.lock().blocked.contains(db)
    }

    fn has_data(&self) -> bool {
        !self.lock().dbs.is_empty()
    }

    fn page_checksums(&self, name: &DbName) -> Result<Vec<Checksum>, StoreError> {
        let state = self.lock();
        Ok(state
            .dbs
            .get(name)
            .map_or(Vec::new(), |db| db.pages.iter().map(|(n, p)| checksum(*n, p)).collect()))
    }

    fn install(
        &self,
        name: &DbName,
        target: SnapshotHeader,
        next_page: &mut dyn FnMut() -> Result<Option<(Pgno, Vec<u8>)>, StoreError>,
    ) -> Result<(), StoreError> {
        let mut pages = Vec::new();
        while let Some((pgno, page)) = next_page()? {
            pages.push((pgno.get(), page.into()));
        }
        let mut state = self.lock();
        state.installs += 1;
        state.installed_pages += pages.len() as u64;
        let mut db = state.dbs.get(name).cloned().unwrap_or_default();
        db.pages.extend(pages);
        db.pages.retain(|pgno, _| *pgno <= target.commit.get());
        (db.txid, db.index) = (target.pos.txid_or_zero(), target.index);
        if db.pos() != target.pos {
            return Err(StoreError::Invalid(format!("snapshot of {name} has another checksum")));
        }
        state.dbs.insert(name.clone(), db);
        Ok(())
    }

    fn retain(&self, keep: &[DbName], _index: LogIndex) -> Result<(), StoreError> {
        self.lock().dbs.retain(|name, _| keep.contains(name));
        Ok(())
    }

    fn install_names(&self, names: NameList, _index: LogIndex) -> Result<(), StoreError> {
        self.lock().names = names;
        Ok(())
    }

    fn set_primary(&self, primary: Option<PrimaryInfo>) {
        self.lock().primary = primary;
    }

    fn contains_blob(&self, blob: BlobRef) -> bool {
        self.blobs.lock().unwrap().contains_key(&blob)
    }

    fn remove_blob(&self, blob: BlobRef) -> io::Result<()> {
        self.blobs.lock().unwrap().remove(&blob);
        Ok(())
    }

    fn create_blob(&self) -> io::Result<Box<dyn BlobSink + '_>> {
        Ok(Box::new(FakeBlob { store: self, size: 0, last: Vec::new() }))
    }
}

struct FakeBlob<'a> {
    store: &'a FakeStore,
    size: u64,
    last: Vec<u8>,
}

impl Write for FakeBlob<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.size += data.len() as u64;
        self.last.extend_from_slice(data);
        self.last.drain(..self.last.len().saturating_sub(8));
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobSink for FakeBlob<'_> {
    fn keep(self: Box<Self>, blob: BlobRef) -> io::Result<()> {
        if self.size != blob.size_bytes || self.last != blob.digest.to_be_bytes() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.store.blobs.lock().unwrap().insert(blob, Blob { size: self.size, tail: blob.digest });
        Ok(())
    }
}

struct FakeView(FakeDb);

impl PageSource for FakeView {
    fn header(&self) -> SnapshotHeader {
        SnapshotHeader {
            pos: self.0.pos(),
            index: self.0.index,
            page_size: PageSize::new(PAGE as u32).unwrap(),
            commit: PageCount::new(self.0.pages.len() as u32),
        }
    }

    fn page_checksum(&mut self, pgno: Pgno) -> Result<Checksum, DbError> {
        Ok(checksum(pgno.get(), &self.0.pages[&pgno.get()]))
    }

    fn read_page(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<(), DbError> {
        page.copy_from_slice(&self.0.pages[&pgno.get()]);
        Ok(())
    }
}

impl SnapshotSource for FakeStore {
    fn list(&self) -> Vec<ListedDatabase> {
        let listed = |(name, db): (&DbName, &FakeDb)| ListedDatabase {
            name: name.clone(),
            pos: db.pos(),
            size_bytes: 0,
        };
        self.lock().dbs.iter().map(listed).collect()
    }

    fn names(&self) -> NameList {
        self.lock().names.clone()
    }

    fn applied_index(&self) -> LogIndex {
        self.lock().applied
    }

    fn snapshot(&self, name: &DbName) -> Result<Box<dyn PageSource>, StoreError> {
        let db = self.lock().dbs.get(name).cloned();
        Ok(Box::new(FakeView(db.ok_or_else(|| StoreError::NotFound(name.to_string()))?)))
    }

    fn open_blob(&self, blob: BlobRef) -> io::Result<Box<dyn Read + Send>> {
        let stored = self.blobs.lock().unwrap().get(&blob).copied().ok_or(io::ErrorKind::NotFound)?;
        let tail: Arc<[u8]> = stored.tail.to_be_bytes().into();
        Ok(Box::new(io::repeat(7).take(stored.size - 8).chain(io::Cursor::new(tail))))
    }
}
