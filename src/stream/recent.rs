use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::watch;

use crate::ltx::BlobRef;
use crate::store::{Change, CommittedLog, LogReadError};
use crate::types::LogIndex;

/// The entries a replica received lately, kept in memory to be shipped onward.
///
/// Holds: entries are consecutive; their bytes, and those of the blobs they name, stay below the bounds (the newest
/// entry is always kept); readers see none above what was published.
pub struct RecentLog {
    ring: Mutex<Ring>,
    applied: watch::Sender<LogIndex>,
    bytes_max: usize,
}

struct Ring {
    first: LogIndex,
    entries: VecDeque<Kept>,
    bytes: usize,
    blob_bytes: u64,
    /// Blobs of entries that are not kept any more, with the entry.
    given_up: Vec<(LogIndex, BlobRef)>,
}

struct Kept {
    entry: Bytes,
    blobs: Vec<BlobRef>,
}

impl Kept {
    fn new(entry: &Bytes) -> Self {
        let change = if entry.is_empty() { None } else { Change::decode(entry.clone()).ok() };
        let blobs = change.map_or_else(Vec::new, |change| change.blobs().collect());
        // A copy: what arrived is a part of a larger buffer, which would be kept as a whole.
        Self { entry: Bytes::copy_from_slice(entry), blobs }
    }

    fn bytes(&self) -> usize {
        self.entry.len() + RecentLog::ENTRY_OVERHEAD
    }

    fn blob_bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.size_bytes).sum()
    }
}

impl RecentLog {
    /// How much a replica keeps by default, in bytes.
    pub const BYTES_MAX: usize = 16 << 20;
    /// How much the blobs that entries name may take, in bytes.
    pub const BLOB_BYTES_MAX: u64 = 64 << 20;
    /// What an entry costs besides its bytes.
    const ENTRY_OVERHEAD: usize = 64;

    /// An empty ring behind entry `applied`.
    pub fn new(applied: LogIndex, bytes_max: usize) -> Self {
        let ring = Ring::new(applied.next());
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
        let kept = Kept::new(&entry);
        ring.bytes += kept.bytes();
        ring.blob_bytes += kept.blob_bytes();
        ring.entries.push_back(kept);
        let full = |ring: &Ring| ring.bytes > self.bytes_max || ring.blob_bytes > Self::BLOB_BYTES_MAX;
        while full(&ring) && ring.entries.len() > 1 {
            ring.give_up_first();
        }
    }

    /// Takes the blobs that no kept entry names and no redo needs, given the durable index of the databases.
    pub(super) fn take_given_up(&self, durable: LogIndex) -> Vec<BlobRef> {
        let mut ring = self.ring();
        let (free, needed) =
            std::mem::take(&mut ring.given_up).into_iter().partition(|(at, _)| *at <= durable);
        ring.given_up = needed;
        let free: Vec<(LogIndex, BlobRef)> = free;
        let named = |blob: &BlobRef| {
            ring.entries.iter().any(|kept| kept.blobs.contains(blob))
                || ring.given_up.iter().any(|(_, needed)| needed == blob)
        };
        free.into_iter().map(|(_, blob)| blob).filter(|blob| !named(blob)).collect()
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

    fn new(first: LogIndex) -> Self {
        Self { first, entries: VecDeque::new(), bytes: 0, blob_bytes: 0, given_up: Vec::new() }
    }

    fn restart(&mut self, first: LogIndex) {
        while !self.entries.is_empty() {
            self.give_up_first();
        }
        *self = Ring { given_up: std::mem::take(&mut self.given_up), ..Ring::new(first) };
    }

    fn give_up_first(&mut self) {
        let Some(old) = self.entries.pop_front() else { return };
        self.bytes -= old.bytes();
        self.blob_bytes -= old.blob_bytes();
        let index = self.first;
        self.given_up.extend(old.blobs.into_iter().map(|blob| (index, blob)));
        self.first = self.first.next();
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
        for Kept { entry, .. } in ring.entries.iter().skip(skip) {
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
    use crate::ltx::{Body, ChangeSet};
    use crate::store::{ChangeKind, Origin};
    use crate::types::{Checksum, DbName, NodeId, PageCount, PageSize, Txid, TxidRange};

    fn at(index: u64) -> LogIndex {
        LogIndex::new(index)
    }

    /// An entry that names a blob of so many bytes.
    fn naming(digest: u64, size_bytes: u64) -> Bytes {
        let set = ChangeSet {
            db: DbName::new("a").unwrap(),
            range: TxidRange::single(Txid::FIRST),
            pre: Checksum::EMPTY,
            post: Checksum::new(1 << 63 | digest),
            page_size: PageSize::DEFAULT,
            commit: PageCount::new(1),
            body: Body::Blob(BlobRef { digest, size_bytes }),
        };
        let origin = Origin { node: NodeId::new(1), run: 1, seq: digest };
        Change { origin, timestamp_ms: 0, kind: ChangeKind::Commit(vec![set]) }.encode()
    }

    #[test]
    fn blobs_are_given_up_with_their_entries_once_the_databases_have_them() {
        let log = RecentLog::new(at(0), 1 << 20);
        let half = RecentLog::BLOB_BYTES_MAX / 2;
        for index in 1..=4 {
            log.push(at(index), naming(index, half));
        }
        assert_eq!(log.first_index(), at(3), "two fit");
        let digests = |durable| log.take_given_up(at(durable)).iter().map(|b| b.digest).collect::<Vec<_>>();
        assert!(digests(0).is_empty(), "a redo would need them");
        assert_eq!(digests(1), [1]);
        assert_eq!(digests(4), [2]);
        log.restart(at(9));
        assert_eq!(digests(9), [3, 4]);
        assert!(digests(99).is_empty());
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
        assert!(log.take_given_up(at(99)).is_empty(), "these entries name no blobs");
        log.restart(at(50));
        assert_eq!((log.first_index(), *log.applied().borrow()), (at(51), at(50)));
    }
}
