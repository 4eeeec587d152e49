use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use super::change::ENTRY_BYTES_MAX;
use super::log_positions::LogPositions;
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
    positions: Option<Arc<LogPositions>>,
}

impl RunSink {
    /// A sink of a run that begins now; `positions` are told what is committed.
    pub fn new(node: NodeId, positions: Option<Arc<LogPositions>>) -> Self {
        let run = RandomState::new().build_hasher().finish();
        Self { node, run, seq: AtomicU64::new(0), log: OnceLock::new(), positions }
    }

    /// Connects the log; the first call counts.
    pub fn connect(&self, log: Arc<dyn CommitSink>) {
        let _ = self.log.set(log);
    }

    /// The identity of the next proposal.
    pub fn next_origin(&self) -> Origin {
        Origin { node: self.node, run: self.run, seq: self.seq.fetch_add(1, Ordering::Relaxed) }
    }

    /// See [`CommitSink::drive`].
    pub fn drive(&self) {
        if let Some(log) = self.log.get() {
            log.drive();
        }
    }

    /// Proposes a change of any kind.
    pub fn propose(&self, kind: ChangeKind, done: CommitDone) {
        self.propose_as(self.next_origin(), kind, done);
    }

    /// The same under an identity that was drawn before.
    pub fn propose_as(&self, origin: Origin, kind: ChangeKind, done: CommitDone) {
        let Some(log) = self.log.get() else {
            return done(Err(CommitError::Refused("the log is not open yet".into())));
        };
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp_ms = i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX);
        let change = Change { origin, timestamp_ms, kind };
        let size = change.size_bytes_max();
        if size > ENTRY_BYTES_MAX {
            let why = format!("a change of {size} bytes is too large for one log entry");
            return done(Err(CommitError::Refused(why)));
        }
        let done = self.noting(&change.kind, done);
        log.propose(change, done);
    }

    /// Has what is committed noted before its proposer hears of it.
    fn noting(&self, kind: &ChangeKind, done: CommitDone) -> CommitDone {
        let Some(positions) = self.positions.clone() else { return done };
        // The pages of its change sets are shared, not copied.
        let kind = kind.clone();
        Box::new(move |fate| {
            if let Ok(index) = &fate {
                positions.note(*index, &kind);
            }
            done(fate);
        })
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc;

    use bytes::Bytes;

    use super::*;
    use crate::ltx::Body;
    use crate::types::{Checksum, DbName, LogIndex, PageCount, PageSize, Txid, TxidRange};

    #[derive(Default)]
    struct Log(Mutex<Vec<usize>>);

    impl CommitSink for Log {
        fn propose(&self, change: Change, done: CommitDone) {
            self.0.lock().unwrap().push(change.encode().len());
            done(Ok(LogIndex::new(1)));
        }
    }

    fn set(bytes: usize) -> ChangeSet {
        ChangeSet {
            db: DbName::new("a").unwrap(),
            range: TxidRange::new(Txid::FIRST, Txid::FIRST).unwrap(),
            pre: Checksum::EMPTY,
            post: Checksum::EMPTY,
            page_size: PageSize::DEFAULT,
            commit: PageCount::new(1),
            body: Body::Inline(Bytes::from(vec![0; bytes])),
        }
    }

    #[test]
    fn a_record_that_no_message_could_carry_is_never_proposed() {
        let (sink, log) = (RunSink::new(NodeId::new(1), None), Arc::new(Log::default()));
        sink.connect(log.clone());
        let fate = |sets: Vec<ChangeSet>| {
            let (sender, receiver) = mpsc::channel();
            sink.propose(ChangeKind::Commit(sets), Box::new(move |fate| sender.send(fate).unwrap()));
            receiver.recv().unwrap()
        };
        assert!(fate((0..3).map(|_| set(1 << 20)).collect()).is_ok());
        assert!(matches!(fate((0..5).map(|_| set(1 << 20)).collect()), Err(CommitError::Refused(_))));
        let proposed = log.0.lock().unwrap();
        assert!(proposed.len() == 1 && proposed[0] <= ENTRY_BYTES_MAX, "{proposed:?}");
    }
}
