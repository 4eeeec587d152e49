use std::io;

use crate::db::DbError;

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
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}
