//! Errors of the layers above as error numbers, chosen so that SQLite's own message is the clearest, and logged here.

use std::io;

use fuser::Errno;

use crate::db::DbError;
use crate::io::log_rate_limit;
use crate::store::StoreError;

/// What an application was doing when it was refused; SQLite reports the same number differently for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Doing {
    /// Opening a file that exists.
    Open,
    /// Creating a file; EACCES for a journal becomes "attempt to write a readonly database".
    Create,
    /// Writing.
    Write,
    /// Cutting or extending.
    Truncate,
    /// Making durable.
    Sync,
    /// Removing.
    Unlink,
    /// Renaming.
    Rename,
    /// Sending a whole database file.
    Upload,
    /// Changing owner, group or permissions.
    Attributes,
    /// Reading or looking up.
    Read,
}

impl Doing {
    fn name(self) -> &'static str {
        match self {
            Doing::Open => "open",
            Doing::Create => "create",
            Doing::Write => "write",
            Doing::Truncate => "truncate",
            Doing::Sync => "fsync",
            Doing::Unlink => "unlink",
            Doing::Rename => "rename",
            Doing::Upload => "upload",
            Doing::Attributes => "change attributes of",
            Doing::Read => "read",
        }
    }
}

/// Logs why `path` is refused to an application and gives the number to answer with.
pub(super) fn refuse(path: &str, doing: Doing, errno: Errno, why: impl std::fmt::Display) -> Errno {
    let why = why.to_string();
    if let Some(suppressed) = log_rate_limit::due((path, doing.name(), &why)) {
        tracing::info!(path, operation = doing.name(), errno = errno.code(), suppressed, "refused: {why}");
    }
    errno
}

/// The number for a failed system call on a backing file, logged.
pub(super) fn of_io(path: &str, doing: Doing, error: &io::Error) -> Errno {
    let errno = number(error);
    tracing::warn!(path, operation = doing.name(), errno = errno.code(), "failed: {error}");
    errno
}

/// The number for an error of a database, logged.
pub(super) fn of_db(path: &str, doing: Doing, error: &DbError) -> Errno {
    let errno = db_number(doing, error);
    refused(path, doing, errno, &error.to_string());
    errno
}

/// The number for an error of the store, logged.
pub(super) fn of_store(path: &str, doing: Doing, error: &StoreError) -> Errno {
    let errno = match error {
        StoreError::Db(error) => db_number(doing, error),
        StoreError::NotFound(_) => Errno::ENOENT,
        StoreError::Exists(_) => Errno::EEXIST,
        StoreError::NotEmpty(_) => Errno::ENOTEMPTY,
        StoreError::NotPrimary(_) if doing == Doing::Create => Errno::EACCES,
        StoreError::NotPrimary(_) => Errno::EROFS,
        StoreError::Refused { .. } | StoreError::Unknown { .. } => Errno::EIO,
        StoreError::Invalid(_) => Errno::EINVAL,
        StoreError::Fatal(_) => Errno::EIO,
        StoreError::Io { source, .. } => number(source),
    };
    refused(path, doing, errno, &error.to_string());
    errno
}

fn refused(path: &str, doing: Doing, errno: Errno, why: &str) {
    if let Some(suppressed) = log_rate_limit::due((path, doing.name(), why)) {
        tracing::warn!(path, operation = doing.name(), errno = errno.code(), suppressed, "refused: {why}");
    }
}

/// The number of a system error as it is: "disk full" must stay ENOSPC for SQLite to say so.
fn number(error: &io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(0))
}

fn db_number(doing: Doing, error: &DbError) -> Errno {
    match error {
        DbError::NotPrimary(_) => match doing {
            Doing::Open | Doing::Create | Doing::Upload => Errno::EACCES,
            Doing::Unlink | Doing::Rename | Doing::Truncate | Doing::Attributes => Errno::EROFS,
            Doing::Write | Doing::Sync | Doing::Read => Errno::EIO,
        },
        DbError::Conflict { .. } => Errno::EBUSY,
        DbError::Unavailable { .. } | DbError::Corrupt { .. } => Errno::EIO,
        DbError::Invalid { .. } => Errno::EINVAL,
        DbError::Io { source, .. } => number(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::DbName;

    fn db() -> DbName {
        DbName::new("app.db").unwrap()
    }

    #[test]
    fn a_full_disk_stays_a_full_disk() {
        let full = || io::Error::from_raw_os_error(nix::libc::ENOSPC);
        let error = DbError::Io { db: db(), what: "writing".into(), source: full() };
        assert_eq!(of_db("app.db", Doing::Write, &error), Errno::ENOSPC);
        let error = StoreError::Io { what: "writing".into(), source: full() };
        assert_eq!(of_store("app.db", Doing::Write, &error), Errno::ENOSPC);
    }

    #[test]
    fn a_node_that_is_not_primary_refuses_creation_with_eacces_and_commits_with_eio() {
        let error = DbError::NotPrimary(db());
        assert_eq!(of_db("app.db-journal", Doing::Create, &error), Errno::EACCES);
        assert_eq!(of_db("app.db-wal", Doing::Sync, &error), Errno::EIO);
        assert_eq!(of_db("app.db", Doing::Unlink, &error), Errno::EROFS);
    }

    #[test]
    fn an_error_without_a_number_is_an_input_output_error() {
        let error = DbError::Io { db: db(), what: "reading".into(), source: io::Error::other("cut short") };
        assert_eq!(of_db("app.db", Doing::Read, &error), Errno::EIO);
        assert_eq!(
            of_db("a", Doing::Rename, &DbError::Conflict { db: db(), why: "open".into() }),
            Errno::EBUSY
        );
    }
}
