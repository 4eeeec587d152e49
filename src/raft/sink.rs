//! Proposals: from any thread to the Raft thread with one channel send.

use std::sync::Arc;

use openraft::error::ClientWriteError;
use tokio::sync::mpsc;

use super::node::RaftHandle;
use super::pending::Pending;
use super::types::{Payload, TypeConfig};
use crate::db::{CommitDone, CommitError};
use crate::store::{Change, CommitSink, Origin};

/// Proposals that may wait for the Raft thread; applications wait for theirs, so there are hardly more than
/// databases in use.
const QUEUE_MAX: usize = 65536;

/// The log's entrance.
pub(super) struct RaftSink {
    queue: mpsc::Sender<(Origin, Payload)>,
    pending: Arc<Pending>,
    starved: Starved,
}

/// Tells why the log can take no more for now.
pub(super) type Starved = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// The other end of the entrance.
pub(super) type Proposals = mpsc::Receiver<(Origin, Payload)>;

impl RaftSink {
    /// An entrance and its other end.
    pub fn new(pending: Arc<Pending>, starved: Starved) -> (Self, Proposals) {
        let (queue, proposals) = mpsc::channel(QUEUE_MAX);
        (Self { queue, pending, starved }, proposals)
    }
}

impl CommitSink for RaftSink {
    fn propose(&self, change: Change, done: CommitDone) {
        if let Some(why) = (self.starved)() {
            return done(Err(CommitError::Refused(format!("no space for the log: {why}"))));
        }
        let origin = change.origin;
        let payload = Payload(change.encode());
        self.pending.insert(origin, done);
        if let Err(refused) = self.queue.try_send((origin, payload)) {
            let why = match refused {
                mpsc::error::TrySendError::Full(_) => "too many proposals are waiting",
                mpsc::error::TrySendError::Closed(_) => "the node is shutting down",
            };
            self.pending.fail(&origin, CommitError::Refused(why.into()));
        }
    }
}

/// Submits proposals in order; on the Raft thread, until the entrance is closed.
pub(super) async fn submit(raft: RaftHandle, mut proposals: Proposals, pending: Arc<Pending>) {
    while let Some((origin, payload)) = proposals.recv().await {
        // Submitted in order, answered in any: the next proposal does not wait for the fate of this one.
        let (responder, committed, done) = openraft::impls::ProgressResponder::<TypeConfig, _>::new();
        if let Err(fatal) = raft.client_write_ff(payload, Some(responder)).await {
            pending.fail(&origin, CommitError::Unknown(fatal.to_string()));
            continue;
        }
        let pending = pending.clone();
        tokio::spawn(async move {
            // Openraft complains about a receiver that is gone before the entry is committed.
            let _committed = committed;
            let fate = match done.await {
                Ok(Ok(_)) => return,
                Ok(Err(error)) => fate_of(&error),
                Err(_) => CommitError::Unknown("the log was closed".into()),
            };
            pending.fail(&origin, fate);
        });
    }
}

fn fate_of(error: &ClientWriteError<TypeConfig>) -> CommitError {
    match error {
        // Refused before it was appended: certain.
        ClientWriteError::ForwardToLeader(_) => CommitError::Refused(error.to_string()),
        _ => CommitError::Unknown(error.to_string()),
    }
}
