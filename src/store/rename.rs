//! The entry of a rename becomes a step of two databases.
//!
//! | the target is | what is done |
//! |---|---|
//! | not there, or open nowhere on this node | the source's directory takes its place |
//! | open here | the source's content becomes one transaction of the target, as a copy over it would |
//! | open here with another page size | the source's directory takes its place; connections keep the old file |
//!
//! A source that is open here (on the primary that is refused before) is copied: its connections keep the old file.
//!
//! Crash safety: the source's marker gets the entry's index before its directory moves, and both names are noted as
//! ended, so that redo applies nothing older to either. Where the directory cannot take its place at once it waits in
//! `renamed/INDEX`, with the target's name in the file `to`; [`finish_renames`] completes it at the next start.

use std::path::Path;
use std::sync::Arc;

use super::event::StoreEvent;
use super::{Layout, Store, StoreError};
use crate::db::{Database, DbError, DbFiles, FileKind, SnapshotHeader};
use crate::io::durable;
use crate::types::{DbName, LogIndex, MountPath};

/// How long the entry of another node waits for what is under way in the source at a time.
const CLAIM_MAX: std::time::Duration = std::time::Duration::from_secs(1);

/// In a directory below `renamed/`: the database that waits there,
const WAITING: &str = "database";
/// and its name.
const TO: &str = "to";

fn failed(from: &DbName, to: &DbName) -> impl Fn(std::io::Error) -> StoreError {
    let what = format!("renaming database {from} to {to}");
    move |source| StoreError::Io { what: what.clone(), source }
}

impl Store {
    /// Applies a rename, and gives the new name what belonged to the old one.
    pub(super) fn rename_entry(
        &self,
        index: LogIndex,
        from: &DbName,
        to: &DbName,
        claimed: bool,
    ) -> Result<(), StoreError> {
        let renamed = self.apply_rename(index, from, to, claimed);
        if !matches!(renamed, Err(StoreError::Db(DbError::Conflict { .. }))) {
            // Also where the files were moved before a crash and the table was not written, and where they cannot be moved:
            // what is fetched under the new name then has its attributes.
            self.names.rename_database(from, to, index);
        }
        renamed
    }

    /// Whether a rename gives an open target the source's content, instead of the source's files its name.
    pub(super) fn takes_content(&self, source: &Database, target: &Database) -> bool {
        target.is_open()
            && target.failure().is_none()
            && source.failure().is_none()
            && source.pos().txid.is_some()
            && target.size().0 == source.size().0
    }

    /// Applies a rename; `claimed` where both databases are claimed by the caller already.
    fn apply_rename(
        &self,
        index: LogIndex,
        from: &DbName,
        to: &DbName,
        claimed: bool,
    ) -> Result<(), StoreError> {
        let prepared = |database: &Arc<Database>| database.index() == index && database.pos().txid.is_some();
        let here = self.get(from).filter(|_| !self.ended_behind(from, index));
        let source = here.filter(|source| source.index() < index || prepared(source));
        let target = self.get(to);
        let newer = target.as_ref().is_some_and(|target| target.index() >= index);
        if newer || self.ended_behind(to, index) {
            // Done before a crash, or fetched at a later state.
            return if source.is_some() { self.end(from, index) } else { Ok(()) };
        }
        let Some(source) = source else { return self.lacks_source(from, to) };
        let _claim = if claimed { None } else { Some(source.claim(std::time::Instant::now() + CLAIM_MAX)?) };
        match target.filter(|target| self.takes_content(&source, target)) {
            Some(target) => self.rename_into(index, &source, &target, claimed)?,
            None => self.rename_files(index, &source, to)?,
        }
        self.name_changed(from);
        self.name_changed(to);
        let _ = self.events.send(StoreEvent::Dropped(from.clone()));
        Ok(())
    }

    /// What is renamed is not here: the new name is not served until it is fetched.
    fn lacks_source(&self, from: &DbName, to: &DbName) -> Result<(), StoreError> {
        let why = format!("database {from}, which was renamed to it, is not here");
        let error = DbError::Corrupt { db: to.clone(), why };
        self.get_or_make(to)?.fail(&error);
        Err(error.into())
    }

    /// The source's directory becomes the target's.
    fn rename_files(&self, index: LogIndex, source: &Arc<Database>, to: &DbName) -> Result<(), StoreError> {
        let from = source.name().clone();
        let failed = failed(&from, to);
        let new = self.layout.database(to);
        if let Some(parent) = new.dir().parent() {
            std::fs::create_dir_all(parent).map_err(&failed)?;
        }
        let failure = source.failure();
        let waiting = if failure.is_some() {
            None
        } else if source.detach_claimed()? {
            source.discard_tail()?;
            if source.pos().txid.is_some() {
                source.close_history(index)?;
            }
            None
        } else {
            Some(self.stage_copy(index, source, to)?)
        };
        self.note_ended(&[&from, to], index)?;
        self.forget(to)?;
        self.names.precede_database(&from, to, index);
        let old = waiting.as_ref().map_or(source.files().dir().to_path_buf(), |dir| dir.join(WAITING));
        durable::rename(&old, new.dir()).map_err(&failed)?;
        source.set_dropped();
        if let Some(dir) = waiting {
            self.remove_files(source)?;
            std::fs::remove_dir_all(dir).map_err(&failed)?;
        }
        let renamed = super::open::recover(&self.layout, to.clone(), &self.shared)?;
        if let Some(why) = failure {
            renamed.set_index(index);
            renamed.fail(&DbError::Corrupt { db: to.clone(), why });
        }
        // Without content it has no marker of its own.
        renamed.begin_behind(index)?;
        let behind = self.lock_behind();
        renamed.set_behind(behind.now.contains(to));
        let mut databases = self.databases.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        databases.remove(&from);
        databases.insert(to.clone(), renamed);
        Ok(())
    }

    /// The source's content becomes a transaction of the target, which applications have open.
    fn rename_into(
        &self,
        index: LogIndex,
        source: &Arc<Database>,
        target: &Arc<Database>,
        claimed: bool,
    ) -> Result<(), StoreError> {
        let (from, to) = (source.name().clone(), target.name().clone());
        let failed = failed(&from, &to);
        // Before anything has changed: applications may have to be waited for.
        let alone = if claimed { None } else { Some(target.lock_for_content()?) };
        let dir = if source.detach_claimed()? {
            source.discard_tail()?;
            let dir = self.stage_rename(index, &to)?;
            source.close_history(index)?;
            self.note_ended(&[&from, &to], index)?;
            durable::rename(source.files().dir(), &dir.join(WAITING)).map_err(&failed)?;
            source.set_dropped();
            dir
        } else {
            let dir = self.stage_copy(index, source, &to)?;
            self.note_ended(&[&from, &to], index)?;
            source.set_dropped();
            self.remove_files(source)?;
            dir
        };
        self.databases.write().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(&from);
        let (page_size, commit) = source.size();
        let header = SnapshotHeader { pos: source.pos(), index, page_size, commit };
        // Before the content, which may be for fewer eyes than what had the name.
        self.names.precede_database(&from, &to, index);
        self.attributes_changed(&MountPath::Database(to.clone()));
        let file = DbFiles::new(dir.join(WAITING)).path(FileKind::Database);
        let installed = self
            .content_of(&file, header, target)
            .and_then(|(change, spool)| Ok(target.install_claimed(change, spool, index)?));
        drop(alone);
        if let Err(error) = installed {
            // The content waits in `renamed`, and takes its place at the next start where it is not fetched before.
            target.fail(&super::store::as_db_error(&to, error));
            target.set_index(index);
            let why = "the renamed content cannot be written to it".to_owned();
            return Err(DbError::Corrupt { db: to.clone(), why }.into());
        }
        Ok(())
    }

    /// A directory for a database that is to take the place of `to`.
    fn stage_rename(&self, index: LogIndex, to: &DbName) -> Result<std::path::PathBuf, StoreError> {
        let dir = self.layout.renamed().join(index.to_string());
        let failed = |source| StoreError::Io { what: format!("preparing {}", dir.display()), source };
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        std::fs::create_dir_all(&dir).map_err(failed)?;
        durable::write_atomic(&dir.join(TO), to.as_str().as_bytes()).map_err(failed)?;
        durable::sync_dir(&self.layout.renamed()).map_err(failed)?;
        Ok(dir)
    }

    fn stage_copy(
        &self,
        index: LogIndex,
        source: &Database,
        to: &DbName,
    ) -> Result<std::path::PathBuf, StoreError> {
        let failed = failed(source.name(), to);
        let dir = self.stage_rename(index, to)?;
        let copy = tempfile::tempdir_in(self.layout.tmp()).map_err(&failed)?;
        source.copy_to(copy.path(), index)?;
        durable::rename(copy.path(), &dir.join(WAITING)).map_err(&failed)?;
        // Renamed away: nothing is left to be removed.
        let _ = copy.keep();
        Ok(dir)
    }

    /// Removes what waited to take a database's place and is in that database's own file by now.
    pub(super) fn forget_renamed(&self, durable: LogIndex) -> Result<(), StoreError> {
        let dir = self.layout.renamed();
        let failed = |source| StoreError::Io { what: format!("emptying {}", dir.display()), source };
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if index_of(&path).is_none_or(|index| index > durable) {
                continue;
            }
            match std::fs::remove_dir_all(&path) {
                // Two checkpoints at a time have the same to do.
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// At a start, before databases are looked for: what waits in `renamed/` takes its place where its target never became
/// durable; `ends` are the names that ended since.
pub(super) fn finish_renames(
    layout: &Layout,
    durable: LogIndex,
    ends: &std::collections::BTreeMap<DbName, LogIndex>,
) -> Result<(), StoreError> {
    let failed = |source| StoreError::Io { what: format!("reading {}", layout.renamed().display()), source };
    let entries = match std::fs::read_dir(layout.renamed()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let mut waiting: Vec<_> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(failed)?;
    waiting.sort_by_key(|path| index_of(path));
    for path in waiting {
        let (Some(index), Ok(name)) = (index_of(&path), std::fs::read_to_string(path.join(TO))) else {
            // Died before anything was in it.
            std::fs::remove_dir_all(&path).map_err(failed)?;
            continue;
        };
        let to =
            DbName::new(&name).map_err(|error| StoreError::Fatal(format!("{}: {error}", path.display())))?;
        let place = layout.database(&to);
        let there = Database::marker_in(&place).map_err(failed)?.is_some_and(|marker| marker.index >= index);
        let ended = ends.get(&to).is_some_and(|end| *end > index);
        if index > durable && !there && !ended && path.join(WAITING).is_dir() {
            tracing::info!(db = %to, %index, "completing a rename that a crash interrupted");
            let grave = tempfile::tempdir_in(layout.tmp()).map_err(failed)?;
            if place.dir().exists() {
                durable::rename(place.dir(), &grave.path().join("database")).map_err(failed)?;
            }
            if let Some(parent) = place.dir().parent() {
                std::fs::create_dir_all(parent).map_err(failed)?;
            }
            durable::rename(&path.join(WAITING), place.dir()).map_err(failed)?;
        }
        std::fs::remove_dir_all(&path).map_err(failed)?;
    }
    Ok(())
}

fn index_of(path: &Path) -> Option<LogIndex> {
    path.file_name()?.to_str()?.parse().ok().map(LogIndex::new)
}
