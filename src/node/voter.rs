//! A voter's databases as its log sees them.

use std::io;
use std::sync::{Arc, OnceLock, Weak};

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::raft::{LogTarget, RaftNode};
use crate::rpc::GrpcConnector;
use crate::store::{Change, Store};
use crate::stream::{Applier, ApplierOptions, ClusterId};
use crate::types::{DbName, LogIndex, NodeId};

/// Entries that may wait for slow databases, in bytes.
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Applies the log to the store.
pub(super) struct VoterTarget {
    store: Arc<Store>,
    applier: Arc<Applier>,
    replayed: watch::Sender<bool>,
    runtime: tokio::runtime::Handle,
}

/// The Raft whose members can be asked for what is missing; set once it runs.
pub(super) type RaftSlot = Arc<OnceLock<Weak<RaftNode>>>;

impl VoterTarget {
    /// The target of the node that `raft` will be.
    pub(super) fn new(
        store: Arc<Store>,
        node: NodeId,
        cluster: ClusterId,
        raft: RaftSlot,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let options = ApplierOptions {
            node,
            cluster,
            sources: Box::new(move || raft.get()?.upgrade().map(|raft| raft.peers())),
            queue_bytes_max: QUEUE_BYTES_MAX,
        };
        let connector = Arc::new(GrpcConnector::default());
        let applier = Applier::start(options, store.clone(), connector, shutdown);
        let runtime = tokio::runtime::Handle::current();
        Arc::new(Self { store, applier, replayed: watch::Sender::new(false), runtime })
    }

    /// See [`Applier::repair`].
    pub(super) fn repair(&self, db: &DbName) {
        self.applier.repair(db);
    }

    /// Lets what is slow end.
    pub(super) fn stop(&self) {
        self.applier.stop();
    }
}

impl LogTarget for VoterTarget {
    fn entry(&self, index: LogIndex, change: Option<Change>) {
        self.applier.take(index, change);
    }

    fn term_began(&self, _term: u64) {
        self.store.proposals_resolved();
    }

    fn settled(&self) -> watch::Receiver<LogIndex> {
        self.applier.settled()
    }

    fn replayed(&self) -> watch::Receiver<bool> {
        self.replayed.subscribe()
    }

    fn shippable(&self) -> watch::Receiver<LogIndex> {
        self.applier.shippable()
    }

    fn durable_index(&self) -> LogIndex {
        self.store.durable_index()
    }

    fn begin_replay(&self) {
        self.store.begin_replay();
    }

    fn end_replay(&self) {
        let (store, replayed) = (self.store.clone(), self.replayed.clone());
        let (mut settled, taken) = (self.applier.settled(), self.applier.taken());
        // Slow databases may still be at it, and comparing all pages is nothing for Raft's thread.
        self.runtime.spawn(async move {
            if settled.wait_for(|settled| *settled >= taken).await.is_ok() {
                let compared = tokio::task::spawn_blocking(move || store.end_replay()).await;
                replayed.send_replace(compared.is_ok());
            }
        });
    }

    fn fetch(&self, index: LogIndex) -> BoxFuture<'static, io::Result<()>> {
        let (applier, store) = (self.applier.clone(), self.store.clone());
        let runtime = self.runtime.clone();
        Box::pin(async move {
            applier.fetch_all(index).await?;
            let durable = runtime.spawn_blocking(move || {
                // What was to be redone has been replaced; while databases wait for redo they cannot be made durable,
                // and the log before `index` is about to go.
                store.end_replay();
                store.checkpoint()
            });
            let durable = durable.await;
            durable.map_err(io::Error::other)?.map_err(io::Error::other)
        })
    }
}
