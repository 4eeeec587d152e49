use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Change, ChangeKind, CommitSink, Origin};
use crate::db::{ChangeSink, CommitDone, CommitError};
use crate::ltx::ChangeSet;
use crate::types::NodeId;

/// Gives each proposal of this run its identity and hands it to the log.
pub(super) struct RunSink {
    node: NodeId,
    run: u64,
    seq: AtomicU64,
    log: OnceLock<Arc<dyn CommitSink>>,
}

impl RunSink {
    /// A sink of a run that begins now.
    pub fn new(node: NodeId) -> Self {
        let run = RandomState::new().build_hasher().finish();
        Self { node, run, seq: AtomicU64::new(0), log: OnceLock::new() }
    }

    /// Connects the log; the first call counts.
    pub fn connect(&self, log: Arc<dyn CommitSink>) {
        let _ = self.log.set(log);
    }

    /// Proposes a change of any kind.
    pub fn propose(&self, kind: ChangeKind, done: CommitDone) {
        let Some(log) = self.log.get() else {
            return done(Err(CommitError::Refused("the log is not open yet".into())));
        };
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        let origin = Origin { node: self.node, run: self.run, seq };
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp_ms = i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX);
        log.propose(Change { origin, timestamp_ms, kind }, done);
    }
}

impl ChangeSink for RunSink {
    fn commit(&self, sets: Vec<ChangeSet>, done: CommitDone) {
        self.propose(ChangeKind::Commit(sets), done);
    }

    fn refuses(&self) -> Option<String> {
        self.log.get().and_then(|log| log.refuses())
    }
}
