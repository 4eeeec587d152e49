use std::io;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::store::{Change, Lease};
use crate::types::LogIndex;

/// What entries are applied to: the databases of a voter, or a stand-in of a test.
///
/// Called on Raft's thread, entry by entry in order; what takes long is done elsewhere.
pub trait LogTarget: Send + Sync + 'static {
    /// Takes the next entry; `None` where it concerns no database, or is a proposal of this run, whose proposer has
    /// been told. What cannot be applied is the target's own affair: the log goes on.
    fn entry(&self, index: LogIndex, change: Option<Change>);
    /// A leader's first entry in `term` is applied: whatever this node proposed in earlier terms and has not been
    /// applied by now never will be.
    fn term_began(&self, term: u64);
    /// How long this node may be primary without hearing more from the others; told each time that changes. Must not wait.
    fn lease(&self, lease: Lease) {
        let _ = lease;
    }
    /// Up to here entries are applied in every database, as it moves.
    fn settled(&self) -> watch::Receiver<LogIndex>;
    /// Whether what the log held at the start is applied again, and the databases agree with it.
    fn replayed(&self) -> watch::Receiver<bool>;
    /// Up to here entries can be shipped onward, as it moves: what they refer to is here.
    fn shippable(&self) -> watch::Receiver<LogIndex>;
    /// Entries at or below it need no redo after a restart.
    fn durable_index(&self) -> LogIndex;
    /// What the databases take together, in bytes: more log than that is no help to a node that lags behind. Blocking.
    fn databases_bytes(&self) -> u64 {
        u64::MAX
    }
    /// The log is about to be applied again from the durable index on.
    fn begin_replay(&self);
    /// It has been, as far as it went at the start.
    fn end_replay(&self);
    /// Brings everything up to entry `index` by difference from another voter, because the log before is gone; durable
    /// when it is done.
    fn fetch(&self, index: LogIndex) -> BoxFuture<'static, io::Result<()>>;
}

/// A target shared by the state machine and those who watch it.
pub type SharedTarget = Arc<dyn LogTarget>;
