use std::io;
use std::path::Path;

use crate::ltx::LtxError;
use crate::store::StoreError;

/// What can go wrong with earlier states, a variant per reaction.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// There is no such point; the text says which there are.
    #[error("{0}")]
    NotFound(String),
    /// What is kept is damaged; the text names the file.
    #[error("{0}")]
    Corrupt(String),
    /// A call of the system failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The database itself cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl HistoryError {
    /// A failed call on a file of the history.
    pub(super) fn io(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let what = format!("{doing} {}", path.display());
        move |source| Self::Io { what, source }
    }

    /// A file of change sets that is not what it should be.
    pub(super) fn ltx(path: &Path, error: LtxError) -> Self {
        match error {
            LtxError::Io { source, .. } => Self::Io { what: path.display().to_string(), source },
            error => Self::Corrupt(format!("{}: {error}", path.display())),
        }
    }
}

impl From<HistoryError> for StoreError {
    fn from(error: HistoryError) -> Self {
        match error {
            HistoryError::NotFound(why) => Self::Invalid(why),
            HistoryError::Corrupt(why) => Self::Fatal(why),
            HistoryError::Io { what, source } => Self::Io { what, source },
            HistoryError::Store(error) => error,
        }
    }
}
