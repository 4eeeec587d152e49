//! The Raft of one node, on a thread of its own.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{Config, Raft, ServerState, SnapshotPolicy};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::committed::RaftLog;
use super::log_store::{LogStore, StoreShared};
use super::pending::Pending;
use super::primary::{self, PrimaryState};
use super::retention::{self, Retention};
use super::segment_log::{LogError, LogOptions};
use super::sink::{RaftSink, submit};
use super::state_machine::StateMachine;
use super::target::SharedTarget;
use super::transport::NoPeers;
use super::types::{Peer, TypeConfig};
use crate::io::blobs::BlobStore;
use crate::store::{CommitSink, CommittedLog, Member};
use crate::types::{NodeId, NodeName, Role};

/// openraft with our types.
pub(super) type RaftHandle = Raft<TypeConfig, StateMachine>;

/// What a node's Raft is started with.
#[derive(Debug, Clone)]
pub struct RaftOptions {
    /// This node.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// The log's directory.
    pub dir: PathBuf,
    /// HOST:PORT at which others reach its gRPC.
    pub addr: String,
    /// URL at which others reach its HTTP.
    pub http: String,
    /// Found a new cluster of one voter where there is none yet.
    pub bootstrap: bool,
    /// Entries kept for those who follow, in bytes.
    pub retention_bytes: u64,
    /// How long entries are kept for those who follow.
    pub retention: Duration,
    /// Size of a log segment in bytes.
    pub segment_bytes: u64,
    /// How long a proposal may be without fate before its outcome counts as unknown.
    pub commit_timeout: Duration,
}

impl RaftOptions {
    /// The defaults for a node: 256 MiB or 24 h of entries kept, segments of 16 MiB, 5 s for a commit.
    pub fn new(node: NodeId, name: NodeName, dir: PathBuf) -> Self {
        Self {
            node,
            name,
            dir,
            addr: String::new(),
            http: String::new(),
            bootstrap: false,
            retention_bytes: 256 << 20,
            retention: Duration::from_secs(24 * 3600),
            segment_bytes: 16 << 20,
            commit_timeout: Duration::from_secs(5),
        }
    }
}

/// Why Raft did not start or ended.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// Neither a cluster nor the wish for one.
    #[error("{0} holds no cluster; found one with --bootstrap, or join one with --join HOST:PORT")]
    NoCluster(PathBuf),
    /// The log's files.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Raft itself.
    #[error("raft: {0}")]
    Raft(String),
    /// A system call failed.
    #[error("starting raft: {0}")]
    Io(#[from] io::Error),
}

/// The Raft of this node.
pub struct RaftNode {
    options: RaftOptions,
    raft: RaftHandle,
    sink: Arc<RaftSink>,
    log: Arc<RaftLog>,
    store: Arc<StoreShared>,
    primary: watch::Receiver<PrimaryState>,
    stop: CancellationToken,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// What the Raft thread hands back once it runs.
struct Started {
    raft: RaftHandle,
    sink: Arc<RaftSink>,
    log: Arc<RaftLog>,
    store: Arc<StoreShared>,
    primary: watch::Receiver<PrimaryState>,
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
        // One thread for all of Raft: from proposal to fate there is no other thread to wake up.
        let thread = std::thread::Builder::new().name("skein-raft".into()).spawn(move || {
            let (options, stop) = inside;
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(run(options, target, blobs, stop, sender)),
                Err(error) => drop(sender.send(Err(error.into()))),
            }
        })?;
        let ended = || RaftError::Raft("its thread ended while starting".into());
        match receiver.blocking_recv().map_err(|_| ended())? {
            Ok(Started { raft, sink, log, store, primary }) => {
                let thread = Mutex::new(Some(thread));
                Ok(Arc::new(Self { options, raft, sink, log, store, primary, stop, thread }))
            }
            Err(error) => {
                // It has told its reason; what else it may say is of no use.
                let _ = thread.join();
                Err(error)
            }
        }
    }

    /// The log's entrance.
    pub fn sink(&self) -> Arc<dyn CommitSink> {
        self.sink.clone()
    }

    /// The committed entries.
    pub fn log(&self) -> Arc<dyn CommittedLog> {
        self.log.clone()
    }

    /// Who is primary, as it changes.
    pub fn watch_primary(&self) -> watch::Receiver<PrimaryState> {
        self.primary.clone()
    }

    /// The present term.
    pub fn term(&self) -> u64 {
        self.primary.borrow().term
    }

    /// Syncs of the log so far.
    pub fn syncs(&self) -> u64 {
        self.store.syncs()
    }

    /// The voters.
    pub fn members(&self) -> Vec<Member> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.unwrap_or(0);
        let membership = metrics.membership_config.membership().clone();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let member = |(id, peer): (&u64, &Peer)| {
            let own = *id == self.options.node.get();
            let matched = metrics.replication.as_ref().and_then(|all| all.get(id).copied().flatten());
            let index = if own { last } else { matched.map_or(0, |at| at.index) };
            Some(Member {
                name: peer.name.parse().ok()?,
                role: if voters.contains(id) { Role::Voter } else { Role::Replica },
                addr: peer.addr.clone(),
                healthy: own || index == last,
                lag: (index == last).then_some(Duration::ZERO),
                lag_entries: last.saturating_sub(index),
            })
        };
        membership.nodes().filter_map(member).collect()
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

fn config() -> Result<Arc<Config>, RaftError> {
    let config = Config {
        cluster_name: "skein".into(),
        heartbeat_interval: 100,
        election_timeout_min: 300,
        election_timeout_max: 600,
        // Snapshots are handles and the log is purged by bytes and time (trap 13).
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        max_payload_entries: 1024,
        api_channel_size: Some(4096),
        enable_pre_vote: Some(true),
        ..Config::default()
    };
    config.validate().map(Arc::new).map_err(|error| RaftError::Raft(error.to_string()))
}

async fn run(
    options: RaftOptions,
    target: SharedTarget,
    blobs: Arc<BlobStore>,
    stop: CancellationToken,
    started: oneshot::Sender<Result<Started, RaftError>>,
) {
    let pending = Arc::new(Pending::default());
    let (running, proposals, keep) = match start(&options, &target, blobs, pending.clone()).await {
        Ok(parts) => parts,
        Err(error) => return drop(started.send(Err(error))),
    };
    let raft = running.raft.clone();
    tokio::spawn(submit(raft.clone(), proposals, pending.clone()));
    tokio::spawn(retention::run(raft.clone(), keep, target, stop.clone()));
    let expiry = pending.clone();
    let age = options.commit_timeout;
    tokio::spawn(async move {
        // A timer is the event here: nothing else tells that an answer is late.
        let mut tick = tokio::time::interval((age / 10).max(Duration::from_millis(10)));
        loop {
            tick.tick().await;
            expiry.expire(age);
        }
    });
    if started.send(Ok(running)).is_ok() {
        stop.cancelled().await;
    }
    if let Err(error) = raft.shutdown().await {
        tracing::warn!(%error, "raft ended abnormally");
    }
    pending.abandon("the node was shut down");
}

async fn start(
    options: &RaftOptions,
    target: &SharedTarget,
    blobs: Arc<BlobStore>,
    pending: Arc<Pending>,
) -> Result<(Started, super::sink::Proposals, Retention), RaftError> {
    if !options.bootstrap && !segments_exist(&options.dir) {
        return Err(RaftError::NoCluster(options.dir.clone()));
    }
    let store =
        LogStore::open(LogOptions { dir: options.dir.clone(), segment_bytes: options.segment_bytes })?;
    let (shared, entries, recycle) = (store.shared(), store.entries(), store.recycler());
    let starved = Box::new(store.starved());
    let members_file = options.dir.join("membership");
    let machine =
        StateMachine::open(target.clone(), pending.clone(), &entries, shared.purged(), members_file)?;
    let applied = machine.watch_applied();
    target.begin_replay();
    let raft_error = |error: &dyn std::fmt::Display| RaftError::Raft(error.to_string());
    let id = options.node.get();
    let raft = Raft::new(id, config()?, NoPeers, store, machine).await.map_err(|error| raft_error(&error))?;
    if options.bootstrap && !raft.is_initialized().await.map_err(|error| raft_error(&error))? {
        let peer =
            Peer { name: options.name.to_string(), addr: options.addr.clone(), http: options.http.clone() };
        raft.initialize(BTreeMap::from([(id, peer)])).await.map_err(|error| raft_error(&error))?;
    }
    lead_alone(&raft, id).await?;
    target.end_replay();
    let primary = primary::watch(raft.clone(), id, applied.clone(), shared.clone());
    let log = Arc::new(RaftLog::new(entries.clone(), applied));
    let (sink, proposals) = RaftSink::new(pending, starved);
    let keep = Retention::new(options, entries, blobs, Box::new(recycle));
    Ok((Started { raft, sink: Arc::new(sink), log, store: shared, primary }, proposals, keep))
}

/// A single voter need not wait for an election timeout, nor for leases of others (trap 3): there are none.
async fn lead_alone(raft: &RaftHandle, id: u64) -> Result<(), RaftError> {
    let failed = |error: &dyn std::fmt::Display| RaftError::Raft(error.to_string());
    // From Raft itself: right after its start the metrics still say nothing.
    let look = move |state: &openraft::RaftState<TypeConfig>| {
        let alone = state.membership_state.effective().voter_ids().eq([id]);
        (alone, state.server_state)
    };
    let (alone, state) = raft.with_raft_state(look).await.map_err(|error| failed(&error))?;
    if !alone {
        return Ok(());
    }
    if state != ServerState::Leader {
        raft.trigger().elect(false).await.map_err(|error| failed(&error))?;
    }
    let wait = raft.wait(Some(Duration::from_secs(60)));
    wait.state(ServerState::Leader, "the only voter leads").await.map_err(|error| failed(&error))?;
    let last = raft.with_raft_state(|state| state.log_ids.last().map(|id| id.index)).await;
    let last = last.map_err(|error| failed(&error))?;
    let wait = raft.wait(Some(Duration::from_secs(3600)));
    wait.applied_index_at_least(last, "the log is applied").await.map_err(|error| failed(&error))?;
    Ok(())
}

fn segments_exist(dir: &std::path::Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("segment-"))
    })
}
