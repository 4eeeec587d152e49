use std::io;
use std::path::PathBuf;

/// What can go wrong with the log's files.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// A system call failed.
    #[error("{what} {path}: {text}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        text: String,
        /// The error's number, 0 where it has none.
        errno: i32,
    },
    /// Bytes that were durable are not what was written.
    #[error(
        "{path} is damaged at byte {offset}: {why}; restore the file, or empty the data directory and join the cluster again"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// The file is of a newer program.
    #[error("{path} has format version {version}, this program knows 1; use a newer program")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// A file that is none of the log's.
    #[error("{0} is not a file of the log; move it elsewhere")]
    Foreign(PathBuf),
    /// An earlier write failed: what the disk holds since then is not known.
    #[error("the log takes no more entries after an error: {0}; restart the node")]
    Poisoned(String),
    /// The entry is not here (any more).
    #[error("log entry {0} is not here")]
    Missing(u64),
}

impl LogError {
    pub(super) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            what,
            path,
            errno: source.raw_os_error().unwrap_or(0),
            text: source.to_string(),
        }
    }
}

impl From<LogError> for io::Error {
    fn from(error: LogError) -> Self {
        match &error {
            LogError::Corrupt { .. } => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
            LogError::Missing(_) => io::Error::new(io::ErrorKind::NotFound, error.to_string()),
            _ => io::Error::other(error.to_string()),
        }
    }
}
