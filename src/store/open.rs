//! The directory of databases as it is on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use super::log_positions::{LogPosition, LogPositions};
use super::namespace::Namespace;
use super::{Layout, NameEntry, NameList, StoreError};
use crate::db::{Database, DbFiles, FileKind, Shared};
use crate::io::durable;
use crate::types::{Attributes, DbName, LogIndex, MountPath};

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

/// Recovers every database below `dbs`. One whose file is in `held` goes on in a copy of it.
pub(super) fn databases(
    layout: &Layout,
    shared: &Arc<Shared>,
    held: &BTreeSet<u64>,
) -> Result<BTreeMap<DbName, Arc<Database>>, StoreError> {
    let mut found = BTreeMap::new();
    let mut directories = vec![(layout.dbs(), String::new())];
    while let Some((dir, prefix)) = directories.pop() {
        for entry in fs::read_dir(&dir).map_err(failed("reading", &dir))? {
            let entry = entry.map_err(failed("reading", &dir))?;
            let (path, file_name) = (entry.path(), entry.file_name());
            if !path.is_dir() {
                if dir.join("database").is_file() {
                    // One of the database's own.
                    continue;
                }
                // A super-journal of a transaction that did not end: its databases never got any of it.
                fs::remove_file(&path).map_err(failed("removing", &path))?;
                continue;
            }
            let Some(text) = file_name.to_str() else { continue };
            let name = if prefix.is_empty() { text.to_owned() } else { format!("{prefix}/{text}") };
            let is_database = path.join("database").is_file();
            if is_database {
                let db = DbName::new(&name)
                    .map_err(|error| StoreError::Fatal(format!("{}: {error}", path.display())))?;
                part_with_held(layout, &db, held)?;
                found.insert(db.clone(), recover(layout, db, shared)?);
            }
            directories.push((path, name));
        }
    }
    Ok(found)
}

/// Puts a copy in the place of a database file that processes have open through a mount of an earlier run, so that what
/// they read stays as it is, and what they may write goes nowhere.
fn part_with_held(layout: &Layout, db: &DbName, held: &BTreeSet<u64>) -> Result<(), StoreError> {
    let file = layout.database(db).path(FileKind::Database);
    let inode = fs::metadata(&file).map_err(failed("reading", &file))?.ino();
    if !held.contains(&inode) {
        return Ok(());
    }
    let bytes = durable::renew_inode(&file, &layout.tmp()).map_err(|source| {
        let what = format!(
            "copying database {db}, which applications have open through the mount of the last run (end them, make room \
             on the disk, or give --stale-mount wait)"
        );
        StoreError::Io { what, source }
    })?;
    tracing::info!(%db, bytes, "goes on in a copy of its file: applications of the last run keep the old one");
    Ok(())
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
    // From now on the table counts, also where a crash comes before it is written again.
    names.fill(NameList::default());
    names.make_durable(&layout.dbs())?;
    Ok(names)
}

/// What the log says of each database. A data directory of a version that did not write it down gets what the databases
/// themselves say.
pub(super) fn positions(
    layout: &Layout,
    found: &BTreeMap<DbName, Arc<Database>>,
) -> Result<LogPositions, StoreError> {
    if let Some(positions) = LogPositions::open(layout.positions())? {
        return Ok(positions);
    }
    let with_content = found.iter().filter(|(_, database)| database.pos().txid.is_some());
    let known = with_content
        .map(|(name, database)| (name.clone(), LogPosition { index: database.index(), pos: database.pos() }));
    Ok(LogPositions::of(layout.positions(), known.collect()))
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

/// A database that did not exist before; `end` is where the last one of that name ended in the log. Where it cannot be
/// made nothing is left of it: a file without a database would be shown, and could not be opened.
pub(super) fn make(
    layout: &Layout,
    name: &DbName,
    end: Option<LogIndex>,
    shared: &Arc<Shared>,
) -> Result<Arc<Database>, StoreError> {
    let files = layout.database(name);
    let dir = files.dir();
    clear_stale(layout, &files)?;
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
    let made = make_files(layout, name, shared).and_then(|database| {
        if let Some(end) = end {
            database.begin_behind(end)?;
        }
        Ok(database)
    });
    if made.is_err()
        && let Err(error) = fs::remove_dir_all(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, dir = %dir.display(), "cannot remove a database that could not be made");
    }
    made
}

fn make_files(layout: &Layout, name: &DbName, shared: &Arc<Shared>) -> Result<Arc<Database>, StoreError> {
    let files = layout.database(name);
    let dir = files.dir();
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

pub(super) fn recover(
    layout: &Layout,
    name: DbName,
    shared: &Arc<Shared>,
) -> Result<Arc<Database>, StoreError> {
    let files: DbFiles = layout.database(&name);
    Ok(Database::recover(name, files, shared.clone())?)
}

/// A database of that name is not in the set, so what is left of one was to be removed.
fn clear_stale(layout: &Layout, files: &DbFiles) -> Result<(), StoreError> {
    let stale = files.path(FileKind::Database);
    if !stale.is_file() {
        return Ok(());
    }
    let grave = tempfile::tempdir_in(layout.tmp()).map_err(failed("removing", files.dir()))?;
    fs::rename(files.dir(), grave.path().join("database")).map_err(failed("removing", files.dir()))?;
    grave.close().map_err(failed("removing", files.dir()))
}
