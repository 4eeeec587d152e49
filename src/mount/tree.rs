//! What the mount shows: which files and directories exist, and where the backing files are.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::names::{self, Target, join};
use crate::db::{DbFiles, FileKind};
use crate::store::{Child, Store};
use crate::types::DbName;

/// The directory `dbs/`, see [`Layout::dbs`](crate::store::Layout::dbs) for its shape, and the store, which knows what the
/// directories are.
#[derive(Clone)]
pub(super) struct Tree {
    dbs: PathBuf,
    store: Arc<Store>,
}

/// Identity of a backing file: a file removed and made again is another one, even where the file system gives it the
/// same number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Incarnation {
    device: u64,
    number: u64,
    born: Option<SystemTime>,
}

impl Incarnation {
    /// The identity of the file these are the attributes of.
    pub fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), number: metadata.ino(), born: metadata.created().ok() }
    }

    /// Its inode number in the data directory.
    pub fn inode(&self) -> u64 {
        self.number
    }
}

impl Tree {
    /// The tree of a store.
    pub fn new(store: Arc<Store>) -> Self {
        Self { dbs: store.layout().dbs(), store }
    }

    /// The tree's directory.
    pub fn root(&self) -> &Path {
        &self.dbs
    }

    /// The backing file or directory, `None` for control files, which have none.
    pub fn backing(&self, target: &Target) -> Option<PathBuf> {
        match target {
            Target::Directory(path) | Target::SuperJournal(path) | Target::Temporary(path) => {
                Some(self.dbs.join(path))
            }
            Target::File(db, kind) => Some(self.files(db).path(*kind)),
            Target::Pos(_)
            | Target::Lock(_)
            | Target::Primary
            | Target::Lag
            | Target::History(_)
            | Target::Point(_) => None,
        }
    }

    /// The files of a database.
    pub fn files(&self, db: &DbName) -> DbFiles {
        DbFiles::new(self.dbs.join(db.as_str()))
    }

    /// Attributes of the backing file, `None` where there is none.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn metadata(&self, target: &Target) -> io::Result<Option<Metadata>> {
        let Some(path) = self.backing(target) else { return Ok(None) };
        match fs::symlink_metadata(path) {
            Ok(metadata) => {
                let directory = matches!(target, Target::Directory(_));
                Ok((metadata.is_dir() == directory && (directory || metadata.is_file())).then_some(metadata))
            }
            Err(error) if absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether there is such a database.
    pub fn has_database(&self, db: &DbName) -> bool {
        self.files(db).path(FileKind::Database).is_file()
    }

    /// What `name` in the directory `parent` is, if it exists; `.primary` is for the caller to judge.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn find(&self, parent: &str, name: &str) -> io::Result<Option<Target>> {
        let path = join(parent, name);
        let Ok(target) = names::classify(&path) else { return Ok(None) };
        let found = match &target {
            Target::Primary | Target::Lag => true,
            Target::Pos(db) | Target::Lock(db) => self.has_database(db),
            Target::File(db, FileKind::Database) => {
                let database = self.has_database(db);
                if !database && self.store.is_directory(&path) {
                    return Ok(Some(Target::Directory(path)));
                }
                database
            }
            _ => self.metadata(&target)?.is_some(),
        };
        Ok(found.then_some(target))
    }

    /// What a directory shows, by name: subdirectories, databases with their side files, super-journals. Positions are
    /// opened by name only: whoever copies a directory could not write them back.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn list(&self, directory: &str) -> io::Result<Vec<(String, Target)>> {
        let mut listed = Vec::new();
        for child in self.store.children(directory) {
            match child {
                Child::Directory(name) => {
                    let path = join(directory, &name);
                    listed.push((name, Target::Directory(path)));
                }
                Child::Database(db) => self.list_one(db, &mut listed)?,
            }
        }
        self.list_super_journals(directory, &mut listed)?;
        listed.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(listed)
    }

    fn list_super_journals(&self, directory: &str, listed: &mut Vec<(String, Target)>) -> io::Result<()> {
        let entries = match fs::read_dir(self.dbs.join(directory)) {
            Ok(entries) => entries,
            // A directory in which there never was a database.
            Err(error) if absent(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if let Ok(target @ Target::SuperJournal(_)) = names::classify(&join(directory, &name))
                && entry.file_type()?.is_file()
            {
                listed.push((name, target));
            }
        }
        Ok(())
    }

    fn list_one(&self, db: DbName, listed: &mut Vec<(String, Target)>) -> io::Result<()> {
        let name = db.as_str().rsplit('/').next().unwrap_or(db.as_str()).to_owned();
        for kind in FileKind::ALL {
            let target = Target::File(db.clone(), kind);
            if self.metadata(&target)?.is_some() {
                listed.push((format!("{name}{}", kind.suffix()), target));
            }
        }
        Ok(())
    }

    /// Whether the database's header names WAL mode.
    pub fn is_wal(&self, db: &DbName) -> bool {
        // Bytes 18 and 19 of the header are the write and read version: 2 is WAL.
        let mut versions = [0; 2];
        File::open(self.files(db).path(FileKind::Database))
            .and_then(|file| file.read_exact_at(&mut versions, 18))
            .is_ok_and(|()| versions == [2, 2])
    }

    /// Whether a rollback journal is there that SQLite would take for hot: one whose first byte is not zero.
    pub fn has_hot_journal(&self, db: &DbName) -> bool {
        let mut first = [0; 1];
        File::open(self.files(db).path(FileKind::Journal))
            .and_then(|file| file.read_exact_at(&mut first, 0))
            .is_ok_and(|()| first != [0])
    }
}

/// Whether the error only says that there is no such file.
pub(super) fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::blobs::BlobStore;
    use crate::store::{Layout, StoreOptions};
    use crate::types::{Access, NodeId};

    /// A store with the databases `app.db` and `sub/other`, and its directory `dbs`.
    fn tree() -> (tempfile::TempDir, PathBuf, Tree) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_path_buf());
        let dbs = layout.dbs();
        for database in ["app.db", "sub/other"] {
            fs::create_dir_all(dbs.join(database)).unwrap();
            fs::write(dbs.join(database).join("database"), b"").unwrap();
        }
        let blobs = Arc::new(BlobStore::open(layout.blobs()).unwrap());
        let options = StoreOptions {
            layout,
            node: NodeId::new(1),
            access: Access::Fenced,
            blobs,
            held_files: Default::default(),
        };
        let tree = Tree::new(Store::open(options).unwrap());
        fs::write(dbs.join("app.db/database-wal"), b"").unwrap();
        fs::write(dbs.join("app.db-mj0000009FF9"), b"").unwrap();
        fs::write(dbs.join("app.db-mj00ABCD9F0"), b"").unwrap();
        (dir, dbs, tree)
    }

    #[test]
    fn a_directory_shows_databases_side_files_and_subdirectories_but_no_positions() {
        let (_dir, _dbs, tree) = tree();
        let names: Vec<String> = tree.list("").unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["app.db", "app.db-mj00ABCD9F0", "app.db-wal", "sub"]);
        let names: Vec<String> = tree.list("sub").unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["other"]);
    }

    #[test]
    fn the_files_inside_a_database_directory_cannot_be_reached() {
        let (_dir, _dbs, tree) = tree();
        assert_eq!(tree.find("app.db", "database").unwrap(), None);
        assert_eq!(tree.find("app.db", "pages").unwrap(), None);
        assert_eq!(tree.find("", "app.db-journal").unwrap(), None);
        assert_eq!(tree.find("", "nothing").unwrap(), None);
        assert_eq!(tree.find("", "sub").unwrap(), Some(Target::Directory("sub".into())));
        assert!(matches!(tree.find("", "app.db-wal").unwrap(), Some(Target::File(_, FileKind::Wal))));
    }

    #[test]
    fn a_file_made_again_is_another_incarnation() {
        let (_dir, dbs, tree) = tree();
        let wal = Target::File(DbName::new("app.db").unwrap(), FileKind::Wal);
        let before = Incarnation::of(&tree.metadata(&wal).unwrap().unwrap());
        assert_eq!(before, Incarnation::of(&tree.metadata(&wal).unwrap().unwrap()));
        let path = dbs.join("app.db/database-wal");
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"").unwrap();
        assert_ne!(before, Incarnation::of(&tree.metadata(&wal).unwrap().unwrap()));
    }

    #[test]
    fn the_header_and_the_journals_first_byte_decide() {
        let (_dir, dbs, tree) = tree();
        let db = DbName::new("app.db").unwrap();
        assert!(!tree.is_wal(&db) && !tree.has_hot_journal(&db));
        let mut header = vec![0; 100];
        header[18..20].copy_from_slice(&[2, 2]);
        fs::write(dbs.join("app.db/database"), &header).unwrap();
        fs::write(dbs.join("app.db/database-journal"), [0; 28]).unwrap();
        assert!(tree.is_wal(&db) && !tree.has_hot_journal(&db));
        fs::write(dbs.join("app.db/database-journal"), [0xd9; 28]).unwrap();
        assert!(tree.has_hot_journal(&db));
    }
}
