use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::HistoryError;
use crate::types::{DbName, LogIndex};

/// The directory of a database's generations: no database can have this name, nor be in a directory of it.
const GENERATIONS: &str = ".history";

/// Where a database's generations are, below `root`.
pub(super) fn of(root: &Path, db: &DbName) -> PathBuf {
    root.join(db.as_str()).join(GENERATIONS)
}

/// Where the generation is that begins with an entry.
pub(super) fn generation(root: &Path, db: &DbName, begin: LogIndex) -> PathBuf {
    of(root, db).join(format!("{:016x}", begin.get()))
}

/// All generations there are, oldest first: database, directory.
///
/// # Errors
/// Where a directory cannot be read.
pub(super) fn all(root: &Path) -> Result<Vec<(DbName, PathBuf)>, HistoryError> {
    let (mut found, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).map_err(HistoryError::io("reading", &dir))? {
            let path = entry.map_err(HistoryError::io("reading", &dir))?.path();
            if !path.is_dir() {
                continue;
            }
            if path.file_name().is_some_and(|name| name == GENERATIONS) {
                let name = dir.strip_prefix(root).ok().and_then(Path::to_str);
                let Some(db) = name.and_then(|name| DbName::new(name).ok()) else { continue };
                for generation in fs::read_dir(&path).map_err(HistoryError::io("reading", &path))? {
                    let generation = generation.map_err(HistoryError::io("reading", &path))?;
                    found.push((db.clone(), generation.path()));
                }
            } else {
                open.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Removes a generation, and the directories that are empty then.
///
/// # Errors
/// Where it cannot be removed.
pub(super) fn remove(root: &Path, dir: &Path) -> Result<(), HistoryError> {
    // What the database is goes first: a half-removed one is then none.
    for file in [dir.join("generation")] {
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(HistoryError::io("removing", &file)(error));
            }
            _ => {}
        }
    }
    fs::remove_dir_all(dir).map_err(HistoryError::io("removing", dir))?;
    tidy(root, dir);
    Ok(())
}

/// Gives the generations in `from` to another database.
///
/// # Errors
/// Where one cannot be renamed.
pub(super) fn rename(root: &Path, from: &Path, to: &Path) -> Result<(), HistoryError> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(HistoryError::io("making", parent))?;
    }
    fs::rename(from, to).map_err(HistoryError::io("renaming", from))?;
    tidy(root, from);
    Ok(())
}

/// Removes the directories above `dir` that are empty.
fn tidy(root: &Path, dir: &Path) {
    let above = dir.ancestors().skip(1).take_while(|above| *above != root);
    // The first that has something in it stays, and so do those above it.
    for empty in above {
        if fs::remove_dir(empty).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_are_found_by_database_and_leave_no_directories_behind() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let name = |name: &str| DbName::new(name).unwrap();
        let (a, b) = (name("app.db"), name("sub/.b"));
        let made: Vec<PathBuf> = [(&a, 9), (&a, 17), (&b, 3)]
            .iter()
            .map(|(db, index)| generation(root, db, LogIndex::new(*index)))
            .collect();
        for path in &made {
            fs::create_dir_all(path).unwrap();
            fs::write(path.join("generation"), "x").unwrap();
        }
        let expected: Vec<_> = [&a, &a, &b].into_iter().cloned().zip(made.clone()).collect();
        assert_eq!(all(root).unwrap(), expected);
        let to = generation(root, &name("c"), LogIndex::new(3));
        rename(root, &made[2], &to).unwrap();
        assert!(!root.join("sub").exists());
        remove(root, &to).unwrap();
        remove(root, &made[0]).unwrap();
        assert_eq!(all(root).unwrap(), [(a, made[1].clone())]);
    }
}
