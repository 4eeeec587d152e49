//! Follows the committed log: each change set goes to its database's generation.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::generation::Generation;
use super::{HistoryError, HistoryOptions, directory};
use crate::io::blobs::BlobStore;
use crate::io::boot_id;
use crate::io::durable;
use crate::io::free_space::Space;
use crate::ltx::ChangeSet;
use crate::store::{Change, ChangeKind, CommittedLog, LogReadError};
use crate::types::{Checksum, DbName, LogIndex, Timestamp, Txid};

/// Log that is read at a time, in bytes.
const READ_BYTES: usize = 4 << 20;

/// What is known of all generations.
pub(super) struct Keeper {
    pub(super) root: PathBuf,
    pub(super) options: HistoryOptions,
    log: Arc<dyn CommittedLog>,
    blobs: Arc<BlobStore>,
    /// The generations of each database, oldest first; only the last may go on.
    pub(super) databases: BTreeMap<DbName, Vec<Generation>>,
    /// The last entry that is in here.
    pub(super) cursor: LogIndex,
    /// Databases whose next generation needs a copy of their pages.
    pub(super) needs_base: BTreeSet<DbName>,
    /// Generations with change sets that are not written yet.
    unwritten: BTreeSet<DbName>,
    /// What an earlier run left has been read.
    loaded: bool,
}

impl Keeper {
    /// Knows nothing yet: what an earlier run left is read when somebody asks.
    pub fn new(
        root: PathBuf,
        options: HistoryOptions,
        log: Arc<dyn CommittedLog>,
        blobs: Arc<BlobStore>,
    ) -> Self {
        let (databases, cursor, loaded) = (BTreeMap::new(), LogIndex::ZERO, false);
        let (needs_base, unwritten) = (BTreeSet::new(), BTreeSet::new());
        Self { root, options, log, blobs, databases, cursor, needs_base, unwritten, loaded }
    }

    /// Reads what an earlier run left.
    fn load(&mut self) -> Result<(), HistoryError> {
        fs::create_dir_all(&self.root).map_err(HistoryError::io("making", &self.root))?;
        for (db, dir) in directory::all(&self.root)? {
            match Generation::load(dir.clone()) {
                Ok(generation) => self.databases.entry(db).or_default().push(generation),
                Err(error) => {
                    tracing::warn!(%db, %error, "a part of the local history is given up");
                    directory::remove(&self.root, &dir)?;
                }
            }
        }
        let first = self.log.first_index();
        // After a power cut the end of what was written may be missing: what the log has is looked at again.
        let cursor = read_cursor(&self.root).filter(|cursor| cursor.next() >= first);
        self.cursor = cursor.unwrap_or_else(|| LogIndex::new(first.get().saturating_sub(1)));
        self.loaded = true;
        Ok(())
    }

    /// Takes what the log has got since.
    ///
    /// # Errors
    /// Where the log, or what an earlier run left, cannot be read.
    pub fn catch_up(&mut self) -> Result<(), HistoryError> {
        if !self.loaded {
            self.load()?;
        }
        let applied = *self.log.applied().borrow();
        while self.cursor < applied {
            let entries = match self.log.read(self.cursor.next(), READ_BYTES) {
                Ok(entries) => entries,
                Err(LogReadError::Purged { first, .. }) => {
                    // Databases that changed meanwhile are found by their next change set.
                    self.cursor = LogIndex::new(first.get().saturating_sub(1)).max(self.cursor.next());
                    continue;
                }
                Err(LogReadError::Io(source)) => {
                    return Err(HistoryError::Io { what: "reading the log".into(), source });
                }
            };
            let before = self.cursor;
            for (index, entry) in entries.into_iter().take_while(|(index, _)| *index <= applied) {
                self.cursor = index;
                if !entry.is_empty() {
                    let change = Change::decode(entry);
                    let change = change.map_err(|error| HistoryError::Corrupt(error.to_string()))?;
                    self.take(change, index, None);
                }
            }
            self.write_out();
            if self.cursor == before {
                break;
            }
        }
        Ok(())
    }

    /// Takes again what the log has of one database from `from` on: its base is a copy as of the entry before.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub fn replay(&mut self, db: &DbName, from: LogIndex) -> Result<(), HistoryError> {
        let (mut next, end) = (from, self.cursor);
        while next <= end {
            let entries = self.log.read(next, READ_BYTES);
            let entries = entries.map_err(|error| HistoryError::NotFound(error.to_string()))?;
            let Some((last, _)) = entries.last() else { break };
            next = last.next();
            for (index, entry) in
                entries.into_iter().filter(|(index, entry)| *index <= end && !entry.is_empty())
            {
                let change =
                    Change::decode(entry).map_err(|error| HistoryError::Corrupt(error.to_string()))?;
                self.take(change, index, Some(db));
            }
        }
        self.write_out();
        Ok(())
    }

    /// Takes an entry, or what of it concerns `only`.
    fn take(&mut self, change: Change, index: LogIndex, only: Option<&DbName>) {
        let time = Timestamp::from_ms(change.timestamp_ms);
        let concerns = |db: &DbName| only.is_none_or(|only| only == db);
        match change.kind {
            ChangeKind::Commit(sets) => {
                for set in sets.iter().filter(|set| concerns(&set.db)) {
                    self.commit(set, index, time);
                }
            }
            ChangeKind::Drop(db) if concerns(&db) => self.ended(&db, index, time),
            ChangeKind::Rename { from, to } if concerns(&from) || concerns(&to) => {
                self.rename(&from, &to, index, time)
            }
            ChangeKind::RenameDirectory { from, to, databases } => {
                for old in databases.iter().filter(|old| concerns(old)) {
                    if let Ok(new) = ChangeKind::name_below(&from, &to, old) {
                        self.rename(old, &new, index, time);
                    }
                }
            }
            _ => {}
        }
    }

    /// The generation of a database that goes on.
    pub fn current(&mut self, db: &DbName) -> Option<&mut Generation> {
        let last = self.databases.get_mut(db)?.last_mut()?;
        last.meta.ended.is_none().then_some(last)
    }

    fn commit(&mut self, set: &ChangeSet, index: LogIndex, time: Timestamp) {
        let blobs = self.blobs.clone();
        let mut gap = None;
        if let Some(generation) = self.current(&set.db) {
            let tip = generation.tip();
            if generation.is_continued_by(set) {
                match generation.append(set, &blobs) {
                    Ok(()) => {
                        self.unwritten.insert(set.db.clone());
                        return;
                    }
                    Err(error) => gap = Some(error.to_string()),
                }
            } else if Some(set.range.max()) < tip.txid || set.pos() == tip {
                // It is in here already.
                return;
            } else {
                gap = Some(match set.range.min() == tip.next_txid() {
                    true if set.page_size != generation.meta.page_size => "the page size changed".to_owned(),
                    _ => format!("the transactions after {tip} were not seen"),
                });
            }
        }
        if let Some(why) = gap {
            self.end(&set.db, time, why);
        }
        let begins = set.range.min() == Txid::FIRST && set.pre == Checksum::EMPTY;
        if !begins || !self.may_write() {
            self.needs_base.insert(set.db.clone());
            return;
        }
        let dir = directory::generation(&self.root, &set.db, index);
        let begun = Generation::begin(dir, set.page_size, Generation::empty_base(time), 0)
            .and_then(|mut generation| generation.append(set, &blobs).map(|()| generation));
        match begun {
            Ok(generation) => {
                self.databases.entry(set.db.clone()).or_default().push(generation);
                self.unwritten.insert(set.db.clone());
            }
            Err(error) => {
                tracing::warn!(db = %set.db, %error, "the local history has a gap");
                self.needs_base.insert(set.db.clone());
            }
        }
    }

    /// Ends the generation of a database that goes on; `why` is empty where the database is no more.
    pub fn end(&mut self, db: &DbName, time: Timestamp, why: String) {
        self.needs_base.remove(db);
        let Some(generation) = self.current(db) else { return };
        if !why.is_empty() {
            tracing::warn!(%db, why, "the local history has a gap");
        }
        let written = generation.flush().and_then(|()| generation.end(time, why));
        if let Err(error) = written {
            tracing::warn!(%db, %error, "the local history ends");
        }
        self.unwritten.remove(db);
    }

    /// What had the name before entry `index` is no more; the entry may be known already.
    fn ended(&mut self, db: &DbName, index: LogIndex, time: Timestamp) {
        if self.current(db).is_none_or(|generation| generation.meta.named < index) {
            self.end(db, time, String::new());
        }
    }

    /// The history of a database goes with it to its new name, behind that of what had the name. Done again after a crash
    /// it changes nothing.
    fn rename(&mut self, from: &DbName, to: &DbName, index: LogIndex, time: Timestamp) {
        self.ended(to, index, time);
        self.write_out();
        if self.needs_base.remove(from) {
            self.needs_base.insert(to.clone());
        }
        let mut kept = self.databases.remove(to).unwrap_or_default();
        for mut generation in self.databases.remove(from).unwrap_or_default() {
            if generation.meta.named > index {
                // Another one of the old name.
                self.databases.entry(from.clone()).or_default().push(generation);
                continue;
            }
            let Some(name) = generation.dir.file_name() else { continue };
            let target = directory::of(&self.root, to).join(name);
            generation.meta.named = index;
            let noted = generation.meta.write(&generation.dir);
            match noted.and_then(|()| directory::rename(&self.root, &generation.dir, &target)) {
                Ok(()) => {
                    generation.dir = target;
                    kept.push(generation);
                }
                Err(error) => {
                    tracing::warn!(db = %to, %error, "the local history has a gap");
                    self.needs_base.insert(to.clone());
                }
            }
        }
        kept.sort_by(|a, b| a.dir.file_name().cmp(&b.dir.file_name()));
        self.databases.insert(to.clone(), kept);
    }

    /// Writes what was taken.
    fn write_out(&mut self) {
        self.give_room();
        let full = !self.may_write();
        for db in std::mem::take(&mut self.unwritten) {
            let Some(generation) = self.current(&db) else { continue };
            let written = match full {
                true => Err(HistoryError::NotFound("the disk is nearly full".into())),
                false => generation.flush(),
            };
            if let Err(error) = written {
                self.end(&db, Timestamp::now(), error.to_string());
                self.needs_base.insert(db);
            }
        }
    }

    /// Whether the disk has room for what nobody has to have.
    pub fn may_write(&self) -> bool {
        self.has_room_for(0)
    }

    /// The same for so many bytes; twice what is kept in reserve for commits is left.
    pub fn has_room_for(&self, bytes: u64) -> bool {
        Space::of(&self.root).is_ok_and(|space| {
            space.free > bytes.saturating_add(2 * space.reserve(self.options.disk_reserve_bytes))
        })
    }

    /// What all files take, in bytes.
    pub fn bytes(&self) -> u64 {
        self.databases.values().flatten().map(Generation::bytes).sum()
    }

    /// Notes how far the log is in here.
    ///
    /// # Errors
    /// Where that cannot be written: then the next run looks at more of the log.
    pub fn store_cursor(&self) -> Result<(), HistoryError> {
        if !self.loaded {
            return Ok(());
        }
        let path = self.root.join(CURSOR);
        let text = format!("{MAGIC}\n{}\n{}\n", self.cursor, boot_id());
        durable::write_atomic(&path, text.as_bytes()).map_err(HistoryError::io("writing", &path))
    }
}

const CURSOR: &str = "cursor";
const MAGIC: &str = "skein-history-cursor 1";

/// How far the log was in there, where that can be relied on: no longer than the machine is up.
fn read_cursor(root: &std::path::Path) -> Option<LogIndex> {
    let text = fs::read_to_string(root.join(CURSOR)).ok()?;
    let mut lines = text.lines();
    if lines.next()? != MAGIC {
        return None;
    }
    let index = lines.next()?.parse().ok().map(LogIndex::new)?;
    (lines.next()? == boot_id()).then_some(index)
}
