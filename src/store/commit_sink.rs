use crate::db::CommitDone;
use crate::store::Change;

/// "Make this durable": the order of all changes, implemented over Raft.
pub trait CommitSink: Send + Sync + 'static {
    /// Proposes a change whose blobs this node already stores durably.
    ///
    /// `done(Ok(index))` is called in log order, from within the application of entry `index` and instead of
    /// [`Store::apply`](crate::store), once a quorum and this node's own log hold it durably; `done(Err)` as
    /// soon as the outcome is known to be failure, or is unknown. Never blocks.
    fn propose(&self, change: Change, done: CommitDone);

    /// Offers the calling thread to the log, to decide what it has proposed: to be called by threads that hold no lock and
    /// can wait for a sync of the log. Returns at once where another thread does it.
    fn drive(&self) {}

    /// Why a proposal would be refused if it were made now; asked before a large change set is written for it.
    fn refuses(&self) -> Option<String> {
        None
    }
}
