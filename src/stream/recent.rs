use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::watch;

use crate::store::{CommittedLog, LogReadError};
use crate::types::LogIndex;

/// The entries a replica received lately, kept in memory to be shipped onward.
///
/// Holds: entries are consecutive; their bytes stay below the bound (the newest entry is always kept); readers see
/// none above what was published.
pub struct RecentLog {
    ring: Mutex<Ring>,
    applied: watch::Sender<LogIndex>,
    bytes_max: usize,
}

struct Ring {
    first: LogIndex,
    entries: VecDeque<Bytes>,
    bytes: usize,
}

impl RecentLog {
    /// How much a replica keeps by default, in bytes.
    pub const BYTES_MAX: usize = 16 << 20;
    /// What an entry costs besides its bytes.
    const ENTRY_OVERHEAD: usize = 64;

    /// An empty ring behind entry `applied`.
    pub fn new(applied: LogIndex, bytes_max: usize) -> Self {
        let ring = Ring { first: applied.next(), entries: VecDeque::new(), bytes: 0 };
        Self { ring: Mutex::new(ring), applied: watch::Sender::new(applied), bytes_max }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Adds the next entry; not seen before it is published.
    pub(super) fn push(&self, index: LogIndex, entry: Bytes) {
        let mut ring = self.ring();
        if ring.next() != index {
            ring.restart(index);
        }
        ring.bytes += entry.len() + Self::ENTRY_OVERHEAD;
        // A copy: what arrived is a part of a larger buffer, which would be kept as a whole.
        ring.entries.push_back(Bytes::copy_from_slice(&entry));
        while ring.bytes > self.bytes_max && ring.entries.len() > 1 {
            let Some(old) = ring.entries.pop_front() else { break };
            ring.bytes -= old.len() + Self::ENTRY_OVERHEAD;
            ring.first = ring.first.next();
        }
    }

    /// Lets readers see everything up to `index`.
    pub(super) fn publish(&self, index: LogIndex) {
        self.applied.send_if_modified(|applied| {
            let moved = *applied < index;
            *applied = (*applied).max(index);
            moved
        });
    }

    /// Forgets everything: the databases now stand at `applied` by a snapshot.
    pub(super) fn restart(&self, applied: LogIndex) {
        self.ring().restart(applied.next());
        self.publish(applied);
    }
}

impl Ring {
    fn next(&self) -> LogIndex {
        LogIndex::new(self.first.get() + self.entries.len() as u64)
    }

    fn restart(&mut self, first: LogIndex) {
        *self = Ring { first, entries: VecDeque::new(), bytes: 0 };
    }
}

impl CommittedLog for RecentLog {
    fn first_index(&self) -> LogIndex {
        self.ring().first
    }

    fn applied(&self) -> watch::Receiver<LogIndex> {
        self.applied.subscribe()
    }

    fn read(&self, from: LogIndex, bytes_max: usize) -> Result<Vec<(LogIndex, Bytes)>, LogReadError> {
        let applied = *self.applied.borrow();
        let ring = self.ring();
        if from < ring.first {
            return Err(LogReadError::Purged { from, first: ring.first });
        }
        let skip = usize::try_from(from.get() - ring.first.get()).unwrap_or(usize::MAX);
        let (mut entries, mut bytes, mut index) = (Vec::new(), 0, from);
        for entry in ring.entries.iter().skip(skip) {
            if index > applied || (bytes >= bytes_max && !entries.is_empty()) {
                break;
            }
            bytes += entry.len() + Self::ENTRY_OVERHEAD;
            entries.push((index, entry.clone()));
            index = index.next();
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64) -> LogIndex {
        LogIndex::new(index)
    }

    #[test]
    fn readers_see_published_entries_only_and_old_ones_make_room() {
        let log = RecentLog::new(at(10), 3 * (100 + RecentLog::ENTRY_OVERHEAD));
        assert_eq!(log.first_index(), at(11));
        for index in 11..=15 {
            log.push(at(index), Bytes::from(vec![index as u8; 100]));
        }
        assert_eq!(log.first_index(), at(13), "three entries fit");
        assert!(log.read(at(13), 1 << 20).unwrap().is_empty(), "nothing is published yet");
        log.publish(at(14));
        let seen: Vec<u64> = log.read(at(13), 1 << 20).unwrap().iter().map(|(i, _)| i.get()).collect();
        assert_eq!(seen, [13, 14]);
        assert_eq!(log.read(at(13), 1).unwrap().len(), 1, "at least one");
        assert!(matches!(log.read(at(12), 1), Err(LogReadError::Purged { .. })));
        assert!(log.read(at(99), 1).unwrap().is_empty());
        log.restart(at(50));
        assert_eq!((log.first_index(), *log.applied().borrow()), (at(51), at(50)));
    }
}
