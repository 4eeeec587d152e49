use std::sync::Arc;

use crate::store::{Change, Store, StoreError};
use crate::types::LogIndex;

/// What entries are applied to: the store, or a stand-in of a test.
pub trait LogTarget: Send + Sync + 'static {
    /// Applies an entry that is not a pending proposal of this run.
    ///
    /// # Errors
    /// What went wrong; the log goes on.
    fn apply(&self, index: LogIndex, change: &Change) -> Result<(), StoreError>;
    /// Everything up to `index` is applied.
    fn applied(&self, index: LogIndex);
    /// Entries at or below it need no redo after a restart.
    fn durable_index(&self) -> LogIndex;
    /// The log is about to be applied again from the durable index on.
    fn begin_replay(&self);
    /// It has been, as far as it went at the start.
    fn end_replay(&self);
    /// Whether everything up to `index` has come another way than by the log, by fetching what differs.
    fn has_fetched(&self, index: LogIndex) -> bool;
}

impl LogTarget for Store {
    fn apply(&self, index: LogIndex, change: &Change) -> Result<(), StoreError> {
        Store::apply(self, index, change)
    }

    fn applied(&self, index: LogIndex) {
        Store::applied(self, index);
    }

    fn durable_index(&self) -> LogIndex {
        Store::durable_index(self)
    }

    fn begin_replay(&self) {
        Store::begin_replay(self);
    }

    fn end_replay(&self) {
        Store::end_replay(self);
    }

    fn has_fetched(&self, index: LogIndex) -> bool {
        Store::durable_index(self) >= index
    }
}

/// A target shared by the state machine and those who watch it.
pub type SharedTarget = Arc<dyn LogTarget>;
