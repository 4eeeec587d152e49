//! Purge: entries that every database file has, and that nobody who follows is likely to ask for, go.
//!
//! How much is kept: no more than configured, the large change sets that entries name included; no more than the
//! databases themselves take, because a node that lags further is better served by what differs; and nothing that is
//! not needed here while the disk is nearly full.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use openraft::async_runtime::WatchReceiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::handle::RaftHandle;
use super::holders::Holders;
use super::options::RaftOptions;
use super::segment_log::{LogError, LogReader};
use super::target::SharedTarget;
use super::types::{TypeConfig, position};
use crate::io::blobs::{BlobKey, BlobStore, Refused};
use crate::io::free_space::Space;
use crate::ltx::BlobRef;

/// Between two looks at what may go.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// So much log is kept however small the databases are: who was away for a moment goes on with the log.
const KEPT_MIN_BYTES: u64 = 64 << 20;
/// The log is given up early while less than so many times the reserve of the disk is free.
const EARLY_RESERVES: u64 = 4;
/// A node with less than this part of the reserve free does not stand for election: it could not even note that it
/// leads.
const CANDIDATE_PART: u64 = 2;
/// Between two looks for large change sets that no entry names.
const SWEEP_EVERY: Duration = Duration::from_secs(300);
/// Those are removed when they are older than any proposal that may still name them.
const SWEEP_AGE: Duration = Duration::from_secs(3600);

/// What is kept, and how.
pub(super) struct Retention {
    bytes: u64,
    age: Duration,
    dir: PathBuf,
    disk_reserve: u64,
    entries: LogReader,
    blobs: Arc<BlobStore>,
    target: SharedTarget,
    recycle: Box<dyn Fn() -> Result<(), LogError> + Send + Sync>,
}

/// What a look has found.
struct Look {
    /// Entries up to here may go, and doing so frees something.
    upto: Option<u64>,
    /// The large change sets that go with them.
    blobs: HashSet<BlobKey>,
    /// Whether there is space enough to lead.
    may_lead: bool,
}

impl Retention {
    /// The retention of a node's options.
    pub fn new(
        options: &RaftOptions,
        entries: LogReader,
        blobs: Arc<BlobStore>,
        target: SharedTarget,
        recycle: Box<dyn Fn() -> Result<(), LogError> + Send + Sync>,
    ) -> Self {
        Self {
            bytes: options.retention_bytes,
            age: options.retention,
            dir: options.dir.clone(),
            disk_reserve: options.disk_reserve_bytes,
            entries,
            blobs,
            target,
            recycle,
        }
    }

    /// What may go now. Asks files and databases.
    fn look(&self) -> Look {
        let durable = self.target.durable_index().get();
        let upto = match self.free_is_below(|reserve| reserve * EARLY_RESERVES) {
            true => self.worth_purging(durable.min(self.entries.last_index())),
            false => self.last_to_go(durable),
        };
        let blobs = upto.map(|upto| self.entries.blobs_up_to(upto)).unwrap_or_default();
        Look { upto, blobs, may_lead: self.may_lead() }
    }

    /// Whether less of the disk is free than `bytes_of` its reserve; where it cannot be asked, it is not.
    fn free_is_below(&self, bytes_of: impl Fn(u64) -> u64) -> bool {
        Space::of(&self.dir).is_ok_and(|space| space.free < bytes_of(space.reserve(self.disk_reserve)))
    }

    /// Whether there is space enough to lead.
    pub fn may_lead(&self) -> bool {
        !self.free_is_below(|reserve| reserve / CANDIDATE_PART)
    }

    /// The last entry that may go: durable in the database files, and over the size or the age kept.
    fn last_to_go(&self, durable: u64) -> Option<u64> {
        let whole = self.entries.last_of_whole_segments(durable);
        let now = SystemTime::now();
        let old = |candidate: &u64| {
            let written = self.entries.written_at(*candidate);
            written.and_then(|at| now.duration_since(at).ok()).is_some_and(|age| age >= self.age)
        };
        whole.filter(old).or_else(|| self.last_by_size(durable))
    }

    /// Where all but the kept bytes may go.
    fn last_by_size(&self, durable: u64) -> Option<u64> {
        let (mut low, mut high) = (self.entries.first_index(), durable.min(self.entries.last_index()));
        let mut kept = self.bytes;
        if self.entries.bytes_above(low) < kept.min(KEPT_MIN_BYTES) || low > high {
            return None;
        }
        if kept > KEPT_MIN_BYTES {
            kept = kept.min(self.target.databases_bytes().max(KEPT_MIN_BYTES));
        }
        if self.entries.bytes_above(low) < kept {
            return None;
        }
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if self.entries.bytes_above(middle) >= kept { low = middle } else { high = middle - 1 }
        }
        self.worth_purging(low)
    }

    /// The last entry up to `index` whose purge frees something: a file of the log, or a large change set.
    fn worth_purging(&self, index: u64) -> Option<u64> {
        if index >= self.entries.first_index() && !self.entries.blobs_up_to(index).is_empty() {
            return Some(index);
        }
        self.entries.last_of_whole_segments(index)
    }

    /// Removes what a purge has given up.
    fn free(&self, blobs: HashSet<BlobKey>) -> io::Result<()> {
        let still_named = self.entries.blobs();
        blobs
            .into_iter()
            .filter(|key| !still_named.contains(key))
            .try_for_each(|key| self.blobs.remove(key))?;
        (self.recycle)().map_err(io::Error::from)
    }

    /// Removes large change sets of refused proposals; returns those that were proposed here, of which the other voters
    /// have copies.
    fn remove_refused(&self) -> Vec<BlobKey> {
        let Refused { own, copies } = self.blobs.take_refused();
        if own.is_empty() && copies.is_empty() {
            return Vec::new();
        }
        let named = self.entries.blobs();
        for key in own.union(&copies).filter(|key| !named.contains(key)) {
            if let Err(error) = self.blobs.remove(*key) {
                tracing::warn!(%error, "cannot remove the large change set of a refused proposal");
            }
        }
        own.into_iter().filter(|key| !named.contains(key)).collect()
    }

    /// Removes large change sets that no entry has come to name in a long time.
    fn sweep(&self) {
        match self.blobs.sweep(&self.entries.blobs(), SWEEP_AGE) {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "removed large change sets that no log entry names"),
            Err(error) => tracing::warn!(%error, "cannot remove large change sets that no log entry names"),
        }
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
pub(super) async fn run(raft: RaftHandle, keep: Retention, holders: Arc<Holders>, stop: CancellationToken) {
    let keep = Arc::new(keep);
    let mut tick = tokio::time::interval(LOOK_EVERY);
    let (mut swept, mut led) = (None::<Instant>, true);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let (looking, sweeps) = (keep.clone(), swept.is_none_or(|at| at.elapsed() >= SWEEP_EVERY));
        // Reads files: not on Raft's thread.
        let looked = off_thread(move || {
            if sweeps {
                looking.sweep();
            }
            (looking.remove_refused(), looking.look())
        });
        let Ok((refused, look)) = looked.await else { continue };
        if sweeps {
            swept = Some(Instant::now());
        }
        for (digest, size_bytes) in refused {
            holders.drop_copies(BlobRef { digest, size_bytes });
        }
        if look.may_lead != led {
            led = look.may_lead;
            stand_for_election(&raft, led);
        }
        let Some(upto) = look.upto else { continue };
        if let Err(error) = purge(&raft, upto).await {
            tracing::warn!(%error, "cannot purge the log");
            continue;
        }
        let after = keep.clone();
        match off_thread(move || after.free(look.blobs)).await {
            Ok(Ok(())) => tracing::debug!(upto, "purged the log"),
            Ok(Err(error)) => tracing::warn!(%error, "cannot free what was purged"),
            Err(_) => {}
        }
    }
}

/// Has this node be elected, or not, when its group lacks a leader. A single voter leads anyway.
pub(super) fn stand_for_election(raft: &RaftHandle, may_lead: bool) {
    let voters = raft.metrics().borrow_watched().membership_config.membership().voter_ids().count();
    raft.runtime_config().elect(may_lead || voters <= 1);
    match may_lead {
        true => tracing::info!("there is disk space enough to be primary again"),
        false => tracing::warn!("the disk is too full to be primary: this node does not stand for election"),
    }
}
