use std::fs::File;
use std::sync::Arc;

use super::{Store, StoreError};
use crate::db::{Database, DbError, Done, FileKind, StagedFile};
use crate::sqlite::header;
use crate::types::{Access, DbName};

/// A database file being written by something other than SQLite, to become the database's content when it is complete.
///
/// Nothing of it is visible to others before [`Upload::finish`]; dropped without it, it leaves no trace.
pub struct Upload {
    store: Arc<Store>,
    name: DbName,
    /// `None` for a file that has no name any more: a temporary one, which only its writer ever sees.
    database: Option<Arc<Database>>,
    staged: StagedFile,
}

impl Store {
    /// Starts replacing a database's content by a file (`cp` into the mount, HTTP import).
    ///
    /// # Errors
    /// `NotPrimary` where this node may not write; `Io` where no file can be made.
    pub fn upload(self: &Arc<Self>, name: &DbName) -> Result<Upload, StoreError> {
        self.stage(name, |database| {
            let staged = StagedFile::empty(&self.layout.tmp());
            staged.map_err(|source| receiving(database.name(), source))
        })
    }

    /// Starts changing a database's content in places (`dd conv=notrunc`, `rsync --inplace`).
    ///
    /// # Errors
    /// `NotPrimary` where this node may not write; `Io` where the file cannot be read.
    pub fn rewrite(self: &Arc<Self>, name: &DbName) -> Result<Upload, StoreError> {
        self.stage(name, |database| {
            let file = File::open(database.files().path(FileKind::Database));
            let file = file.map_err(|source| receiving(database.name(), source))?;
            Ok(StagedFile::on(file, &self.layout.tmp()))
        })
    }

    /// Starts writing to a file that was unlinked before.
    ///
    /// # Errors
    /// Where no file can be made.
    pub fn nameless(self: &Arc<Self>, name: &DbName) -> Result<Upload, StoreError> {
        let staged = StagedFile::empty(&self.layout.tmp()).map_err(|source| receiving(name, source))?;
        Ok(Upload { store: self.clone(), name: name.clone(), database: None, staged })
    }

    /// Removes, everywhere, a database without content: one that was made for a file which was refused.
    pub fn forget_if_empty(self: &Arc<Self>, database: &Arc<Database>) {
        if database.pos().txid.is_some() || database.attached() {
            return;
        }
        let db = database.name().clone();
        let dropped: Done = Box::new(move |dropped| {
            if let Err(error) = dropped {
                tracing::warn!(%db, %error, "cannot remove an empty database");
            }
        });
        self.drop_empty(database, dropped);
    }

    fn stage(
        self: &Arc<Self>,
        name: &DbName,
        staged: impl FnOnce(&Arc<Database>) -> Result<StagedFile, StoreError>,
    ) -> Result<Upload, StoreError> {
        self.limits().check_space().map_err(|source| receiving(name, source))?;
        let database = self.create(name)?;
        let staged = staged(&database)?;
        Ok(Upload { store: self.clone(), name: name.clone(), database: Some(database), staged })
    }
}

fn receiving(db: &DbName, source: std::io::Error) -> StoreError {
    StoreError::Io { what: format!("receiving database {db}"), source }
}

impl Upload {
    /// The database that will have the content.
    pub fn name(&self) -> &DbName {
        &self.name
    }

    /// Writes a part; one at the beginning must be that of a SQLite header.
    ///
    /// # Errors
    /// `Invalid` where it is not; `Io` where the disk is full.
    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        if offset == 0 && self.database.is_some() {
            let known = data.len().min(header::MAGIC.len());
            if data[..known] != header::MAGIC[..known] {
                let why = "is no SQLite database (its first bytes are not a database header); keep other files elsewhere".into();
                return Err(DbError::Invalid { db: self.name().clone(), why }.into());
            }
        }
        self.staged.write_at(offset, data).map_err(|source| receiving(self.name(), source))
    }

    /// Cuts or extends what was received.
    pub fn set_len(&mut self, size: u64) {
        self.staged.set_len(size);
    }

    /// Reads what was received, on top of what it changes; returns how much there was.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn read_at(&self, offset: u64, data: &mut [u8]) -> std::io::Result<usize> {
        self.staged.read_at(offset, data)
    }

    /// Size in bytes of the file as its writer sees it.
    ///
    /// # Errors
    /// Where the file's attributes cannot be read.
    pub fn size_bytes(&self) -> std::io::Result<u64> {
        self.staged.size_bytes()
    }

    /// Whether it would be taken as it is.
    pub fn is_complete(&self) -> bool {
        self.staged.as_database().is_ok()
    }

    /// Gives up; a database that was made for it goes.
    pub fn discard(self) {
        if let Some(database) = self.database.as_ref().filter(|database| !database.is_dropped()) {
            self.store.forget_if_empty(database);
        }
    }

    /// Checks the file and makes it the database's content, as one log entry. Answers when that is durable. A file that was
    /// cut to nothing is for SQLite a new database, and that is what the database becomes.
    pub fn finish(self, done: Done) {
        let Upload { store, database, mut staged, .. } = self;
        // Of a file that was unlinked meanwhile nothing is left.
        let Some(database) = database.filter(|database| staged.is_changed() && !database.is_dropped()) else {
            return done(Ok(()));
        };
        if store.access() != Access::Write {
            store.forget_if_empty(&database);
            return done(Err(DbError::NotPrimary(database.name().clone())));
        }
        let empty = staged.size_bytes().is_ok_and(|size| size == 0);
        if empty && database.pos().txid.is_none() {
            // An empty file is an empty database, which is no change.
            return done(Ok(()));
        }
        if empty && let Err(source) = staged.begin_new_database(database.size().0) {
            let what = "emptying".into();
            return done(Err(DbError::Io { db: database.name().clone(), what, source }));
        }
        database.clone().import(
            staged,
            Box::new(move |answer| {
                if answer.is_err() {
                    store.forget_if_empty(&database);
                }
                done(answer);
            }),
        );
    }
}
