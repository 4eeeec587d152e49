use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{PrimaryView, StreamError};
use crate::types::LogIndex;

/// How a replica stands to what it follows.
#[derive(Clone, Debug, Default)]
pub struct FollowStatus {
    /// Whether an upstream node is being followed now.
    pub connected: bool,
    /// Its address, or the last one's.
    pub upstream: Option<String>,
    /// Last entry applied here, in every database.
    pub applied: LogIndex,
    /// Last entry the upstream node is known to have applied.
    pub upstream_applied: LogIndex,
    /// Whether this node once had everything since it started.
    pub synced: bool,
    /// Whether the upstream node is a voter or follows one.
    pub rooted: bool,
    /// When it last had everything.
    pub caught_up_at: Option<Instant>,
    /// The primary as the upstream node tells it.
    pub view: PrimaryView,
    /// Databases that were brought back in step by difference since the start.
    pub resyncs: u64,
    /// Why the last upstream node was given up.
    pub last_error: Option<String>,
    /// Set while every upstream node refuses this one for good (foreign cluster, unknown protocol).
    pub refused: Option<Arc<StreamError>>,
}

impl FollowStatus {
    /// Without a sign of life for longer, being caught up is history. Twice the heartbeat.
    const FRESH: Duration = Duration::from_millis(500);

    /// How long ago this node had everything; `None` before the first time.
    pub fn lag(&self) -> Option<Duration> {
        let age = self.caught_up_at?.elapsed();
        let caught_up = self.connected && self.applied >= self.upstream_applied && age < Self::FRESH;
        Some(if caught_up { Duration::ZERO } else { age })
    }

    /// Entries this node is known to lack.
    pub fn lag_entries(&self) -> u64 {
        self.upstream_applied.get().saturating_sub(self.applied.get())
    }

    /// Notes the upstream's position, or this node's.
    pub(super) fn compare(&mut self) {
        if self.connected && self.rooted && self.applied >= self.upstream_applied {
            self.synced = true;
            self.caught_up_at = Some(Instant::now());
        }
    }
}
