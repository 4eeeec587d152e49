//! The directory of databases as it is on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Layout, StoreError};
use crate::db::{Database, DbFiles, FileKind, Shared};
use crate::types::DbName;

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let what = format!("{what} {}", path.display());
    move |source| StoreError::Io { what, source }
}

/// Makes the directories and empties `tmp`.
pub(super) fn prepare(layout: &Layout) -> Result<(), StoreError> {
    let tmp = layout.tmp();
    match fs::remove_dir_all(&tmp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("emptying", &tmp)(error)),
        _ => {}
    }
    for dir in [layout.dbs(), tmp] {
        fs::create_dir_all(&dir).map_err(failed("creating", &dir))?;
    }
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
        .open(&database)
        .map_err(failed("creating", &database))?;
    recover(layout, name.clone(), shared)
}

fn recover(layout: &Layout, name: DbName, shared: &Arc<Shared>) -> Result<Arc<Database>, StoreError> {
    let files: DbFiles = layout.database(&name);
    let beside = files.dir().parent().map(Path::to_path_buf);
    let super_journal = |path: &str| match (&beside, Path::new(path).file_name()) {
        // Its name is a path below the mount of then; the file itself is beside the database's directory, or
        // beside another database of the same transaction.
        (Some(_), Some(file)) => find_file(&layout.dbs(), file),
        _ => false,
    };
    Ok(Database::recover(name, files, shared.clone(), &super_journal)?)
}

fn find_file(dir: &Path, name: &std::ffi::OsStr) -> bool {
    let Ok(entries) = fs::read_dir(dir) else { return false };
    entries.flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            !path.join("database").is_file() && find_file(&path, name)
        } else {
            entry.file_name() == name
        }
    })
}
