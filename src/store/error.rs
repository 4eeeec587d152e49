use std::io;

use crate::db::DbError;
use crate::types::DbName;

/// What can go wrong with the set of databases.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// One database failed.
    #[error(transparent)]
    Db(#[from] DbError),
    /// There is no such database.
    #[error("database {0} does not exist")]
    NotFound(String),
    /// The request or the data is not acceptable; the text says why and what to do.
    #[error("{0}")]
    Invalid(String),
    /// The data directory is not usable; the text names the file and the remedy.
    #[error("{0}")]
    Fatal(String),
    /// Something of that name is there.
    #[error("{0}: something of that name exists")]
    Exists(String),
    /// A directory has something in it.
    #[error("directory {0} is not empty")]
    NotEmpty(String),
    /// This node may not write.
    #[error("{0}: this node is not primary")]
    NotPrimary(String),
    /// It is not in the log, and never will be.
    #[error("{subject}: {why}")]
    Refused {
        /// What was to be changed.
        subject: String,
        /// Why the log did not take it.
        why: String,
    },
    /// It may or may not be in the log.
    #[error("{subject}: outcome unknown: {why}")]
    Unknown {
        /// What was to be changed.
        subject: String,
        /// Why nobody can tell.
        why: String,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl StoreError {
    /// Whether a call of this node's system failed, which may succeed another time.
    pub(super) fn is_io(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Db(DbError::Io { .. }))
    }

    /// Something is in the place of a new name.
    pub(super) fn exists(path: &DbName) -> Self {
        Self::Exists(path.to_string())
    }

    /// A directory that is to go is not empty.
    pub(super) fn not_empty(path: &DbName) -> Self {
        Self::NotEmpty(path.to_string())
    }
}
