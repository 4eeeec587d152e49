use std::path::PathBuf;

/// Why certificates or tokens are not usable; each names the subject and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// A file cannot be read.
    #[error("{what} {}: {source}", path.display())]
    Read {
        /// What it is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("writing {}: {why}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why, and the remedy.
        why: String,
    },
    /// What was read is not what it must be.
    #[error("{0}")]
    Invalid(String),
}
