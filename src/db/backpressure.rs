//! Backpressure: while too much of what a WAL database committed is not in the log yet, or the disk is nearly full, its
//! writers wait as they would for another writer.
//!
//! Commits under `synchronous=FULL` wait for the log by themselves. Those under NORMAL do not: without a bound, a slow
//! quorum would let what a lost node takes with it grow, and its log file with it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::attach::WalAttachment;
use super::database::{Database, State};
use super::wal_locks::WalLock;
use crate::sqlite::lock_bytes;
use crate::sqlite::wal::FRAME_HEADER_SIZE;
use crate::sqlite::wal_index::HeaderRead;
use crate::types::PageSize;

/// One log line for many short waits.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What bounds the writers of a node, and how often it did.
#[derive(Debug)]
pub struct Limits {
    uncommitted_bytes_max: AtomicU64,
    disk_low: AtomicBool,
    waits: AtomicU64,
    waited_us: AtomicU64,
    refusals: AtomicU64,
    started: Instant,
    /// Milliseconds after `started`.
    logged_ms: AtomicU64,
}

/// What bounded writers so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LimitCounts {
    /// Times that a database's writers were made to wait.
    pub waits: u64,
    /// How long they waited, over all databases.
    pub waited: Duration,
    /// Commits refused because the disk is nearly full.
    pub refusals: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            uncommitted_bytes_max: AtomicU64::new(u64::MAX),
            disk_low: AtomicBool::new(false),
            waits: AtomicU64::new(0),
            waited_us: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            started: Instant::now(),
            logged_ms: AtomicU64::new(0),
        }
    }
}

impl Limits {
    /// Sets how much of what is committed may be outside the log, in bytes of one WAL.
    pub fn set_uncommitted_max(&self, bytes: u64) {
        self.uncommitted_bytes_max.store(bytes, Ordering::Relaxed);
    }

    /// Says whether the disk is so full that nothing more is to be committed.
    pub fn set_disk_low(&self, low: bool) {
        self.disk_low.store(low, Ordering::Relaxed);
    }

    /// What bounded writers so far.
    pub fn counts(&self) -> LimitCounts {
        LimitCounts {
            waits: self.waits.load(Ordering::Relaxed),
            waited: Duration::from_micros(self.waited_us.load(Ordering::Relaxed)),
            refusals: self.refusals.load(Ordering::Relaxed),
        }
    }

    /// Whether a commit may begin its way.
    ///
    /// # Errors
    /// ENOSPC while the disk is nearly full: before it is full, so that what is committed can be finished.
    pub fn check_space(&self) -> io::Result<()> {
        if !self.disk_low.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.refusals.fetch_add(1, Ordering::Relaxed);
        Err(io::Error::from_raw_os_error(nix::libc::ENOSPC))
    }

    /// Why writers must wait. Those that wait do so until half of the bound is reached.
    fn reason(&self, tail_bytes: u64, waiting: bool) -> Option<&'static str> {
        let max = self.uncommitted_bytes_max.load(Ordering::Relaxed);
        if self.disk_low.load(Ordering::Relaxed) {
            return Some("the disk is nearly full");
        }
        (tail_bytes > if waiting { max / 2 } else { max }).then_some("the log is behind what they committed")
    }

    fn may_log(&self) -> bool {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let last = self.logged_ms.load(Ordering::Relaxed);
        let every = u64::try_from(LOG_EVERY.as_millis()).unwrap_or(u64::MAX);
        let due = last == 0 || now.saturating_sub(last) >= every;
        due && self.logged_ms.compare_exchange(last, now.max(1), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Database {
    /// Lets the writers of a WAL database wait, or go on. Never waits itself; says whether they wait.
    pub(super) fn hold_back(&self, state: &mut State) -> bool {
        let (page_size, exclusive, writable) = (state.page_size, state.exclusive, self.writable());
        let Some(wal) = state.open.wal_mut() else { return false };
        if exclusive {
            // Whoever has claimed the database holds the write lock, too.
            return wal.held_back.is_some();
        }
        if !writable {
            // Whoever changes the node's role sees to the fence.
            self.count_wait(wal.held_back.take());
            return false;
        }
        let tail_bytes = wal.uncommitted_bytes(page_size);
        match (self.shared.limits.reason(tail_bytes, wal.held_back.is_some()), &wal.held_back) {
            (Some(why), None) => {
                // A writer at work is left alone: the next look comes soon.
                let Ok(Some(writers_out)) = wal.locks.try_take(lock_bytes::WAL_WRITE) else { return false };
                wal.held_back = Some((Instant::now(), writers_out));
                self.shared.limits.waits.fetch_add(1, Ordering::Relaxed);
                if self.shared.limits.may_log() {
                    tracing::warn!(db = %self.name(), tail_bytes, "writers are made to wait: {why}");
                }
            }
            (None, Some(_)) => {
                self.count_wait(wal.held_back.take());
            }
            _ => {}
        }
        wal.held_back.is_some()
    }

    fn count_wait(&self, held_back: Option<(Instant, WalLock)>) {
        let waited =
            held_back.map_or(0, |(since, _)| u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX));
        self.shared.limits.waited_us.fetch_add(waited, Ordering::Relaxed);
    }
}

impl WalAttachment {
    /// Bytes of published frames that no log entry has yet.
    fn uncommitted_bytes(&mut self, page_size: PageSize) -> u64 {
        let HeaderRead::Valid(header) = self.index.header() else { return 0 };
        let captured = if header.salt == self.captured.salt { self.captured.frame } else { 0 };
        let frames = header.max_frame.saturating_sub(captured);
        u64::from(frames) * (page_size.bytes() + FRAME_HEADER_SIZE as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_wait_above_the_bound_until_half_of_it_is_left() {
        let limits = Limits::default();
        assert_eq!(limits.reason(u64::MAX, false), None);
        limits.set_uncommitted_max(100);
        assert!(limits.reason(100, false).is_none() && limits.reason(101, false).is_some());
        assert!(limits.reason(51, true).is_some() && limits.reason(50, true).is_none());
    }

    #[test]
    fn a_disk_that_is_nearly_full_refuses_commits_and_lets_captured_ones_pass() {
        let limits = Limits::default();
        assert!(limits.check_space().is_ok());
        limits.set_disk_low(true);
        let refused = limits.check_space().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        assert!(limits.reason(0, false).is_some());
        assert_eq!(limits.counts().refusals, 1);
    }
}
