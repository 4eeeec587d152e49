//! Transactions over several databases under a rollback journal: which super-journal a journal names, and whether it is
//! on this mount.
//!
//! SQLite commits such a transaction by removing the super-journal, and ignores whatever fails after that. So it counts
//! as one only where the daemon sees that removal; else the commit must fail before it. Paths do not tell: an
//! application may see the mount under another one (a bind mount, a container's volume).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::sync::Arc;

use super::database::Database;
use super::{DbError, Done, FileKind};
use crate::io::read_or_zero;
use crate::sqlite::journal;

impl Database {
    /// Whether a transaction under way here is a part of the one that the removal of a super-journal commits. `content` is
    /// what the super-journal holds.
    pub(crate) fn is_member_of(&self, super_journal: &OsStr, content: &[u8]) -> bool {
        let name = self.name().as_str().rsplit('/').next().unwrap_or_default();
        let own = OsString::from(format!("{name}-journal"));
        self.database_bytes().is_some()
            && self.super_journal().ok().flatten().is_some_and(|named| named == super_journal)
            && journal::journals_of_super_journal(content).any(|path| path.file_name() == Some(&own))
    }

    /// Refuses a transaction that would be committed where the daemon does not see it, before `data` is written at
    /// `offset` of `file`. What a transaction is rolled back with is what the file has.
    pub(super) fn check_first_write(&self, file: &File, offset: u64, data: &[u8]) -> Result<(), DbError> {
        let fail = |source| self.io_error("reading the journal", source);
        let Some(name) = self.foreign_super_journal().map_err(fail)? else { return Ok(()) };
        let mut present = vec![0; data.len()];
        read_or_zero(file, offset, &mut present).map_err(fail)?;
        if present == data { Ok(()) } else { Err(self.foreign_main(&name)) }
    }

    /// The same for all that is staged, before it is synced.
    pub(super) fn check_staged(self: &Arc<Self>, done: Done) {
        match self.foreign_super_journal() {
            Ok(None) => done(Ok(())),
            Err(source) => done(Err(self.io_error("reading the journal", source))),
            Ok(Some(name)) => self.off_thread(done, move |database, done| {
                let differs = File::open(database.files().path(FileKind::Database))
                    .and_then(|file| database.overlay.differs_from(&file));
                done(match differs {
                    Ok(false) => Ok(()),
                    Ok(true) => Err(database.foreign_main(&name)),
                    Err(source) => Err(database.io_error("comparing a transaction", source)),
                });
            }),
        }
    }

    fn foreign_main(&self, super_journal: &OsStr) -> DbError {
        self.invalid(format!(
            "is changed together with a main database that is not on this mount ({} is not here), so that the \
             transaction could not be committed as a whole; open a database on the mount first and attach the other one",
            super_journal.to_string_lossy()
        ))
    }

    /// Name of the super-journal that the journal names, where that is not on this mount.
    fn foreign_super_journal(&self) -> io::Result<Option<OsString>> {
        Ok(self.super_journal()?.filter(|name| !self.shared.super_journals.contains(name)))
    }

    /// Name of the super-journal that the journal names at its end.
    fn super_journal(&self) -> io::Result<Option<OsString>> {
        let mut file = match File::open(self.files().path(FileKind::Journal)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let named = journal::super_journal_name(&mut file)?;
        Ok(named.and_then(|path| path.file_name().map(OsStr::to_owned)))
    }
}
