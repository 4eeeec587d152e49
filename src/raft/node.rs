//! The Raft of one node, on a thread of its own.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::acks::Acks;
use super::committed::RaftLog;
use super::driver::Driver;
use super::error::RaftError;
use super::handle::RaftHandle;
use super::holders::Holders;
use super::incarnations::Incarnations;
use super::log_store::StoreShared;
use super::options::RaftOptions;
use super::primary::PrimaryState;
use super::sink::RaftSink;
use super::start::{self, Started, Surroundings};
use super::target::SharedTarget;
use super::transport::{Heard, RaftServer};
use crate::io::blobs::BlobStore;
use crate::security::MovedStream;
use crate::store::{CommitSink, CommittedLog};

/// The Raft of this node.
pub struct RaftNode {
    pub(super) options: RaftOptions,
    pub(super) raft: RaftHandle,
    sink: Arc<RaftSink>,
    log: Arc<RaftLog>,
    store: Arc<StoreShared>,
    service: RaftServer,
    connections: mpsc::Sender<MovedStream>,
    primary: watch::Receiver<PrimaryState>,
    pub(super) acks: Acks,
    pub(super) holders: Arc<Holders>,
    incarnations: Arc<Incarnations>,
    heard: Arc<Heard>,
    stop: CancellationToken,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl RaftNode {
    /// Starts Raft: opens the log, applies what is committed and not yet durable in the databases, and, with one
    /// voter, leads. Blocking; not on an async thread.
    ///
    /// # Errors
    /// Where the log is damaged, or the wish to found a cluster does not fit what is there.
    pub fn start(
        options: RaftOptions,
        target: SharedTarget,
        blobs: Arc<BlobStore>,
    ) -> Result<Arc<Self>, RaftError> {
        let (sender, receiver) = oneshot::channel();
        let stop = CancellationToken::new();
        let inside = (options.clone(), stop.clone());
        let acks = Acks::default();
        let incarnations = Incarnations::open(options.incarnation, options.peers_file.clone())?;
        let network = start::network(&options, acks.clone(), incarnations.clone());
        let around = Surroundings { target, blobs, network, acks, incarnations };
        // One thread for all of Raft: from proposal to fate there is no other thread to wake up.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let driver = Arc::new(Driver::new(runtime));
        let own = driver.clone();
        let thread = std::thread::Builder::new().name("skein-raft".into()).spawn(move || {
            let (options, stop) = inside;
            own.run(start::run(options, around, stop, sender));
        })?;
        let ended = || RaftError::Raft("its thread ended while starting".into());
        match receiver.blocking_recv().map_err(|_| ended())? {
            Ok(started) => {
                driver.lend(started.pending.clone(), started.store.clone());
                started.sink.lend(driver);
                Ok(Self::around(options, started, stop, Some(thread)))
            }
            Err(error) => {
                // It has told its reason; what else it may say is of no use.
                let _ = thread.join();
                Err(error)
            }
        }
    }

    /// A node around a Raft that runs: until `stop`, on `thread` or on the runtime it was started on.
    pub(super) fn around(
        options: RaftOptions,
        started: Started,
        stop: CancellationToken,
        thread: Option<std::thread::JoinHandle<()>>,
    ) -> Arc<Self> {
        let Started {
            raft,
            sink,
            log,
            store,
            service,
            connections,
            primary,
            acks,
            holders,
            incarnations,
            heard,
            pending: _,
        } = started;
        let thread = Mutex::new(thread);
        Arc::new(Self {
            options,
            raft,
            sink,
            log,
            store,
            service,
            connections,
            primary,
            acks,
            holders,
            incarnations,
            heard,
            stop,
            thread,
        })
    }

    /// The log's entrance.
    pub fn sink(&self) -> Arc<dyn CommitSink> {
        self.sink.clone()
    }

    /// The committed entries.
    pub fn log(&self) -> Arc<dyn CommittedLog> {
        self.log.clone()
    }

    /// The gRPC service that the other voters need.
    pub fn service(&self) -> RaftServer {
        self.service.clone()
    }

    /// Takes connections that other voters have made to this node's Raft thread.
    pub fn connections(&self) -> mpsc::Sender<MovedStream> {
        self.connections.clone()
    }

    /// Who is primary, as it changes.
    pub fn watch_primary(&self) -> watch::Receiver<PrimaryState> {
        self.primary.clone()
    }

    /// Returns when another voter has met a later run of this node: its data directory is an older copy. The text says
    /// so, and the remedy.
    pub async fn outdated(&self) -> String {
        let mut outdated = self.incarnations.outdated();
        let by = outdated.wait_for(Option::is_some).await.ok().and_then(|by| *by);
        let members = self.raft.metrics().borrow_watched().membership_config.membership().clone();
        start::outdated_text(&self.options, by.and_then(|by| members.get_node(&by).cloned()))
    }

    /// How long ago another voter last spoke as leader; `None` while this one leads.
    pub fn silence(&self) -> Option<Duration> {
        let leads = self.raft.metrics().borrow_watched().state == ServerState::Leader;
        (!leads).then(|| self.heard.silence())
    }

    /// How long no leader has been heard of, where that is longer than elections take.
    pub fn lost_leader(&self) -> Option<Duration> {
        self.silence().filter(|silence| *silence >= self.options.silence_max())
    }

    /// The present term.
    pub fn term(&self) -> u64 {
        self.primary.borrow().term
    }

    /// Syncs of the log so far.
    pub fn syncs(&self) -> u64 {
        self.store.syncs()
    }

    /// Ends Raft; proposals without fate are told that it is unknown. Blocking.
    pub fn shutdown(&self) {
        self.stop.cancel();
        let thread = self.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the raft thread ended abnormally");
        }
    }
}

impl Drop for RaftNode {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
