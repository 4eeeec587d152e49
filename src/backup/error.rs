use std::io;

use crate::db::DbError;
use crate::ltx::LtxError;
use crate::store::StoreError;

/// What can go wrong between a cluster and its bucket, a variant per reaction.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The bucket does not answer, or not now: try again.
    #[error("{what}: {why}")]
    Unavailable {
        /// What was being done, with the object.
        what: String,
        /// What the bucket or the network says.
        why: String,
    },
    /// There is no such object, database or point; the text says what there is.
    #[error("{0}")]
    NotFound(String),
    /// Somebody else has written the object since it was read: read it again.
    #[error("{0} was changed by another writer")]
    Conflict(String),
    /// The path in the bucket belongs to somebody else; the text names him and the remedy.
    #[error("{0}")]
    Foreign(String),
    /// The request or the configuration is not acceptable; the text says why.
    #[error("{0}")]
    Invalid(String),
    /// What is in the bucket is damaged; the text names the object.
    #[error("{0}")]
    Corrupt(String),
    /// A file of this machine cannot be read or written.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The cluster's own database cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BackupError {
    /// A failed call on a file of this machine.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// A change-set file in the bucket that is not what it should be.
    pub(super) fn ltx(object: &str, error: LtxError) -> Self {
        match error {
            LtxError::Io { source, .. } => Self::Io { what: format!("object {object}"), source },
            error => Self::Corrupt(format!("object {object}: {error}")),
        }
    }

    /// Whether the same may succeed later without anybody's doing.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Conflict(_) | Self::Io { .. })
    }
}

impl From<DbError> for BackupError {
    fn from(error: DbError) -> Self {
        Self::Store(error.into())
    }
}
