//! Purge: entries that every database file has, and that nobody who follows is likely to ask for, go.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use super::codec;
use super::handle::RaftHandle;
use super::options::RaftOptions;
use super::segment_log::{LogError, LogReader};
use super::target::SharedTarget;
use super::types::{TypeConfig, position};
use crate::io::blobs::BlobStore;
use crate::ltx::BlobRef;
use crate::store::Change;

/// Between two looks at what may go.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Bytes of entries read at once.
const READ_BYTES: usize = 4 << 20;

/// What is kept, and how.
pub(super) struct Retention {
    bytes: u64,
    age: Duration,
    entries: LogReader,
    blobs: Arc<BlobStore>,
    recycle: Box<dyn Fn() -> Result<(), LogError> + Send + Sync>,
}

impl Retention {
    /// The retention of a node's options.
    pub fn new(
        options: &RaftOptions,
        entries: LogReader,
        blobs: Arc<BlobStore>,
        recycle: Box<dyn Fn() -> Result<(), LogError> + Send + Sync>,
    ) -> Self {
        Self { bytes: options.retention_bytes, age: options.retention, entries, blobs, recycle }
    }

    /// The last entry that may go: durable in the database files, and over the size or the age kept.
    fn last_to_go(&self, durable: u64) -> Option<u64> {
        let candidate = self.entries.last_of_whole_segments(durable)?;
        let large = self.entries.bytes_above(candidate) >= self.bytes;
        let now = SystemTime::now();
        let old = self
            .entries
            .written_at(candidate)
            .and_then(|at| now.duration_since(at).ok())
            .is_some_and(|age| age >= self.age);
        if large || old { Some(candidate) } else { self.last_by_size(candidate) }
    }

    /// Where all but the kept bytes may go, the last entry of a segment before that.
    fn last_by_size(&self, candidate: u64) -> Option<u64> {
        let (mut low, mut high) = (self.entries.first_index(), candidate);
        if self.entries.bytes_above(low) < self.bytes {
            return None;
        }
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if self.entries.bytes_above(middle) >= self.bytes { low = middle } else { high = middle - 1 }
        }
        self.entries.last_of_whole_segments(low)
    }

    /// Blobs that entries `from..=to` refer to.
    fn blobs_of(&self, from: u64, to: u64) -> HashSet<BlobRef> {
        let (mut next, mut found) = (from, HashSet::new());
        while next <= to {
            let Ok(entries) = self.entries.read(next, to + 1, READ_BYTES) else { break };
            let Some((last, _)) = entries.last() else { break };
            next = last + 1;
            let changes = entries.into_iter().filter_map(|(_, bytes)| codec::change_of(bytes).ok());
            let changes =
                changes.filter(|bytes| !bytes.is_empty()).filter_map(|bytes| Change::decode(bytes).ok());
            changes.for_each(|change| found.extend(change.blobs()));
        }
        found
    }
}

/// Does what reads and writes files off Raft's thread; a simulation, which has but one, does it at once.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    #[cfg(test)]
    if super::tests::is_simulated() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}

/// Gives up all entries up to `upto`.
async fn purge(raft: &RaftHandle, upto: u64) -> Result<(), String> {
    let wait = || raft.wait(Some(Duration::from_secs(5)));
    // openraft gives up only what a snapshot has; ours is a handle, and made at once.
    raft.trigger().snapshot().await.map_err(|error| error.to_string())?;
    let covered = move |metrics: &openraft::RaftMetrics<TypeConfig>| {
        metrics.snapshot.is_some_and(|at| position(at.index) >= upto)
    };
    wait().metrics(covered, "a snapshot covers what is purged").await.map_err(|error| error.to_string())?;
    raft.trigger().purge_log(upto - 1).await.map_err(|error| error.to_string())?;
    let purged = move |metrics: &openraft::RaftMetrics<TypeConfig>| {
        metrics.purged.is_some_and(|at| position(at.index) >= upto)
    };
    wait().metrics(purged, "purged").await.map(drop).map_err(|error| error.to_string())
}

/// Purges until told to stop.
pub(super) async fn run(raft: RaftHandle, keep: Retention, target: SharedTarget, stop: CancellationToken) {
    let keep = Arc::new(keep);
    let mut tick = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let Some(upto) = keep.last_to_go(target.durable_index().get()) else { continue };
        let first = keep.entries.first_index();
        let reader = keep.clone();
        // Reads files: not on Raft's thread.
        let Ok(blobs) = off_thread(move || reader.blobs_of(first, upto)).await else {
            continue;
        };
        if let Err(error) = purge(&raft, upto).await {
            tracing::warn!(%error, "cannot purge the log");
            continue;
        }
        let after = keep.clone();
        let freed = off_thread(move || {
            blobs.into_iter().try_for_each(|blob| after.blobs.remove((blob.digest, blob.size_bytes)))?;
            (after.recycle)().map_err(std::io::Error::from)
        });
        match freed.await {
            Ok(Ok(())) => tracing::debug!(upto, "purged the log"),
            Ok(Err(error)) => tracing::warn!(%error, "cannot free what was purged"),
            Err(_) => {}
        }
    }
}
