//! What the log says of each database: where it stands after the last entry that concerns it.
//!
//! Kept apart from the databases, so that they can be held against it: one that lost an entry, whose files are gone, or
//! that stands where no entry brought it. Told of each committed entry before the databases are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use super::{ChangeKind, StoreError};
use crate::io::durable;
use crate::types::{DbName, LogIndex, Pos, Txid};

/// Where a database stands by the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LogPosition {
    /// The entry that brought it there.
    pub index: LogIndex,
    /// Its position.
    pub pos: Pos,
}

/// What the log says of all databases of a voter.
///
/// File `positions`, text: the line `skein-positions 1`, then a line `INDEX TXID/CHECKSUM NAME` for each database. Entries
/// may be told again after a start: older ones change nothing, so the file may be of any time since.
#[derive(Debug)]
pub(super) struct LogPositions {
    path: PathBuf,
    table: Mutex<Table>,
}

#[derive(Default, Debug)]
struct Table {
    known: BTreeMap<DbName, LogPosition>,
    /// The file lacks something.
    dirty: bool,
}

const MAGIC: &str = "skein-positions 1";

impl LogPositions {
    /// Reads the file; `None` where there is none, in a data directory that is new or of a version without it.
    ///
    /// # Errors
    /// Where it cannot be read, or is damaged.
    pub fn open(path: PathBuf) -> Result<Option<Self>, StoreError> {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(StoreError::Io { what: format!("reading {}", path.display()), source });
            }
        };
        let known = parse(&text).ok_or_else(|| {
            let path = path.display();
            StoreError::Fatal(format!(
                "{path} is damaged or of a newer version; restore it, or empty the data directory and join again"
            ))
        })?;
        Ok(Some(Self { path, table: Mutex::new(Table { known, dirty: false }) }))
    }

    /// Begins with what the databases themselves say.
    pub fn of(path: PathBuf, known: BTreeMap<DbName, LogPosition>) -> Self {
        Self { path, table: Mutex::new(Table { known, dirty: true }) }
    }

    /// Never held for longer than a look: Raft's thread takes it, too.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Where a database stands by the log; `None` where it has no transaction there.
    pub fn get(&self, name: &DbName) -> Option<LogPosition> {
        self.lock().known.get(name).copied()
    }

    /// All databases that have a transaction by the log.
    pub fn all(&self) -> Vec<(DbName, LogPosition)> {
        self.lock().known.iter().map(|(name, at)| (name.clone(), *at)).collect()
    }

    /// Entry `index` is committed.
    pub fn note(&self, index: LogIndex, kind: &ChangeKind) {
        let mut table = self.lock();
        match kind {
            ChangeKind::Commit(sets) => {
                for set in sets {
                    let pos = Pos::new(set.range.max(), set.post);
                    // What stands behind the end of its database changes nothing.
                    let begins = set.range.min() == Txid::FIRST;
                    if begins || table.known.contains_key(&set.db) {
                        table.set(&set.db, LogPosition { index, pos });
                    }
                }
            }
            ChangeKind::Drop(name) => drop(table.take(name, index)),
            ChangeKind::Rename { from, to } => table.rename(from, to, index),
            ChangeKind::RenameDirectory { from, to, databases } => {
                for old in databases {
                    if let Ok(new) = ChangeKind::name_below(from, to, old) {
                        table.rename(old, &new, index);
                    }
                }
            }
            ChangeKind::Create { .. }
            | ChangeKind::SetAttributes { .. }
            | ChangeKind::MakeDirectory { .. }
            | ChangeKind::RemoveDirectory(_) => {}
        }
    }

    /// A database was fetched from a node whose copy stands at entry `index`.
    pub fn fetched(&self, name: &DbName, at: LogPosition) {
        self.lock().set(name, at);
    }

    /// All databases but these had ended by entry `index`.
    pub fn retain(&self, keep: &[DbName], index: LogIndex) {
        let mut table = self.lock();
        table.known.retain(|name, at| at.index >= index || keep.contains(name));
        table.dirty = true;
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn make_durable(&self) -> Result<(), StoreError> {
        let text = {
            let mut table = self.lock();
            if !std::mem::take(&mut table.dirty) {
                return Ok(());
            }
            text_of(&table.known)
        };
        durable::write_atomic(&self.path, text.as_bytes()).map_err(|source| {
            self.lock().dirty = true;
            StoreError::Io { what: format!("writing {}", self.path.display()), source }
        })
    }
}

impl Table {
    /// Sets a position, unless the one there is newer.
    fn set(&mut self, name: &DbName, at: LogPosition) {
        if self.known.get(name).is_none_or(|known| known.index <= at.index) {
            self.known.insert(name.clone(), at);
            self.dirty = true;
        }
    }

    /// Removes a position that is older than entry `index`.
    fn take(&mut self, name: &DbName, index: LogIndex) -> Option<LogPosition> {
        let older = self.known.get(name).is_some_and(|known| known.index < index);
        self.dirty |= older;
        if older { self.known.remove(name) } else { None }
    }

    fn rename(&mut self, from: &DbName, to: &DbName, index: LogIndex) {
        let moved = self.take(from, index);
        // Whatever had the name is replaced, also by a database without a transaction.
        self.take(to, index);
        if let Some(LogPosition { pos, .. }) = moved {
            self.set(to, LogPosition { index, pos });
        }
    }
}

pub(super) fn text_of(known: &BTreeMap<DbName, LogPosition>) -> String {
    let mut text = format!("{MAGIC}\n");
    known.iter().for_each(|(name, LogPosition { index, pos })| {
        text.push_str(&format!("{index} {pos} {name}\n"));
    });
    text
}

pub(super) fn parse(text: &str) -> Option<BTreeMap<DbName, LogPosition>> {
    let mut lines = text.lines();
    (lines.next()? == MAGIC).then_some(())?;
    lines
        .map(|line| {
            let mut fields = line.splitn(3, ' ');
            let index = LogIndex::new(fields.next()?.parse().ok()?);
            let pos = fields.next()?.parse().ok()?;
            Some((DbName::new(fields.next()?).ok()?, LogPosition { index, pos }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::ltx::{Body, ChangeSet};
    use crate::types::{Checksum, PageCount, PageSize, TxidRange};

    fn name(text: &str) -> DbName {
        DbName::new(text).unwrap()
    }

    fn at(index: u64, txid: u64) -> LogPosition {
        LogPosition { index: LogIndex::new(index), pos: pos(txid) }
    }

    fn pos(txid: u64) -> Pos {
        Pos::new(Txid::new(txid).unwrap(), Checksum::EMPTY)
    }

    fn commit(db: &str, txid: u64) -> ChangeKind {
        let txid = Txid::new(txid).unwrap();
        ChangeKind::Commit(vec![ChangeSet {
            db: name(db),
            range: TxidRange::single(txid),
            pre: Checksum::EMPTY,
            post: Checksum::EMPTY,
            page_size: PageSize::DEFAULT,
            commit: PageCount::new(1),
            body: Body::Inline(Bytes::new()),
        }])
    }

    /// A log in which names are given up and taken again.
    fn log() -> Vec<ChangeKind> {
        let rename = |from, to| ChangeKind::Rename { from: name(from), to: name(to) };
        vec![
            commit("a", 1),
            commit("a", 2),
            rename("a", "b"),
            commit("a", 1),
            ChangeKind::Drop(name("b")),
            commit("b", 1),
            rename("b", "d/b"),
            commit("gone", 1),
            ChangeKind::Drop(name("gone")),
            // Stood in the log behind its database's end.
            commit("gone", 2),
            ChangeKind::RenameDirectory { from: name("d"), to: name("e"), databases: vec![name("d/b")] },
            commit("e/b", 2),
        ]
    }

    fn noted(positions: &LogPositions, entries: std::ops::Range<usize>) {
        for (number, kind) in log().iter().enumerate().take(entries.end).skip(entries.start) {
            positions.note(LogIndex::new(number as u64 + 1), kind);
        }
    }

    #[test]
    fn a_log_that_is_told_again_from_anywhere_gives_the_same_positions() {
        let expected = vec![(name("a"), at(4, 1)), (name("e/b"), at(12, 2))];
        let length = log().len();
        for written in 0..=length {
            for again in 0..=written {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("positions");
                let before = LogPositions::of(path.clone(), BTreeMap::new());
                noted(&before, 0..written);
                before.make_durable().unwrap();
                let after = LogPositions::open(path).unwrap().unwrap();
                assert_eq!(after.all(), before.all());
                noted(&after, again..length);
                assert_eq!(after.all(), expected, "written after {written}, told again from {again}");
            }
        }
    }

    #[test]
    fn a_copy_that_is_older_than_the_log_changes_nothing() {
        let positions = LogPositions::of(PathBuf::new(), BTreeMap::from([(name("a"), at(5, 3))]));
        positions.fetched(&name("a"), at(4, 2));
        positions.fetched(&name("b"), at(4, 2));
        positions.retain(&[], LogIndex::new(5));
        assert_eq!(positions.all(), [(name("a"), at(5, 3))]);
        positions.fetched(&name("a"), at(9, 7));
        assert_eq!(positions.get(&name("a")), Some(at(9, 7)));
    }

    #[test]
    fn the_file_looks_as_it_is_described_and_a_damaged_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("positions");
        LogPositions::of(path.clone(), BTreeMap::from([(name("a b"), at(5, 3))])).make_durable().unwrap();
        let golden = "skein-positions 1\n5 0000000000000003/8000000000000000 a b\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), golden);
        assert!(LogPositions::open(dir.path().join("none")).unwrap().is_none());
        for damaged in ["skein-positions 2\n", "", "skein-positions 1\n5 3 a\n", "skein-positions 1\nx\n"] {
            std::fs::write(&path, damaged).unwrap();
            assert!(LogPositions::open(path.clone()).is_err(), "{damaged:?}");
        }
    }
}
