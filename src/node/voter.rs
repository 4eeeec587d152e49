//! A voter's databases as its log sees them.

use std::io;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::raft::{LogTarget, RaftNode};
use crate::rpc::GrpcConnector;
use crate::security::Peering;
use crate::store::{Change, Lease, Store, StoreError};
use crate::stream::{Applier, ApplierOptions, ClusterId};
use crate::types::{DbName, LogIndex, NodeId};

/// Entries that may wait for slow databases, in bytes.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// How often databases that were fetched are tried to be made durable,
const DURABLE_TRIES_MAX: u32 = 20;
/// and the time between two tries.
const DURABLE_AGAIN_AFTER: Duration = Duration::from_millis(500);

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
        peering: Peering,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let options = ApplierOptions {
            node,
            cluster,
            sources: Box::new(move || raft.get()?.upgrade().map(|raft| raft.peers())),
            queue_bytes_max: QUEUE_BYTES_MAX,
        };
        let connector = Arc::new(GrpcConnector::with_peering(peering));
        let applier = Applier::start(options, store.clone(), connector, shutdown);
        let repairs = Arc::downgrade(&applier);
        store.set_repair(Box::new(move |db| {
            repairs.upgrade().into_iter().for_each(|applier| applier.repair(db))
        }));
        let runtime = tokio::runtime::Handle::current();
        Arc::new(Self { store, applier, replayed: watch::Sender::new(false), runtime })
    }

    /// See [`Applier::repair`].
    pub(super) fn repair(&self, db: &DbName) {
        self.applier.repair(db);
    }

    /// Does what may block, off Raft's thread. Databases that lack entries see to it when they have them.
    fn aside(&self, work: impl FnOnce() + Send + 'static) {
        // The node ends only after it.
        let _running = self.runtime.spawn_blocking(work);
    }

    /// Applies nothing more: the databases are about to be closed.
    pub(super) fn stop(&self) {
        self.applier.stop();
    }
}

impl LogTarget for VoterTarget {
    fn entry(&self, index: LogIndex, change: Option<Change>) {
        if let Some(change) = &change {
            self.store.logged(index, change);
        }
        self.applier.take(index, change);
    }

    fn term_began(&self, _term: u64) {
        let store = self.store.clone();
        let applier = self.applier.clone();
        self.aside(move || {
            store.proposals_resolved();
            // Whoever is primary, another voter may have what these lack.
            store.failed().iter().for_each(|db| applier.repair(db));
        });
    }

    fn lease(&self, lease: Lease) {
        self.store.set_lease(lease);
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

    fn databases_bytes(&self) -> u64 {
        self.store.list().iter().map(|database| database.size_bytes).sum()
    }

    fn begin_replay(&self) {
        self.store.begin_replay();
    }

    fn end_replay(&self) {
        let (store, replayed) = (self.store.clone(), self.replayed.clone());
        // Comparing all pages is nothing for Raft's thread.
        self.aside(move || {
            store.end_replay();
            replayed.send_replace(true);
            if let Err(error) = store.scrub() {
                tracing::warn!(%error, "databases are not compared with their checksums");
            }
        });
    }

    fn fetch(&self, index: LogIndex) -> BoxFuture<'static, io::Result<()>> {
        let (applier, store) = (self.applier.clone(), self.store.clone());
        let runtime = self.runtime.clone();
        Box::pin(async move {
            applier.fetch_all(index).await?;
            runtime.spawn(make_durable(store, index)).await.map_err(io::Error::other)?
        })
    }
}

/// Makes durable what was fetched up to entry `index`: the log before it is about to go, so that nothing could be
/// redone from it.
async fn make_durable(store: Arc<Store>, index: LogIndex) -> io::Result<()> {
    let mut tries = 1;
    loop {
        let store = store.clone();
        let durable = tokio::task::spawn_blocking(move || {
            // What was to be redone has been replaced, and what waits for redo cannot be made durable.
            store.end_replay();
            store.checkpoint()?;
            Ok::<_, StoreError>(store.durable_index())
        });
        let durable = durable.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        if durable >= index {
            return Ok(());
        }
        if tries == DURABLE_TRIES_MAX {
            let why =
                format!("the databases were fetched up to entry {index} and are durable up to {durable}");
            return Err(io::Error::other(why));
        }
        // A reader of an older state holds a checkpoint back, or another one is at work.
        tries += 1;
        tokio::time::sleep(DURABLE_AGAIN_AFTER).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::blobs::BlobStore;
    use crate::store::{Layout, StoreOptions};
    use crate::types::Access;

    #[tokio::test(start_paused = true)]
    async fn what_was_fetched_and_cannot_be_made_durable_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_path_buf());
        let blobs = Arc::new(BlobStore::open(layout.blobs()).unwrap());
        let options = StoreOptions {
            layout,
            node: NodeId::new(1),
            access: Access::Fenced,
            blobs,
            held_files: Default::default(),
        };
        let store = Store::open(options).unwrap();
        store.applied(LogIndex::new(4));
        let why = make_durable(store.clone(), LogIndex::new(5)).await.unwrap_err().to_string();
        assert!(why.contains("up to entry 5 and are durable up to 4"), "{why}");
        store.applied(LogIndex::new(5));
        make_durable(store, LogIndex::new(5)).await.unwrap();
    }
}
