use std::io;

use crate::types::DbName;

/// What can go wrong with one database, a variant per reaction.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// This node may not write; ask the primary.
    #[error("database {0}: this node is not primary")]
    NotPrimary(DbName),
    /// Somebody else holds what this needs; close it or try again.
    #[error("database {db}: {why}")]
    Conflict {
        /// The database.
        db: DbName,
        /// Who holds what.
        why: String,
    },
    /// The log cannot take or confirm the change now; its fate may be unknown.
    #[error("database {db}: {why}")]
    Unavailable {
        /// The database.
        db: DbName,
        /// What is missing.
        why: String,
    },
    /// The caller's data or request is not acceptable.
    #[error("database {db}: {why}")]
    Invalid {
        /// The database.
        db: DbName,
        /// What is wrong, and the remedy.
        why: String,
    },
    /// Stored bytes are not what they must be; resync repairs it.
    #[error("database {db}: {why}")]
    Corrupt {
        /// The database.
        db: DbName,
        /// Which bytes.
        why: String,
    },
    /// A system call failed.
    #[error("database {db}: {what}: {source}")]
    Io {
        /// The database.
        db: DbName,
        /// What was being done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl DbError {
    /// The same error for another waiter; an I/O error keeps its number.
    pub(crate) fn duplicate(&self) -> Self {
        match self {
            DbError::NotPrimary(db) => DbError::NotPrimary(db.clone()),
            DbError::Conflict { db, why } => DbError::Conflict { db: db.clone(), why: why.clone() },
            DbError::Unavailable { db, why } => DbError::Unavailable { db: db.clone(), why: why.clone() },
            DbError::Invalid { db, why } => DbError::Invalid { db: db.clone(), why: why.clone() },
            DbError::Corrupt { db, why } => DbError::Corrupt { db: db.clone(), why: why.clone() },
            DbError::Io { db, what, source } => {
                let source = match source.raw_os_error() {
                    Some(number) => io::Error::from_raw_os_error(number),
                    None => io::Error::new(source.kind(), source.to_string()),
                };
                DbError::Io { db: db.clone(), what: what.clone(), source }
            }
        }
    }
}
