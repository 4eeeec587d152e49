//! Entries of the log become steps of databases, in the log's order, on the primary as on all other nodes.

use super::event::StoreEvent;
use super::{Change, ChangeKind, Store, StoreError};
use crate::db::{Database, DbError, FileKind};
use crate::io::{durable, fault};
use crate::ltx::ChangeSet;
use crate::types::{DbName, LogIndex, Txid};

impl Store {
    /// Applies entry `index` of the log; called in order per database. Blocking. Entries that a database already has
    /// (index at or below its own) are skipped.
    ///
    /// # Errors
    /// `Conflict` where an application has to end a transaction first: nothing has changed, try again. Anything else
    /// where a change set does not continue its database or a file cannot be written; the database is then not served
    /// until it is resynced.
    pub fn apply(&self, index: LogIndex, change: &Change) -> Result<(), StoreError> {
        self.logged(index, change);
        match &change.kind {
            // Proposed here and claimed before: who holds the claim applies it.
            ChangeKind::Drop(_) | ChangeKind::Rename { .. } | ChangeKind::RenameDirectory { .. }
                if self.claims.has(&change.origin) =>
            {
                self.claims.apply(&change.origin, index)
            }
            kind => {
                self.discard_tails_before(index, change)?;
                self.apply_kind(index, kind, change.timestamp_ms)
            }
        }
    }

    /// Another node's change of a database whose log a crash of this node left behind: what is in that log was made on
    /// another state, and never becomes history.
    fn discard_tails_before(&self, index: LogIndex, change: &Change) -> Result<(), StoreError> {
        let Some(since) = self.lock_since().index() else { return Ok(()) };
        if change.origin.node == self.node() {
            return Ok(());
        }
        for database in change.databases().iter().filter_map(|name| self.get(name)) {
            let newer = index > since || self.lagged_behind(database.name());
            if newer && database.index() < index {
                database.discard_tail()?;
            }
        }
        Ok(())
    }

    pub(super) fn apply_kind(
        &self,
        index: LogIndex,
        kind: &ChangeKind,
        timestamp_ms: i64,
    ) -> Result<(), StoreError> {
        match kind {
            ChangeKind::Commit(sets) => {
                // One database's trouble must not keep the others of the entry from moving on.
                let mut first_error = None;
                for set in sets {
                    if let Err(error) = self.apply_set(index, set) {
                        first_error.get_or_insert(error);
                    }
                }
                first_error.map_or(Ok(()), Err)
            }
            ChangeKind::Drop(name) => self.apply_drop(index, name),
            ChangeKind::Rename { from, to } => self.rename_entry(index, from, to, false),
            _ => self.apply_names(index, kind, timestamp_ms),
        }
    }

    pub(super) fn apply_drop(&self, index: LogIndex, name: &DbName) -> Result<(), StoreError> {
        if self.ended_behind(name, index) {
            return Ok(());
        }
        match self.get(name) {
            Some(database) if database.index() < index => self.end(name, index),
            Some(_) => Ok(()),
            None => {
                self.names.remove_database(name);
                Ok(())
            }
        }
    }

    fn apply_set(&self, index: LogIndex, set: &ChangeSet) -> Result<(), StoreError> {
        let end = self.end_of(&set.db);
        if self.ended_behind(&set.db, index) {
            return Ok(());
        }
        let begins = set.range.min() == Txid::FIRST;
        let here = self.get(&set.db);
        let lacks =
            here.as_ref().is_none_or(|database| database.index() < index && database.pos().txid.is_none());
        if lacks && !begins {
            if end.is_some() && here.is_none() {
                tracing::warn!(%index, db = %set.db, range = %set.range.min(), "a change set stands in the log behind the end of its database, and changes nothing");
                return Ok(());
            }
            let why =
                format!("its first change set here begins with {}, not with the first", set.range.min());
            let error = DbError::Corrupt { db: set.db.clone(), why };
            // Not served until it is fetched: whoever made it anew under the name would take the place of the real one.
            self.get_or_make(&set.db)?.fail(&error);
            return Err(error.into());
        }
        let database = match here {
            Some(database) => database,
            None => self.get_or_make(&set.db)?,
        };
        if let Err(error) = database.apply(index, set) {
            if !matches!(error, DbError::Unavailable { .. } | DbError::Conflict { .. }) {
                database.fail(&error);
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// Ends a database: its files go, applications that have it open keep an orphan.
    pub(super) fn end(&self, name: &DbName, index: LogIndex) -> Result<(), StoreError> {
        self.note_ended(&[name], index)?;
        self.forget(name)?;
        let _ = self.events.send(StoreEvent::Dropped(name.clone()));
        Ok(())
    }

    /// Notes durably that entry `index` ended what had these names: redo must not bring it back.
    pub(super) fn note_ended(&self, names: &[&DbName], index: LogIndex) -> Result<(), StoreError> {
        let failed = |source| StoreError::Io { what: "noting the end of a database".into(), source };
        fault::point("end_note").map_err(failed)?;
        self.lock_durable().ended(names, index)?;
        let mut ends = self.ends.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for name in names {
            let last = ends.entry((*name).clone()).or_insert(index);
            *last = index.max(*last);
        }
        Ok(())
    }

    /// The entry that ended the last database of that name, as far as redo still needs to know.
    pub(super) fn end_of(&self, name: &DbName) -> Option<LogIndex> {
        self.ends.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get(name).copied()
    }

    /// Whether redo after a crash has come to an entry about a database that ended later: another one may have the name by
    /// now, which a power cut may have left with no word of where it begins.
    pub(super) fn ended_behind(&self, name: &DbName, index: LogIndex) -> bool {
        self.end_of(name).is_some_and(|end| end > index)
    }

    /// Removes a database from the set and its files from disk.
    pub(super) fn forget(&self, name: &DbName) -> Result<(), StoreError> {
        let Some(database) = self.get(name) else {
            self.names.remove_database(name);
            return Ok(());
        };
        database.set_dropped();
        self.remove_files(&database)?;
        // It has its attributes for as long as it can be looked up.
        self.names.remove_database(name);
        self.databases.write().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(name);
        self.name_changed(name);
        Ok(())
    }

    /// Removes a database's files. Renamed first: from one moment to the next the database is gone, whatever the removal
    /// takes.
    pub(super) fn remove_files(&self, database: &Database) -> Result<(), StoreError> {
        let dir = database.files().dir();
        let failed = |source| StoreError::Io { what: format!("removing {}", dir.display()), source };
        let grave = tempfile::tempdir_in(self.layout.tmp()).map_err(failed)?;
        // A data directory of an earlier version may have databases below the directory of another one.
        let below = format!("{}/", database.name());
        if self.names().iter().any(|name| name.as_str().starts_with(&below)) {
            for entry in std::fs::read_dir(dir).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                if entry.file_type().map_err(failed)?.is_file() {
                    std::fs::remove_file(entry.path()).map_err(failed)?;
                }
            }
            return durable::sync_dir(dir).map_err(failed);
        }
        match durable::rename(dir, &grave.path().join("database")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        grave.close().map_err(failed)
    }

    /// Another database has the name now, or none: tells the kernel, and those who wait for a position.
    pub(super) fn name_changed(&self, name: &DbName) {
        self.steps.send_modify(|count| *count += 1);
        let Some(cache) = self.shared.cache().cloned() else { return };
        let name = name.clone();
        // The caller may be answering the kernel's own request on this directory.
        let tell = move || FileKind::ALL.iter().for_each(|kind| cache.entry_changed(&name, *kind));
        if let Err(error) = std::thread::Builder::new().name("skein-inval".into()).spawn(tell) {
            tracing::warn!(%error, "cannot tell the kernel that a database is gone");
        }
    }
}
