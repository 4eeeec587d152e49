use bytes::Bytes;
use tokio::sync::watch;

use super::codec;
use super::segment_log::{LogError, LogReader};
use crate::store::{CommittedLog, LogReadError};
use crate::types::LogIndex;

/// The committed entries of this voter's log.
pub(super) struct RaftLog {
    entries: LogReader,
    shippable: watch::Receiver<LogIndex>,
}

impl RaftLog {
    /// The entries of `entries` up to what `shippable` says.
    pub fn new(entries: LogReader, shippable: watch::Receiver<LogIndex>) -> Self {
        Self { entries, shippable }
    }
}

impl CommittedLog for RaftLog {
    fn first_index(&self) -> LogIndex {
        LogIndex::new(self.entries.first_index())
    }

    fn applied(&self) -> watch::Receiver<LogIndex> {
        self.shippable.clone()
    }

    fn bytes_above(&self, index: LogIndex) -> u64 {
        self.entries.bytes_above(index.get())
    }

    fn read(&self, from: LogIndex, bytes_max: usize) -> Result<Vec<(LogIndex, Bytes)>, LogReadError> {
        let to = self.shippable.borrow().get() + 1;
        let purged = || LogReadError::Purged { from, first: self.first_index() };
        if from < self.first_index() {
            return Err(purged());
        }
        let entries = match self.entries.read(from.get(), to, bytes_max) {
            Ok(entries) => entries,
            Err(LogError::Missing(_)) => return Err(purged()),
            // Recycled between the look and the read.
            Err(_) if from < self.first_index() => return Err(purged()),
            Err(error) => return Err(LogReadError::Io(error.into())),
        };
        let change = |(index, bytes)| Ok((LogIndex::new(index), codec::change_of(bytes)?));
        entries.into_iter().map(change).collect()
    }
}
