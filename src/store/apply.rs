//! Entries of the log become steps of databases.

use std::sync::Arc;

use super::event::StoreEvent;
use super::{Change, ChangeKind, Store, StoreError};
use crate::db::{Database, DbError, FileKind};
use crate::io::durable;
use crate::ltx::ChangeSet;
use crate::types::{DbName, LogIndex, Txid};

impl Store {
    /// Another node's change of a database whose log a crash of this node left behind: what is in that log was made on
    /// another state, and never becomes history.
    pub(super) fn discard_tails_before(&self, index: LogIndex, change: &Change) -> Result<(), StoreError> {
        let foreign = change.origin.node != self.node();
        if !foreign || self.lock_since().index().is_none_or(|since| index <= since) {
            return Ok(());
        }
        let names: Vec<&DbName> = match &change.kind {
            ChangeKind::Commit(sets) => sets.iter().map(|set| &set.db).collect(),
            ChangeKind::Drop(name) => vec![name],
            ChangeKind::Rename { from, to } => vec![from, to],
            ChangeKind::RenameDirectory { databases, .. } => databases.iter().collect(),
            ChangeKind::Create { name, .. } => vec![name],
            ChangeKind::SetAttributes { .. }
            | ChangeKind::MakeDirectory { .. }
            | ChangeKind::RemoveDirectory(_) => Vec::new(),
        };
        for database in names.into_iter().filter_map(|name| self.get(name)) {
            if database.index() < index {
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
            ChangeKind::Drop(name) => match self.get(name) {
                Some(database) if database.index() < index => self.end(name, index),
                _ => Ok(()),
            },
            ChangeKind::Rename { from, to } => {
                let renamed = self.apply_rename(index, from, to);
                // Also where the files were moved before a crash and the table was not written, and where they cannot be
                // moved because a reader has them open: what is fetched under the new name then has its attributes.
                self.names.rename_database(from, to, index);
                renamed
            }
            _ => self.apply_names(index, kind, timestamp_ms),
        }
    }

    fn apply_set(&self, index: LogIndex, set: &ChangeSet) -> Result<(), StoreError> {
        let database = match self.get(&set.db) {
            Some(database) => database,
            None if self.lock_durable().end_of(&set.db).is_some_and(|end| end > index) => return Ok(()),
            None => self.get_or_make(&set.db)?,
        };
        if database.index() == LogIndex::ZERO
            && set.range.min() != Txid::FIRST
            && database.pos().txid.is_none()
        {
            let why =
                format!("its first change set here begins with {}, not with the first", set.range.min());
            return Err(DbError::Corrupt { db: set.db.clone(), why }.into());
        }
        if let Err(error) = database.apply(index, set) {
            if !matches!(error, DbError::Unavailable { .. }) {
                database.fail(&error);
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// Ends a database: its files go, applications that have it open keep an orphan.
    fn end(&self, name: &DbName, index: LogIndex) -> Result<(), StoreError> {
        self.lock_durable().ended(name, index)?;
        self.forget(name)?;
        let _ = self.events.send(StoreEvent::Dropped(name.clone()));
        Ok(())
    }

    /// Removes a database from the set and its files from disk.
    pub(super) fn forget(&self, name: &DbName) -> Result<(), StoreError> {
        let removed = self.databases.write().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(name);
        self.names.remove_database(name);
        let Some(database) = removed else { return Ok(()) };
        database.set_dropped();
        let dir = database.files().dir().to_path_buf();
        let failed = |source| StoreError::Io { what: format!("removing {}", dir.display()), source };
        // Renamed first: from one moment to the next the database is gone, whatever the removal takes.
        let grave = tempfile::tempdir_in(self.layout.tmp()).map_err(failed)?;
        durable::rename(&dir, &grave.path().join("database")).map_err(failed)?;
        grave.close().map_err(failed)?;
        self.tell_kernel(name);
        Ok(())
    }

    fn tell_kernel(&self, name: &DbName) {
        let Some(cache) = self.shared.cache().cloned() else { return };
        let name = name.clone();
        // The caller may be answering the kernel's own request on this directory.
        let tell = move || FileKind::ALL.iter().for_each(|kind| cache.entry_changed(&name, *kind));
        if let Err(error) = std::thread::Builder::new().name("skein-inval".into()).spawn(tell) {
            tracing::warn!(%error, "cannot tell the kernel that a database is gone");
        }
    }

    pub(super) fn apply_rename(&self, index: LogIndex, from: &DbName, to: &DbName) -> Result<(), StoreError> {
        let Some(source) = self.get(from).filter(|database| database.index() < index) else { return Ok(()) };
        if let Some(target) = self.get(to) {
            if target.index() >= index {
                return Ok(());
            }
            self.forget(to)?;
        }
        self.lock_durable().ended(from, index)?;
        source.prepare_rename()?;
        self.move_files(&source, from, to)?;
        let renamed = super::open::make(&self.layout, to, &self.shared)?;
        renamed.set_index(index);
        let mut databases = self.databases.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        databases.remove(from);
        databases.insert(to.clone(), renamed);
        drop(databases);
        self.tell_kernel(from);
        self.tell_kernel(to);
        let _ = self.events.send(StoreEvent::Dropped(from.clone()));
        Ok(())
    }

    fn move_files(&self, source: &Arc<Database>, from: &DbName, to: &DbName) -> Result<(), StoreError> {
        let (old, new) = (self.layout.database(from), self.layout.database(to));
        let failed = |source| StoreError::Io { what: format!("renaming database {from} to {to}"), source };
        if let Some(parent) = new.dir().parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        source.make_durable()?;
        source.set_dropped();
        durable::rename(old.dir(), new.dir()).map_err(failed)
    }
}
