//! The start of Raft, on its own thread.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use openraft::network::NetSnapshot;
use openraft::{Config, Raft, RaftNetworkFactory, ServerState, SnapshotPolicy};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::acks::Acks;
use super::codec;
use super::committed::RaftLog;
use super::error::RaftError;
use super::first_committed::FirstCommitted;
use super::handle::RaftHandle;
use super::holders::Holders;
use super::incarnations::Incarnations;
use super::introduce;
use super::log_store::{LogStore, StoreShared};
use super::options::{Beginning, RaftOptions};
use super::pending::Pending;
use super::primary::{self, PrimaryState, Watched};
use super::promotion;
use super::retention::{self, Retention};
use super::segment_log::LogOptions;
use super::sink::{Proposals, RaftSink, Submit};
use super::state_machine::StateMachine;
use super::target::SharedTarget;
use super::transport::{BlobSender, Heard, Network, RaftServer, RaftService, serve_direct};
use super::types::{Peer, TypeConfig};
use crate::io::blobs::BlobStore;
use crate::io::watchdog;
use crate::security::MovedStream;
use crate::types::NodeName;

/// What the Raft thread hands back once it runs.
pub(super) struct Started {
    pub raft: RaftHandle,
    pub sink: Arc<RaftSink>,
    pub log: Arc<RaftLog>,
    pub store: Arc<StoreShared>,
    pub service: RaftServer,
    pub connections: mpsc::Sender<MovedStream>,
    pub primary: watch::Receiver<PrimaryState>,
    pub acks: Acks,
    pub holders: Arc<Holders>,
    pub incarnations: Arc<Incarnations>,
    pub heard: Arc<Heard>,
    pub pending: Arc<Pending>,
}

fn raft_error(error: impl std::fmt::Display) -> RaftError {
    RaftError::Raft(error.to_string())
}

/// A whole number of milliseconds, at least one.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn config(options: &RaftOptions) -> Result<Arc<Config>, RaftError> {
    let config = Config {
        cluster_name: "skein".into(),
        heartbeat_interval: millis(options.heartbeat),
        election_timeout_min: millis(options.election_timeout),
        election_timeout_max: millis(options.lease()),
        // Snapshots are handles and the log is purged by bytes and time (trap 13).
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        max_payload_entries: 1024,
        api_channel_size: Some(4096),
        enable_pre_vote: Some(true),
        // A leader that comes back has to be elected again: others may have gone on without it.
        enable_leader_restore: Some(false),
        broadcast_submitted_on_append: Some(true),
        ..Config::default()
    };
    config.validate().map(Arc::new).map_err(raft_error)
}

/// The network between voters that a node's options lead to.
pub(super) fn network(options: &RaftOptions, acks: Acks, incarnations: Arc<Incarnations>) -> Network {
    Network {
        cluster: options.cluster.clone(),
        id: options.node.get(),
        book: options.book.clone(),
        peering: options.peering.clone(),
        acks,
        patience: options.lease(),
        incarnations,
    }
}

/// The ways to the other voters: for messages, and for what is too large for them.
pub(super) trait Ways: RaftNetworkFactory<TypeConfig> + BlobSender + Clone {}

impl<N: RaftNetworkFactory<TypeConfig> + BlobSender + Clone> Ways for N {}

/// What a node's Raft is made for.
pub(super) struct Surroundings<N> {
    /// What entries are applied to.
    pub target: SharedTarget,
    /// Large change sets.
    pub blobs: Arc<BlobStore>,
    /// The ways to the other voters.
    pub network: N,
    /// What the network notes of their answers.
    pub acks: Acks,
    /// Which runs of which voters have been met.
    pub incarnations: Arc<Incarnations>,
}

/// The life of a node's Raft, on the runtime it is called on, until `stop`.
pub(super) async fn run<N: Ways>(
    options: RaftOptions,
    around: Surroundings<N>,
    stop: CancellationToken,
    started: oneshot::Sender<Result<Started, RaftError>>,
) where
    N::Network: NetSnapshot<TypeConfig, SnapshotData = ()>,
{
    let pending = Arc::new(Pending::default());
    let parts = match start(&options, around, pending.clone()).await {
        Ok(parts) => parts,
        Err(error) => return drop(started.send(Err(error))),
    };
    let Parts { running, proposals, submit, keep, connections } = parts;
    let check = options.peering.check_token();
    tokio::spawn(serve_direct(running.service.clone(), check, connections, stop.clone()));
    let raft = running.raft.clone();
    tokio::spawn(submit.run(proposals));
    tokio::spawn(beat(options.lease() / 4));
    tokio::spawn(retention::run(raft.clone(), keep, running.holders.clone(), stop.clone()));
    tokio::spawn(introduce::introduce(running.holders.clone(), stop.clone()));
    tokio::spawn(promotion::promote_learners(running.holders.clone(), stop.clone()));
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

/// Says that Raft's thread goes on.
async fn beat(every: Duration) {
    let call = watchdog::begin("running Raft");
    let mut times = tokio::time::interval(every);
    loop {
        times.tick().await;
        call.goes_on();
    }
}

/// What the thread is made of.
struct Parts {
    running: Started,
    proposals: Proposals,
    submit: Submit,
    keep: Retention,
    connections: mpsc::Receiver<MovedStream>,
}

async fn start<N: Ways>(
    options: &RaftOptions,
    around: Surroundings<N>,
    pending: Arc<Pending>,
) -> Result<Parts, RaftError>
where
    N::Network: NetSnapshot<TypeConfig, SnapshotData = ()>,
{
    let Surroundings { target, blobs, network, acks, incarnations } = around;
    if options.beginning == Beginning::Never && !segments_exist(&options.dir) {
        return Err(RaftError::NoCluster(options.dir.clone()));
    }
    let store = LogStore::open(LogOptions {
        dir: options.dir.clone(),
        segment_bytes: options.segment_bytes,
        names: codec::blobs_of,
    })?;
    let (shared, entries, recycle) = (store.shared(), store.entries(), store.recycler());
    let starved = Box::new(store.starved());
    target.begin_replay();
    let members_file = options.dir.join("membership");
    let machine =
        StateMachine::open(target.clone(), pending.clone(), &entries, shared.clone(), members_file)?;
    let id = options.node.get();
    if shared.vote()?.is_some() && !machine.is_alone(id) {
        // Promises not to vote are not remembered across restarts (trap 3): whoever was promised may still rely on it.
        // Meanwhile the others are told of this run, or tell that they have met a later one.
        let others = introduce::greet(&network, machine.others(id), options.lease());
        tokio::join!(tokio::time::sleep(options.lease()), others);
        if let Some(by) = *incarnations.outdated().borrow() {
            return Err(RaftError::Outdated(outdated_text(options, machine.peer(by))));
        }
    }
    let (handle, committed) = (Arc::new(OnceLock::new()), FirstCommitted::default());
    let heard = Arc::<Heard>::default();
    let service = RaftService::server(
        options.cluster.clone(),
        id,
        handle.clone(),
        blobs.clone(),
        target.settled(),
        committed.clone(),
        incarnations.clone(),
        heard.clone(),
    );
    let sender = Arc::new(network.clone());
    let raft = Raft::new(id, config(options)?, network, store, machine).await.map_err(raft_error)?;
    if options.beginning == Beginning::Found && !raft.is_initialized().await.map_err(raft_error)? {
        raft.initialize(founders(options)).await.map_err(raft_error)?;
    }
    let keep = Retention::new(options, entries.clone(), blobs.clone(), target.clone(), Box::new(recycle));
    if !keep.may_lead() {
        retention::stand_for_election(&raft, false);
    }
    lead_alone(&raft, id).await?;
    // Set once, here.
    let _ = handle.set(raft.clone());
    let led_term = Arc::new(AtomicU64::new(0));
    let primary = primary::watch(Watched {
        raft: raft.clone(),
        id,
        replayed: target.replayed(),
        store: shared.clone(),
        target: target.clone(),
        led_term: led_term.clone(),
        acks: acks.clone(),
        committed,
        lease: options.lease(),
        heard: heard.clone(),
        silence_max: options.silence_max(),
    });
    let log = Arc::new(RaftLog::new(entries.clone(), target.shippable()));
    let (sink, proposals) = RaftSink::new(pending.clone(), starved, led_term, blobs.clone());
    let voters = tokio::sync::RwLock::default();
    let settled = target.settled();
    let holders = Arc::new(Holders { raft: raft.clone(), id, sender, blobs, settled, voters });
    let submit = Submit { raft: raft.clone(), pending: pending.clone(), holders: holders.clone() };
    let (connect, connections) = mpsc::channel(64);
    let sink = Arc::new(sink);
    let running = Started {
        raft,
        sink,
        log,
        store: shared,
        service,
        connections: connect,
        primary,
        acks,
        holders,
        incarnations,
        heard,
        pending,
    };
    Ok(Parts { running, proposals, submit, keep, connections })
}

/// The voters of a cluster that this node founds.
fn founders(options: &RaftOptions) -> BTreeMap<u64, Peer> {
    let peer = |name: &NodeName, addr: &str, http: &str| Peer {
        name: name.to_string(),
        addr: addr.to_owned(),
        http: http.to_owned(),
        votes: true,
    };
    let own = (options.node.get(), peer(&options.name, &options.addr, &options.http));
    let others =
        options.founders.iter().map(|other| (other.node.get(), peer(&other.name, &other.addr, &other.http)));
    others.chain([own]).collect()
}

/// What is said where another node, which the members know as `by`, has met a later run of this one.
pub(super) fn outdated_text(options: &RaftOptions, by: Option<Peer>) -> String {
    let Peer { name, addr, http, .. } = by.unwrap_or_else(|| Peer {
        name: "another voter".into(),
        addr: "HOST:PORT".into(),
        http: "URL".into(),
        votes: true,
    });
    let (own, data) = (&options.name, options.dir.parent().unwrap_or(&options.dir).display());
    format!(
        "the data directory {data} was put back from an older copy: {name} has met a later run of this node, which may have acknowledged entries and given votes that are not in it; run skein members remove {own} --url {http}, empty {data}, and start this node with --join {addr}"
    )
}

/// A single voter need not wait for an election timeout, nor for leases of others (trap 3): there are none.
async fn lead_alone(raft: &RaftHandle, id: u64) -> Result<(), RaftError> {
    // From Raft itself: right after its start the metrics still say nothing.
    let look = move |state: &openraft::RaftState<TypeConfig>| {
        let alone = state.membership_state.effective().voter_ids().eq([id]);
        (alone, state.server_state)
    };
    let (alone, state) = raft.with_raft_state(look).await.map_err(raft_error)?;
    if !alone {
        return Ok(());
    }
    if state != ServerState::Leader {
        raft.trigger().elect(false).await.map_err(raft_error)?;
    }
    let wait = raft.wait(Some(Duration::from_secs(60)));
    wait.state(ServerState::Leader, "the only voter leads").await.map_err(raft_error)?;
    let last = raft.with_raft_state(|state| state.log_ids.last().map(|id| id.index)).await;
    let last = last.map_err(raft_error)?;
    let wait = raft.wait(Some(Duration::from_secs(3600)));
    wait.applied_index_at_least(last, "the log is applied").await.map_err(raft_error)?;
    Ok(())
}

pub(super) fn segments_exist(dir: &std::path::Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("segment-"))
    })
}
