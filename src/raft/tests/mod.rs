//! Tests of the log and the state machine together: openraft's own suite, and what it does not ask for.

mod conformance;
mod single_voter;

use std::sync::Mutex;

use super::target::LogTarget;
use crate::store::{Change, ChangeKind, Origin, StoreError};
use crate::types::{DbName, LogIndex, NodeId};

/// A stand-in for the databases: remembers what it was told.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    /// Entries applied that were no proposal of this run.
    pub told: Mutex<Vec<(LogIndex, String)>>,
    /// What a restart need not bring again.
    pub durable: Mutex<LogIndex>,
}

impl Recorder {
    /// Names of the databases dropped by the entries applied, in order.
    pub fn names(&self) -> Vec<String> {
        self.told.lock().unwrap().iter().map(|(_, name)| name.clone()).collect()
    }
}

impl LogTarget for Recorder {
    fn apply(&self, index: LogIndex, change: &Change) -> Result<(), StoreError> {
        let ChangeKind::Drop(name) = &change.kind else { unreachable!("these tests only drop") };
        self.told.lock().unwrap().push((index, name.to_string()));
        Ok(())
    }

    fn applied(&self, _index: LogIndex) {}

    fn durable_index(&self) -> LogIndex {
        *self.durable.lock().unwrap()
    }

    fn begin_replay(&self) {}

    fn end_replay(&self) {}

    fn has_fetched(&self, _index: LogIndex) -> bool {
        true
    }
}

/// A change that is easy to tell apart: drops the database `name`.
pub(super) fn change(run: u64, seq: u64, name: &str) -> Change {
    let origin = Origin { node: NodeId::new(1), run, seq };
    Change { origin, timestamp_ms: 0, kind: ChangeKind::Drop(DbName::new(name).unwrap()) }
}
