use bytes::Bytes;
use tokio::sync::watch;

use crate::types::LogIndex;

/// The committed entries of the cluster's log as this node holds them, to be shipped onward.
pub trait CommittedLog: Send + Sync + 'static {
    /// The oldest entry still here; older ones are only to be had as a snapshot.
    fn first_index(&self) -> LogIndex;

    /// The newest committed entry that this node has applied, as it moves.
    fn applied(&self) -> watch::Receiver<LogIndex>;

    /// Committed entries from `from` on, in order, until about `bytes_max` bytes (at least one where there is one).
    ///
    /// An entry is an encoded [`Change`](super::Change), or empty where the entry concerns no database.
    ///
    /// # Errors
    /// Where `from` is older than [`first_index`](Self::first_index), or the log cannot be read.
    fn read(&self, from: LogIndex, bytes_max: usize) -> Result<Vec<(LogIndex, Bytes)>, LogReadError>;

    /// Bytes of the entries above `index` and of the blobs they name; 0 where they are bounded to be few.
    fn bytes_above(&self, _index: LogIndex) -> u64 {
        0
    }
}

/// Why committed entries cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogReadError {
    /// The entries are gone; take a snapshot.
    #[error("log entry {from} is purged, the oldest is {first}")]
    Purged {
        /// What was asked for.
        from: LogIndex,
        /// What is left.
        first: LogIndex,
    },
    /// The log itself failed.
    #[error("reading the log: {0}")]
    Io(#[from] std::io::Error),
}
