//! Proposals: from any thread to the Raft thread with one channel send.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::error::ClientWriteError;
use tokio::sync::mpsc;

use super::driver::Driver;
use super::handle::RaftHandle;
use super::holders::Holders;
use super::pending::Pending;
use super::types::{CommittedLeaderId, Payload, TypeConfig};
use crate::db::{CommitDone, CommitError, take_capture_time};
use crate::io::blobs::BlobStore;
use crate::ltx::BlobRef;
use crate::store::{Change, CommitSink, Origin};
use crate::telemetry::CommitTimes;

/// Proposals that may wait for the Raft thread; applications wait for theirs, so there are hardly more than
/// databases in use.
const QUEUE_MAX: usize = 65536;
/// Between two attempts to submit what no quorum could be asked for.
const RETRY_AFTER: Duration = Duration::from_millis(20);

/// The log's entrance.
pub(super) struct RaftSink {
    queue: mpsc::Sender<Proposal>,
    pending: Arc<Pending>,
    starved: Starved,
    led_term: Arc<AtomicU64>,
    blobs: Arc<BlobStore>,
    driver: OnceLock<Arc<Driver>>,
}

/// A change on its way to Raft.
pub(super) struct Proposal {
    origin: Origin,
    term: u64,
    payload: Payload,
    blobs: Vec<BlobRef>,
}

/// Tells why the log can take no more for now.
pub(super) type Starved = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// The other end of the entrance.
pub(super) type Proposals = mpsc::Receiver<Proposal>;

impl RaftSink {
    /// An entrance and its other end. `led_term` is the term this node leads, 0 where it leads none.
    pub fn new(
        pending: Arc<Pending>,
        starved: Starved,
        led_term: Arc<AtomicU64>,
        blobs: Arc<BlobStore>,
    ) -> (Self, Proposals) {
        let (queue, proposals) = mpsc::channel(QUEUE_MAX);
        (Self { queue, pending, starved, led_term, blobs, driver: OnceLock::new() }, proposals)
    }

    /// Lets threads that propose drive Raft.
    pub fn lend(&self, driver: Arc<Driver>) {
        let _ = self.driver.set(driver);
    }

    /// Has the large change sets of a proposal removed where it is refused: no entry will ever name them.
    fn or_remove(&self, named: Vec<BlobRef>, done: CommitDone) -> CommitDone {
        if named.is_empty() {
            return done;
        }
        let blobs = self.blobs.clone();
        Box::new(move |fate| {
            if let Err(CommitError::Refused(_)) = &fate {
                blobs.refuse(named.iter().map(|blob| (blob.digest, blob.size_bytes)));
            }
            done(fate);
        })
    }
}

impl CommitSink for RaftSink {
    fn refuses(&self) -> Option<String> {
        if let Some(why) = (self.starved)() {
            return Some(format!("no space for the log: {why}"));
        }
        let leads = self.led_term.load(Ordering::SeqCst) != 0;
        (!leads).then(|| "this node is not primary".to_owned())
    }

    fn propose(&self, change: Change, done: CommitDone) {
        // Also where it is refused: the times are of this proposal and no later one.
        let capture = take_capture_time();
        let (origin, blobs): (_, Vec<_>) = (change.origin, change.blobs().collect());
        let done = self.or_remove(blobs.clone(), done);
        // Once: what is submitted must be of the term that was looked at.
        let term = self.led_term.load(Ordering::SeqCst);
        if let Some(why) =
            self.refuses().or_else(|| (term == 0).then(|| "this node is not primary".to_owned()))
        {
            return done(Err(CommitError::Refused(why)));
        }
        let payload = Payload(change.encode());
        self.pending.insert(origin, term, CommitTimes::propose(capture), done);
        if let Err(refused) = self.queue.try_send(Proposal { origin, term, payload, blobs }) {
            let why = match refused {
                mpsc::error::TrySendError::Full(_) => "too many proposals are waiting",
                mpsc::error::TrySendError::Closed(_) => "the node is shutting down",
            };
            return self.pending.fail(&origin, CommitError::Refused(why.into()));
        }
        if let Some(driver) = self.driver.get() {
            driver.note_proposal();
        }
    }

    fn drive(&self) {
        if let Some(driver) = self.driver.get() {
            driver.drive();
        }
    }
}

/// Hands proposals to Raft.
#[derive(Clone)]
pub(super) struct Submit {
    pub raft: RaftHandle,
    pub pending: Arc<Pending>,
    pub holders: Arc<Holders>,
}

impl Submit {
    /// Submits proposals in order; on the Raft thread, until the entrance is closed.
    pub async fn run(self, mut proposals: Proposals) {
        while let Some(proposal) = proposals.recv().await {
            self.take(proposal).await;
        }
    }

    fn take(&self, proposal: Proposal) -> BoxFuture<'_, ()> {
        if proposal.blobs.is_empty() {
            return Box::pin(self.submit(proposal));
        }
        // Others need not wait: a database proposes one change at a time.
        tokio::spawn(self.clone().ship_and_submit(proposal));
        Box::pin(std::future::ready(()))
    }

    /// Submitted in order, answered in any: the next proposal does not wait for the fate of this one.
    ///
    /// What is refused because no quorum has answered lately, while this node still leads, is submitted again: it is
    /// certain that it was not appended, and a moment's silence is no reason to fail a commit.
    async fn submit(&self, Proposal { origin, term, payload, blobs }: Proposal) {
        let again = payload.clone();
        let (responder, committed, done) = openraft::impls::ProgressResponder::<TypeConfig, _>::new();
        self.pending.begin(&origin);
        let written =
            self.raft.write(payload).with_leader(CommittedLeaderId::new(term)).responder(responder).await;
        if let Err(fatal) = written {
            return self.pending.fail(&origin, CommitError::Unknown(fatal.to_string()));
        }
        let this = self.clone();
        tokio::spawn(async move {
            // Openraft complains about a receiver that is gone before the entry is committed.
            let _committed = committed;
            // Otherwise it is applied, or out of this log: the next leader's log tells, or the time runs out.
            if let Ok(Err(error @ ClientWriteError::ForwardToLeader(_))) = done.await {
                if !this.leads(term) {
                    // Refused before it was appended: certain.
                    return this.pending.fail(&origin, CommitError::Refused(error.to_string()));
                }
                tokio::time::sleep(RETRY_AFTER).await;
                if this.pending.contains(&origin) {
                    this.take(Proposal { origin, term, payload: again, blobs }).await;
                }
            }
        });
    }

    fn leads(&self, term: u64) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.state == ServerState::Leader && metrics.current_term == term
    }

    async fn ship_and_submit(self, proposal: Proposal) {
        match self.holders.ship(&proposal.blobs).await {
            Ok(_same_voters) => self.submit(proposal).await,
            Err(why) => self.pending.fail(&proposal.origin, CommitError::Refused(why)),
        }
    }
}
