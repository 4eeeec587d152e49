use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::{Store, StoreError};
use crate::db::{Database, DbError, Done};
use crate::sqlite::header::{self, DatabaseHeader};
use crate::types::{Access, DbName};

/// A database file being received, to replace a database's content when it is complete.
///
/// Nothing of it is visible before [`Upload::finish`]; dropped without it, it leaves no trace.
pub struct Upload {
    store: Arc<Store>,
    database: Arc<Database>,
    spool: File,
    checked: bool,
}

impl Store {
    /// Starts replacing a database's content by a file (`cp` into the mount, HTTP import).
    ///
    /// # Errors
    /// `NotPrimary` where this node may not write; `Io` where no file can be made.
    pub fn upload(self: &Arc<Self>, name: &DbName) -> Result<Upload, StoreError> {
        let full = |source| StoreError::Io { what: format!("receiving database {name}"), source };
        self.limits().check_space().map_err(full)?;
        let database = self.create(name)?;
        let spool = tempfile::tempfile_in(self.layout.tmp())
            .map_err(|source| StoreError::Io { what: format!("receiving database {name}"), source })?;
        Ok(Upload { store: self.clone(), database, spool, checked: false })
    }
}

impl Upload {
    /// The database that will have the content.
    pub fn name(&self) -> &DbName {
        self.database.name()
    }

    /// Writes a part; the first must begin with a SQLite header where it starts at 0.
    ///
    /// # Errors
    /// `Invalid` where it does not; `Io` where the disk is full.
    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        if offset == 0 && !self.checked {
            let known = data.len().min(header::MAGIC.len());
            if data[..known] != header::MAGIC[..known] {
                let why = "is no SQLite database (its first bytes are not a database header); keep other files elsewhere".into();
                return Err(DbError::Invalid { db: self.name().clone(), why }.into());
            }
            self.checked = true;
        }
        self.spool
            .write_all_at(data, offset)
            .map_err(|source| StoreError::Io { what: format!("receiving database {}", self.name()), source })
    }

    /// Cuts or extends what was received.
    ///
    /// # Errors
    /// `Io` where that fails.
    pub fn set_len(&mut self, size: u64) -> Result<(), StoreError> {
        self.spool
            .set_len(size)
            .map_err(|source| StoreError::Io { what: format!("receiving database {}", self.name()), source })
    }

    /// Whether it would be taken as it is.
    pub fn is_complete(&self) -> bool {
        self.check().is_ok()
    }

    /// Checks the file and makes it the database's content, as one log entry. Answers when that is durable.
    pub fn finish(self, done: Done) {
        let database = self.database.clone();
        let check = self.check();
        let Upload { store, spool, .. } = self;
        match check {
            Err(error) => {
                forget_if_empty(&store, &database);
                done(Err(error));
            }
            Ok(None) => done(Ok(())),
            Ok(Some(header)) => database.clone().import(
                spool,
                header,
                Box::new(move |answer| {
                    if answer.is_err() {
                        forget_if_empty(&store, &database);
                    }
                    done(answer);
                }),
            ),
        }
    }

    /// `None` for an empty file that makes an empty database, which is no change.
    fn check(&self) -> Result<Option<DatabaseHeader>, DbError> {
        let db = self.name();
        let failed =
            |source| DbError::Io { db: db.clone(), what: "reading what was received".into(), source };
        let invalid = |why: String| DbError::Invalid { db: db.clone(), why };
        if self.store.access() != Access::Write {
            return Err(DbError::NotPrimary(db.clone()));
        }
        let size = self.spool.metadata().map_err(failed)?.len();
        if size == 0 && self.database.pos().txid.is_none() {
            return Ok(None);
        }
        let mut head = vec![0; usize::try_from(size.min(100)).unwrap_or(100)];
        self.spool.read_exact_at(&mut head, 0).map_err(failed)?;
        let header = DatabaseHeader::parse(&head)
            .map_err(|error| invalid(format!("is no SQLite database: {error}")))?;
        if size % header.page_size.bytes() != 0 {
            return Err(invalid(format!(
                "is cut short: {size} bytes are no multiple of its page size {}",
                header.page_size
            )));
        }
        let pages = size / header.page_size.bytes();
        match header.trusted_page_count() {
            Some(count) if u64::from(count.get()) != pages => {
                Err(invalid(format!("is cut short: {pages} pages, its header says {count}")))
            }
            _ if u32::try_from(pages).is_err() => Err(invalid(format!("has {pages} pages, too many"))),
            _ => Ok(Some(header)),
        }
    }
}

fn forget_if_empty(store: &Arc<Store>, database: &Arc<Database>) {
    if database.pos().txid.is_none()
        && !database.attached()
        && let Err(error) = store.forget(database.name())
    {
        tracing::warn!(db = %database.name(), %error, "cannot remove an empty database");
    }
}
