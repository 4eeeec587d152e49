//! The directory of databases as it is on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use super::namespace::Namespace;
use super::{Layout, NameEntry, StoreError};
use crate::db::{Database, DbError, DbFiles, FileKind, Shared};
use crate::io::durable;
use crate::types::{Access, Attributes, DbName, LogIndex, MountPath};

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let what = format!("{what} {}", path.display());
    move |source| StoreError::Io { what, source }
}

/// Makes the directories, empties `tmp`, and removes what was half written to `discarded` when its writer died.
pub(super) fn prepare(layout: &Layout) -> Result<(), StoreError> {
    let tmp = layout.tmp();
    match fs::remove_dir_all(&tmp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("emptying", &tmp)(error)),
        _ => {}
    }
    for dir in [layout.dbs(), tmp] {
        fs::create_dir_all(&dir).map_err(failed("creating", &dir))?;
        // The permissions that applications give their files are those of the mount; here is only this program.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).map_err(failed("protecting", &dir))?;
    }
    let discarded = layout.discarded();
    durable::remove_temporaries(&discarded).map_err(failed("removing half-written files of", &discarded))?;
    Ok(())
}

/// Recovers every database below `dbs`.
pub(super) fn databases(
    layout: &Layout,
    shared: &Arc<Shared>,
) -> Result<BTreeMap<DbName, Arc<Database>>, StoreError> {
    let mut found = BTreeMap::new();
    let mut directories = vec![(layout.dbs(), String::new())];
    while let Some((dir, prefix)) = directories.pop() {
        for entry in fs::read_dir(&dir).map_err(failed("reading", &dir))? {
            let entry = entry.map_err(failed("reading", &dir))?;
            let (path, file_name) = (entry.path(), entry.file_name());
            if !path.is_dir() {
                // A super-journal of a transaction that did not end: its databases never got any of it.
                fs::remove_file(&path).map_err(failed("removing", &path))?;
                continue;
            }
            let Some(text) = file_name.to_str() else { continue };
            let name = if prefix.is_empty() { text.to_owned() } else { format!("{prefix}/{text}") };
            if path.join("database").is_file() {
                let db = DbName::new(&name)
                    .map_err(|error| StoreError::Fatal(format!("{}: {error}", path.display())))?;
                found.insert(db.clone(), recover(layout, db, shared)?);
            } else {
                directories.push((path, name));
            }
        }
    }
    Ok(found)
}

/// The table of names. A data directory of a version that had none gets one with what its files say.
pub(super) fn names(
    layout: &Layout,
    found: &BTreeMap<DbName, Arc<Database>>,
) -> Result<Namespace, StoreError> {
    if let Some(names) = Namespace::open(&layout.names())? {
        return Ok(names);
    }
    let names = Namespace::empty(layout.names());
    let entry = |path: &Path| -> Result<NameEntry, StoreError> {
        let metadata = fs::metadata(path).map_err(failed("reading", path))?;
        let attributes = Attributes::new(metadata.uid(), metadata.gid(), metadata.mode());
        let changed_ms = metadata.ctime().saturating_mul(1000);
        Ok(NameEntry { attributes, changed_ms, index: LogIndex::ZERO })
    };
    for name in found.keys() {
        let file = layout.database(name).path(FileKind::Database);
        names.set(&MountPath::Database(name.clone()), entry(&file)?);
    }
    for name in directories(layout)? {
        let dir = layout.dbs().join(name.as_str());
        names.set(&MountPath::Directory(name), entry(&dir)?);
    }
    Ok(names)
}

/// The directories below `dbs` that are no databases.
fn directories(layout: &Layout) -> Result<Vec<DbName>, StoreError> {
    let (mut all, mut unread) = (Vec::new(), vec![(layout.dbs(), String::new())]);
    while let Some((dir, prefix)) = unread.pop() {
        for entry in fs::read_dir(&dir).map_err(failed("reading", &dir))? {
            let entry = entry.map_err(failed("reading", &dir))?;
            let path = entry.path();
            let Some(text) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let name = if prefix.is_empty() { text } else { format!("{prefix}/{text}") };
            if path.is_dir() && !path.join("database").is_file() {
                all.extend(DbName::new(&name));
                unread.push((path, name));
            }
        }
    }
    Ok(all)
}

/// Compares databases with their checksums in the background. A replica's damaged one is fetched again with the next
/// change; a voter's is named in the log, for its operator to restore.
pub(super) fn scrub(databases: Vec<Arc<Database>>, access: Access) -> Result<(), StoreError> {
    let work = move || {
        for database in databases {
            match database.scrub() {
                Ok(None) => {}
                Ok(Some(pgno)) => {
                    let why = format!("page {pgno} on disk is not what was written; it is fetched again");
                    let error = DbError::Corrupt { db: database.name().clone(), why };
                    if access == Access::ReadOnly {
                        database.fail(&error);
                    } else {
                        tracing::error!(db = %database.name(), %pgno, "a page on disk is not what was written; restore the database from a replica: skein db export, skein db import");
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot compare a database with its checksums"),
            }
        }
    };
    std::thread::Builder::new()
        .name("skein-scrub".into())
        .spawn(work)
        .map(|_| ())
        .map_err(|source| StoreError::Io { what: "starting the scrubber".into(), source })
}

/// A database that did not exist before.
pub(super) fn make(
    layout: &Layout,
    name: &DbName,
    shared: &Arc<Shared>,
) -> Result<Arc<Database>, StoreError> {
    let files = layout.database(name);
    let dir = files.dir();
    let parent_is_database = dir
        .ancestors()
        .skip(1)
        .take_while(|dir| *dir != layout.dbs())
        .any(|dir| dir.join("database").is_file());
    if parent_is_database {
        return Err(StoreError::Invalid(format!(
            "database {name}: a database is in the place of its directory"
        )));
    }
    fs::create_dir_all(dir).map_err(failed("creating", dir))?;
    let database = files.path(FileKind::Database);
    fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        // Who may read it is for the mount to say; nobody else gets at the file.
        .mode(0o600)
        .open(&database)
        .map_err(failed("creating", &database))?;
    recover(layout, name.clone(), shared)
}

fn recover(layout: &Layout, name: DbName, shared: &Arc<Shared>) -> Result<Arc<Database>, StoreError> {
    let files: DbFiles = layout.database(&name);
    Ok(Database::recover(name, files, shared.clone())?)
}
