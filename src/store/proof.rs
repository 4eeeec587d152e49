//! A node proves, per database, that it has what the log names before it serves it.
//!
//! A database is held against what the log says of it ([`LogPositions`](super::log_positions)) when the log of a start has
//! been applied again, when this node becomes primary (before applications may write), and when it has caught up. One that
//! disagrees is not served, and is fetched from a node that has it.

use std::sync::Arc;

use super::log_positions::LogPosition;
use super::store::Repair;
use super::{Store, StoreError};
use crate::db::{Database, DbError};
use crate::types::{DbName, Pos};

impl Store {
    /// Connects who fetches databases that are not what they have to be; the first call counts.
    pub fn set_repair(&self, repair: Repair) {
        let _ = self.repair.set(repair);
    }

    /// Stops serving a database whose copy here is wrong, and has it fetched. Where nobody can be asked it stays so.
    pub(super) fn distrust(&self, database: &Database, error: &DbError) {
        database.fail(error);
        if let Some(repair) = self.repair.get() {
            repair(database.name());
        }
    }

    /// Databases that disagree with the log, with the reason. Blocking.
    pub fn disagreeing(&self) -> Vec<(DbName, String)> {
        let Some(positions) = &self.positions else { return Vec::new() };
        let mut names = self.names();
        names.extend(positions.all().into_iter().map(|(name, _)| name));
        names.sort();
        names.dedup();
        names.into_iter().filter_map(|name| self.disagreement(&name).map(|why| (name, why))).collect()
    }

    /// Holds all databases against the log, but those whose entries still wait: they are when they have them. Blocking.
    ///
    /// # Errors
    /// Where the place of one that is not here cannot be made.
    pub(super) fn prove_all(&self) -> Result<(), StoreError> {
        for (name, why) in self.disagreeing() {
            self.distrust_for(&name, why)?;
        }
        Ok(())
    }

    /// Holds one that has caught up against the log. Blocking.
    ///
    /// # Errors
    /// As [`prove_all`](Self::prove_all).
    pub(super) fn prove(&self, name: &DbName) -> Result<(), StoreError> {
        match self.disagreement(name) {
            Some(why) => self.distrust_for(name, why),
            None => Ok(()),
        }
    }

    fn distrust_for(&self, name: &DbName, why: String) -> Result<(), StoreError> {
        // One that is not here gets a place, so that nobody makes it anew under the name.
        let database = self.get_or_make(name)?;
        let error = DbError::Corrupt { db: name.clone(), why };
        let at = self.positions.as_ref().and_then(|positions| positions.get(name));
        let asked = self.lock_asked().insert(name.clone(), at);
        if asked == Some(at) {
            // What was fetched is no better. Asked again where the log says something new, or another node leads.
            database.fail(&error);
        } else {
            self.distrust(&database, &error);
        }
        Ok(())
    }

    /// Another leader may know more: databases that could not be mended may be asked for again.
    pub(super) fn forget_asked(&self) {
        self.lock_asked().clear();
    }

    /// Why a database is not what the log says, if so. Entries may come meanwhile: it disagrees where it stands elsewhere
    /// before and after a moment at which the log had given it everything and nothing of it waited.
    fn disagreement(&self, name: &DbName) -> Option<String> {
        let positions = self.positions.as_ref()?;
        loop {
            let expected = positions.get(name);
            let before = self.difference(name, expected)?;
            let is_given = expected.is_none_or(|expected| expected.index <= self.taken_index());
            if !is_given || self.is_behind(name) {
                return None;
            }
            if self.difference(name, positions.get(name))? == before {
                return Some(before);
            }
        }
    }

    /// How a database differs from what is expected of it.
    fn difference(&self, name: &DbName, expected: Option<LogPosition>) -> Option<String> {
        match (expected, self.get(name)) {
            (None, None) => None,
            (Some(LogPosition { index, pos }), None) => {
                Some(format!("it is not here, and the log says that it stands at {pos} since entry {index}"))
            }
            (expected, Some(database)) => self.compare(&database, expected),
        }
    }

    fn compare(&self, database: &Arc<Database>, expected: Option<LogPosition>) -> Option<String> {
        let stands = database.stands_elsewhere(expected.map_or(Pos::ZERO, |expected| expected.pos))?;
        if database.index() > self.taken_index() {
            // Fetched before a crash at a later state than the log has come to again.
            return None;
        }
        Some(match expected {
            Some(LogPosition { index, pos }) => {
                format!("it stands at {stands}, and the log says at {pos} since entry {index}")
            }
            None => format!("it stands at {stands}, and the log has no transaction of it"),
        })
    }

    /// Whether applications may write a database where this node is primary: the fence of one that lacks entries, or is
    /// not served, stays.
    pub(super) fn may_be_written(&self, database: &Database) -> bool {
        !database.is_behind() && database.failure().is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::store::copies::tests::{fill, open};
    use crate::store::{Change, ChangeKind};
    use crate::types::{Access, LogIndex};

    fn name(text: &str) -> DbName {
        DbName::new(text).unwrap()
    }

    fn pos(store: &Store, db: &DbName) -> Pos {
        store.get(db).map_or(Pos::ZERO, |database| database.pos())
    }

    fn failed(store: &Store) -> Vec<DbName> {
        store.list().into_iter().filter(|db| db.failure.is_some()).map(|db| db.name).collect()
    }

    /// What is fetched, in the order in which it is asked for.
    fn asked(store: &Store) -> Arc<Mutex<Vec<DbName>>> {
        let asked: Arc<Mutex<Vec<DbName>>> = Arc::default();
        let noted = asked.clone();
        store.set_repair(Box::new(move |db| noted.lock().unwrap().push(db.clone())));
        asked
    }

    /// Entries 1 and 2, of a and b.
    fn two(store: &Store) {
        for (index, db) in [(1, "a"), (2, "b")] {
            let db = name(db);
            store.apply(LogIndex::new(index), &fill(&db, pos(store, &db), 1, 1)).unwrap();
            store.applied(LogIndex::new(index));
        }
    }

    fn crash(store: Arc<Store>) {
        if let Some(watcher) = store.shared.watcher() {
            watcher.stop();
        }
    }

    fn again(dir: &std::path::Path) -> Arc<Store> {
        let store = open(dir);
        store.begin_replay();
        store
    }

    #[test]
    fn a_new_primary_does_not_serve_a_database_that_lacks_an_entry_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let (store, a, b) = (open(dir.path()), name("a"), name("b"));
        let asked = asked(&store);
        two(&store);
        // The log gives entry 3, and it never gets to its database.
        store.logged(LogIndex::new(3), &fill(&a, pos(&store, &a), 1, 2));
        store.applied(LogIndex::new(3));
        store.set_access(Access::Write).unwrap();
        assert_eq!(failed(&store), std::slice::from_ref(&a));
        assert_eq!(*asked.lock().unwrap(), std::slice::from_ref(&a));
        let why = store.get(&a).unwrap().failure().unwrap();
        assert!(why.contains("it stands at 0000000000000001/") && why.contains("since entry 3"), "{why}");
        assert!(store.snapshot(&a).is_err() && store.snapshot(&b).is_ok());
        // Asked once for what the log says, and again when another node leads.
        store.set_access(Access::Fenced).unwrap();
        store.set_access(Access::Write).unwrap();
        assert_eq!(asked.lock().unwrap().len(), 1);
        crash(store);
    }

    #[test]
    fn a_database_whose_files_are_gone_is_missed_at_the_start_and_not_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        two(&store);
        store.checkpoint().unwrap();
        crash(store);
        let store = open(dir.path());
        let files = store.layout().database(&name("a")).dir().to_path_buf();
        crash(store);
        std::fs::remove_dir_all(files).unwrap();
        let store = again(dir.path());
        let asked = asked(&store);
        store.end_replay();
        assert_eq!(failed(&store), [name("a")]);
        assert_eq!(*asked.lock().unwrap(), [name("a")]);
        assert!(store.get(&name("a")).unwrap().failure().unwrap().contains("it is not here"));
        crash(store);
    }

    #[test]
    fn a_database_that_the_log_has_ended_is_not_served_where_its_files_are_still_there() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        two(&store);
        let origin = fill(&name("a"), Pos::ZERO, 1, 1).origin;
        store
            .logged(LogIndex::new(3), &Change { origin, timestamp_ms: 0, kind: ChangeKind::Drop(name("a")) });
        store.applied(LogIndex::new(3));
        store.set_access(Access::Write).unwrap();
        assert_eq!(failed(&store), [name("a")]);
        crash(store);
    }

    #[test]
    fn what_is_fetched_or_redone_is_no_disagreement() {
        let dir = tempfile::tempdir().unwrap();
        let (store, a) = (open(dir.path()), name("a"));
        two(&store);
        store.checkpoint().unwrap();
        let change = fill(&a, pos(&store, &a), 1, 2);
        store.apply(LogIndex::new(3), &change).unwrap();
        store.applied(LogIndex::new(3));
        crash(store);
        // Neither the file of positions nor the marker has entry 3; the log brings it again.
        let store = again(dir.path());
        store.apply(LogIndex::new(3), &change).unwrap();
        store.applied(LogIndex::new(3));
        store.end_replay();
        assert_eq!(store.disagreeing(), []);
        // Entries that wait for readers are no loss.
        store.set_behind(&a, true);
        store.logged(LogIndex::new(4), &fill(&a, pos(&store, &a), 1, 3));
        store.taken(LogIndex::new(4));
        assert_eq!(store.disagreeing(), []);
        store.set_behind(&a, false);
        assert_eq!(store.disagreeing().len(), 1);
        crash(store);
    }

    #[test]
    fn an_entry_that_is_on_its_way_to_its_database_is_no_disagreement() {
        let dir = tempfile::tempdir().unwrap();
        let (store, a) = (open(dir.path()), name("a"));
        two(&store);
        let change = fill(&a, pos(&store, &a), 1, 2);
        // Another thread has noted it, and has not applied it yet.
        store.logged(LogIndex::new(3), &change);
        assert_eq!(store.disagreeing(), []);
        store.apply(LogIndex::new(3), &change).unwrap();
        store.taken(LogIndex::new(3));
        assert_eq!(store.disagreeing(), []);
        crash(store);
    }

    #[test]
    fn redo_passes_over_the_ends_of_earlier_databases_of_a_name_that_has_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let (a, b) = (name("a"), name("b"));
        let origin = fill(&a, Pos::ZERO, 1, 1).origin;
        let mut log = Vec::new();
        let mut give = |change: Change| {
            log.push(change);
            let index = LogIndex::new(log.len() as u64);
            store.apply(index, log.last().unwrap()).unwrap();
            store.applied(index);
        };
        let of = |kind| Change { origin, timestamp_ms: 0, kind };
        give(fill(&b, Pos::ZERO, 1, 1));
        give(fill(&a, Pos::ZERO, 1, 2));
        give(of(ChangeKind::Drop(a.clone())));
        give(of(ChangeKind::Rename { from: b.clone(), to: a.clone() }));
        give(fill(&a, pos(&store, &a), 1, 3));
        give(of(ChangeKind::Drop(a.clone())));
        give(fill(&a, Pos::ZERO, 1, 4));
        let last = pos(&store, &a);
        let files = store.layout().database(&a);
        crash(store);
        // A power cut: the directory of the last one is there, and nothing in it.
        std::fs::write(files.path(crate::db::FileKind::Database), "").unwrap();
        std::fs::write(files.pages(), "").unwrap();
        let store = again(dir.path());
        for (number, change) in log.iter().enumerate() {
            let index = LogIndex::new(number as u64 + 1);
            store.apply(index, change).unwrap_or_else(|error| panic!("entry {index}: {error}"));
            store.applied(index);
        }
        store.end_replay();
        assert_eq!((failed(&store), pos(&store, &a)), (vec![], last));
        crash(store);
    }

    #[test]
    fn entries_of_a_database_that_a_fetch_has_shown_to_be_gone_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (store, a) = (open(dir.path()), name("a"));
        two(&store);
        let change = fill(&a, pos(&store, &a), 1, 2);
        // Entry 5 ended it, by the node that everything is fetched from; the log goes on behind entry 2 here.
        store.retain(&[name("b")], LogIndex::new(5)).unwrap();
        store.apply(LogIndex::new(3), &change).unwrap();
        assert!(store.get(&a).is_none() && failed(&store).is_empty());
        crash(store);
    }

    #[test]
    fn a_data_directory_of_a_version_without_the_file_of_positions_is_taken_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        two(&store);
        store.checkpoint().unwrap();
        let positions = store.layout().positions();
        crash(store);
        std::fs::remove_file(&positions).unwrap();
        let store = again(dir.path());
        store.end_replay();
        assert_eq!(store.disagreeing(), []);
        store.checkpoint().unwrap();
        assert!(positions.is_file());
        crash(store);
    }
}
