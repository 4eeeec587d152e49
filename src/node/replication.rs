use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::control::{Control, HandoffOrder, VoterControl, with_followers};
use super::followed::remember_followed;
use super::followers_of_voters::{OtherVoters, watch_followers};
use super::holds::Holds;
use super::preparing::Preparing;
use super::voter::{RaftSlot, VoterTarget};
use super::{IdentityFile, NodeError, blocking, joining};
use crate::config::LimitSettings;
use crate::io::blobs::BlobStore;
use crate::proxy::WriteGate;
use crate::raft::{AddressBook, Beginning, Incarnation, PrimaryState, RaftNode, RaftOptions};
use crate::rpc::{self, GrpcConnector, RemoteCluster};
use crate::security::{MovedStream, NodeStream, Peering};
use crate::store::{Candidate, ClusterControl, CommittedLog, Member, PrimaryInfo, Store};
use crate::stream::{self, ClusterId, FollowOptions, Follower, PrimaryView, Serving};
use crate::types::{DbName, NodeId};

/// How this node takes part in the cluster's history.
pub(super) enum Replication {
    /// As a member of the Raft group.
    Voter {
        /// The log.
        raft: Arc<RaftNode>,
        /// What it is applied to.
        target: Arc<VoterTarget>,
        /// This node as primary, with the addresses of this run.
        own: PrimaryInfo,
        /// What is asked of the cluster as a whole.
        control: Arc<VoterControl>,
        /// Why this node is no member of the group any more, and how it is let in again.
        removed: watch::Sender<Option<String>>,
        /// The term of what applications may do here.
        term: Arc<AtomicU64>,
        /// Planned moves of the primary; taken once, by who carries them out.
        handoffs: Mutex<Option<mpsc::Receiver<HandoffOrder>>>,
    },
    /// As a follower of other nodes.
    Replica {
        /// The stream from them.
        follower: Arc<Follower>,
        /// The nodes that follow this one; empty until the cluster is known.
        serving: Arc<OnceLock<Arc<Serving>>>,
    },
}

/// Whom a voter tells where it is, and what it tells.
pub(super) type Enlistment = (Arc<dyn ClusterControl>, Candidate);

/// What both kinds are made of.
pub(super) struct Parts {
    pub(super) store: Arc<Store>,
    pub(super) blobs: Arc<BlobStore>,
    pub(super) identity: Arc<IdentityFile>,
    pub(super) listener: TcpListener,
    pub(super) advertise: String,
    pub(super) advertise_http: String,
    /// URL of the proxy in front of the application, empty where there is none.
    pub(super) advertise_proxy: String,
    pub(super) preparing: Preparing,
    pub(super) holds: Holds,
    pub(super) gate: WriteGate,
    /// Connections of other nodes' proxies.
    pub(super) proxy: Option<mpsc::Sender<NodeStream>>,
    /// Takes connections of other nodes to the API.
    pub(super) api: mpsc::Sender<NodeStream>,
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
    pub(super) failures: mpsc::Sender<NodeError>,
    pub(super) timing: Timing,
    pub(super) limits: LimitSettings,
    pub(super) peering: Peering,
}

/// What is waited for how long.
#[derive(Clone, Copy)]
pub(super) struct Timing {
    pub(super) heartbeat: std::time::Duration,
    pub(super) election_timeout: std::time::Duration,
    pub(super) commit_timeout: std::time::Duration,
    pub(super) drain_timeout: std::time::Duration,
}

/// How long a node that ends waits for another one to become primary.
const HANDOFF_MAX: std::time::Duration = std::time::Duration::from_secs(10);

impl Replication {
    /// Starts as a voter of `cluster`: redoes the log, and connects its entrance. `founders` are the
    /// other voters of a cluster that it founds; `book` knows where others were found.
    pub(super) async fn vote(
        parts: Parts,
        cluster: &ClusterId,
        (beginning, founders): (Beginning, Vec<Candidate>),
        book: AddressBook,
    ) -> Result<Self, NodeError> {
        let identity = parts.identity.get();
        let own = PrimaryInfo {
            name: identity.name.to_string(),
            addr: parts.advertise.clone(),
            http: parts.advertise_http.clone(),
        };
        let options = RaftOptions {
            addr: own.addr.clone(),
            http: own.http.clone(),
            beginning,
            founders,
            book,
            peering: parts.peering.clone(),
            heartbeat: parts.timing.heartbeat,
            election_timeout: parts.timing.election_timeout,
            commit_timeout: parts.timing.commit_timeout,
            retention_bytes: parts.limits.log_keep_bytes,
            retention: parts.limits.log_keep_age,
            disk_reserve_bytes: parts.limits.disk_reserve_bytes,
            incarnation: Incarnation { number: identity.starts, run: identity.run },
            ..RaftOptions::new(
                cluster.to_string(),
                identity.node,
                identity.name,
                parts.identity.layout().raft(),
            )
        };
        let slot = RaftSlot::default();
        let shutdown = parts.shutdown.clone();
        let (store, peering) = (parts.store.clone(), parts.peering.clone());
        let target =
            VoterTarget::new(store, identity.node, cluster.clone(), slot.clone(), peering.clone(), shutdown);
        let (applied_to, blobs) = (target.clone(), parts.blobs.clone());
        let started = blocking(move || RaftNode::start(options, applied_to, blobs));
        let raft = started.await?.map_err(|error| NodeError::Replication(error.to_string()))?;
        // Set once, here.
        let _ = slot.set(Arc::downgrade(&raft));
        parts.tasks.spawn(end_when_outdated(raft.clone(), parts.failures.clone(), parts.shutdown.clone()));
        parts.store.set_sink(raft.sink());
        let (view, views) = watch::channel(PrimaryView::default());
        let (states, stop) = (raft.watch_primary(), parts.shutdown.clone());
        parts.tasks.spawn(tell_followers(raft.clone(), states, own.clone(), view, stop));
        let ready = watch::Sender::new(true).subscribe();
        let who = wire_identity(&parts.identity, cluster, own.http.clone(), parts.advertise_proxy.clone())?;
        let store = parts.store.clone();
        let serving = Serving::new(who, raft.log(), store.clone(), views, ready, parts.shutdown.clone());
        let removed = watch::Sender::new(None);
        serving.set_removed(removed.subscribe());
        let (orders, handoffs) = mpsc::channel(4);
        let (told, elsewhere) = watch::channel(OtherVoters::default());
        parts.tasks.spawn(watch_followers(raft.clone(), peering, told, parts.shutdown.clone()));
        let control = Arc::new(VoterControl {
            raft: raft.clone(),
            store,
            serving: serving.clone(),
            elsewhere,
            handoffs: orders,
            forgotten: Mutex::default(),
            preparing: parts.preparing.clone(),
            holds: parts.holds.clone(),
            gate: parts.gate.clone(),
            drain_timeout: parts.timing.drain_timeout,
        });
        // Weak: the control has the serving side.
        let weak = Arc::downgrade(&control);
        serving.set_names_taken(Box::new(move |name, addr| {
            weak.upgrade().is_some_and(|control| control.is_name_taken(name, addr))
        }));
        let services = rpc::Services {
            raft: Some(raft.service()),
            cluster: Some((cluster.to_string(), control.clone())),
        };
        parts.serve(serving, services, Some(raft.connections()));
        let handoffs = Mutex::new(Some(handoffs));
        Ok(Replication::Voter { raft, target, own, control, removed, term: Arc::default(), handoffs })
    }

    /// Starts to follow `upstreams`; serves others itself as soon as the cluster is known.
    pub(super) fn follow(parts: Parts, upstreams: Vec<String>) -> Result<Self, NodeError> {
        let identity = parts.identity.get();
        let configured = upstreams.clone();
        let known = identity.cluster.as_deref().map(parse_cluster).transpose()?;
        let adopted = watch::Sender::new(known.clone());
        let mut adoption = adopted.subscribe();
        let file = parts.identity.clone();
        let options = FollowOptions {
            advertise: parts.advertise.clone(),
            cluster: known,
            adopt: Box::new(move |cluster| {
                file.update(|identity| identity.cluster = Some(cluster.as_str().to_owned()))
                    .map_err(std::io::Error::other)?;
                adopted.send_replace(Some(cluster.clone()));
                Ok(())
            }),
            ..FollowOptions::new(upstreams, identity.node, identity.name)
        };
        let connector = Arc::new(GrpcConnector::with_peering(parts.peering.clone()));
        let follower = Follower::start(options, parts.store.clone(), connector, parts.shutdown.clone())
            .map_err(|error| NodeError::System(format!("starting to follow: {error}")))?;
        let follower = Arc::new(follower);
        let repairs = Arc::downgrade(&follower);
        parts.store.set_repair(Box::new(move |db| {
            repairs.upgrade().into_iter().for_each(|follower| follower.repair(db));
        }));
        parts.store.scrub().map_err(|error| NodeError::System(error.to_string()))?;
        let serving = Arc::new(OnceLock::new());
        let (tasks, shutdown) = (parts.tasks.clone(), parts.shutdown.clone());
        tasks.spawn(remember_followed(
            follower.status(),
            configured,
            parts.identity.clone(),
            shutdown.clone(),
        ));
        tasks.spawn({
            let (follower, serving) = (follower.clone(), serving.clone());
            async move {
                let cluster = tokio::select! {
                    cluster = adoption.wait_for(Option::is_some) => cluster.ok().and_then(|cluster| cluster.clone()),
                    () = shutdown.cancelled() => None,
                };
                if let Some(cluster) = cluster {
                    parts.serve_as_replica(&follower, &serving, &cluster).await;
                }
            }
        });
        Ok(Replication::Replica { follower, serving })
    }

    /// Whom a voter has to tell where it is, and what.
    ///
    /// # Errors
    /// Where the node's name is none.
    pub(super) fn enlistment(
        &self,
        cluster: &ClusterId,
        node: NodeId,
        nodes: Vec<String>,
        peering: Peering,
    ) -> Result<Option<Enlistment>, NodeError> {
        let Replication::Voter { raft, own, .. } = self else { return Ok(None) };
        let candidate = joining::candidate(node, own, raft.has_log())?;
        Ok(Some((self.control(cluster, nodes, peering), candidate)))
    }

    /// The cluster as a whole; `nodes` are addresses it may be reached through besides the known ones.
    pub(super) fn control(
        &self,
        cluster: &ClusterId,
        nodes: Vec<String>,
        peering: Peering,
    ) -> Arc<dyn ClusterControl> {
        let known: Box<dyn Fn() -> Vec<String> + Send + Sync> = match self {
            Replication::Voter { raft, .. } => {
                let raft = raft.clone();
                Box::new(move || raft.peers())
            }
            Replication::Replica { follower, .. } => {
                let view = follower.view();
                Box::new(move || view.borrow().primary.iter().map(|primary| primary.addr.clone()).collect())
            }
        };
        let reach = Box::new(move || {
            let mut all = known();
            nodes.iter().for_each(|node| {
                if !all.contains(node) {
                    all.push(node.clone());
                }
            });
            all
        });
        let local = match self {
            Replication::Voter { control, .. } => Some(control.clone()),
            Replication::Replica { .. } => None,
        };
        Arc::new(Control { local, remote: RemoteCluster::new(cluster.to_string(), peering, reach) })
    }

    /// Waits until the cluster is known.
    pub(super) async fn wait_cluster(&self) {
        if let Replication::Replica { follower, .. } = self {
            let mut status = follower.status();
            // The end of the follower is the end of the node.
            let _ = status.wait_for(|status| status.connected || status.synced).await;
        }
    }

    /// The nodes of the cluster as this one knows them.
    pub(super) fn members(&self) -> Vec<Member> {
        match self {
            Replication::Voter { control, .. } => control.nodes(),
            Replication::Replica { follower, serving } => {
                let followers = serving.get().map(|serving| serving.members());
                with_followers(follower.members(), followers.unwrap_or_default())
            }
        }
    }

    /// Fetches what differs from another node's copy of a database that failed.
    pub(super) fn repair(&self, db: &DbName) {
        match self {
            Replication::Voter { target, .. } => target.repair(db),
            Replication::Replica { follower, .. } => follower.repair(db),
        }
    }

    /// Before this node ends: another voter becomes primary, if one can.
    pub(super) async fn step_down(&self) {
        let Replication::Voter { raft, control, .. } = self else { return };
        if raft.check_handoff(None).is_err() {
            return;
        }
        tracing::info!("handing the primary over before this node ends");
        // Applications end with this node, or can write here no more.
        control.holds.end();
        let handed = tokio::time::timeout(HANDOFF_MAX, control.hand_off(None)).await;
        if !matches!(handed, Ok(Ok(_))) {
            tracing::warn!("nobody took over; the others elect a primary by themselves");
        }
    }

    /// The committed entries as this node has them.
    pub(super) fn log(&self) -> Arc<dyn CommittedLog> {
        match self {
            Self::Voter { raft, .. } => raft.log(),
            Self::Replica { follower, .. } => follower.recent(),
        }
    }

    /// Whether this node's time as primary has passed without word from a quorum; it is fenced a moment later.
    pub(super) fn has_expired(&self) -> bool {
        let Replication::Voter { raft, .. } = self else { return false };
        let state = raft.watch_primary();
        state.borrow().until.is_some_and(|until| until <= Instant::now())
    }

    /// Why nothing can be written anywhere, as far as this node knows.
    pub(super) fn no_quorum(&self) -> Option<String> {
        match self {
            // A voter that was removed hears nothing, whatever the others have.
            Replication::Voter { removed, .. } if removed.borrow().is_some() => None,
            Replication::Voter { raft, control, .. } => {
                let lost = match raft.silence() {
                    None => self.has_expired(),
                    Some(_) => raft.lost_leader().is_some(),
                };
                lost.then(|| {
                    let (all, there) = raft.count_voters(&control.elsewhere.borrow().answering);
                    match there > all / 2 {
                        true => format!(
                            "{there} of {all} voters answer, but none is elected; nothing can be written"
                        ),
                        false => format!("{there} of {all} voters, so nothing can be written"),
                    }
                })
            }
            Replication::Replica { follower, .. } => {
                let known = follower.status().borrow().view.primary.is_some();
                (!known).then(|| "no primary is known, so nothing can be written".to_owned())
            }
        }
    }

    /// Why a replica has not got anything yet, where it is not let in or reaches nobody.
    pub(super) fn refusal(&self) -> Option<String> {
        let Replication::Replica { follower, .. } = self else { return None };
        let status = follower.status();
        let status = status.borrow();
        status.last_error.clone().filter(|_| !status.connected && !status.synced)
    }

    /// Why this node is no member of the cluster any more, where it was removed.
    pub(super) fn removed(&self) -> Option<String> {
        match self {
            Replication::Voter { removed, .. } => removed.borrow().clone(),
            Replication::Replica { .. } => None,
        }
    }

    /// The Raft term; 0 where unknown.
    pub(super) fn term(&self) -> u64 {
        match self {
            Replication::Voter { term, .. } => term.load(Ordering::SeqCst),
            Replication::Replica { follower, .. } => follower.view().borrow().term,
        }
    }

    /// Applies nothing more, while the log still takes what applications have written.
    pub(super) fn stop_applying(&self) {
        if let Replication::Voter { target, .. } = self {
            target.stop();
        }
    }

    /// Ends it.
    pub(super) async fn stop(&self) -> Result<(), NodeError> {
        match self {
            Replication::Voter { raft, .. } => {
                let raft = raft.clone();
                blocking(move || raft.shutdown()).await
            }
            Replication::Replica { follower, .. } => {
                let follower = follower.clone();
                blocking(move || follower.stop()).await
            }
        }
    }
}

impl Parts {
    async fn serve_as_replica(
        self,
        follower: &Follower,
        serving: &OnceLock<Arc<Serving>>,
        cluster: &ClusterId,
    ) {
        let (http, proxy) = (self.advertise_http.clone(), self.advertise_proxy.clone());
        match wire_identity(&self.identity, cluster, http, proxy) {
            Ok(who) => {
                let (view, ready) = (follower.view(), follower.ready());
                let log = follower.recent();
                let made = Serving::new(who, log, self.store.clone(), view, ready, self.shutdown.clone());
                self.serve(serving.get_or_init(|| made).clone(), rpc::Services::default(), None);
            }
            Err(error) => drop(self.failures.send(error).await),
        }
    }

    fn serve(self, serving: Arc<Serving>, services: rpc::Services, raft: Option<mpsc::Sender<MovedStream>>) {
        let (routes, peering, shutdown) = (rpc::routes(serving, services), self.peering, self.shutdown);
        let (listener, failures) = (self.listener, self.failures);
        let elsewhere = rpc::Elsewhere { raft, proxy: self.proxy, api: Some(self.api) };
        self.tasks.spawn(async move {
            if let Err(error) = rpc::serve(listener, routes, elsewhere, peering, shutdown).await {
                let error = NodeError::Replication(format!("the gRPC server failed: {error}"));
                // Nobody to tell: the node ends already.
                let _ = failures.send(error).await;
            }
        });
    }
}

/// Ends the node where its data directory is found to be an older copy: what it has forgotten, others rely on.
async fn end_when_outdated(
    raft: Arc<RaftNode>,
    failures: mpsc::Sender<NodeError>,
    shutdown: CancellationToken,
) {
    tokio::select! {
        // Nobody to tell: the node ends already.
        why = raft.outdated() => drop(failures.send(NodeError::Cluster(why)).await),
        () = shutdown.cancelled() => {}
    }
}

/// Keeps what followers are told about the primary in step with the log.
async fn tell_followers(
    raft: Arc<RaftNode>,
    mut states: watch::Receiver<PrimaryState>,
    own: PrimaryInfo,
    view: watch::Sender<PrimaryView>,
    shutdown: CancellationToken,
) {
    loop {
        let state = states.borrow_and_update().clone();
        view.send_replace(PrimaryView {
            // One that no quorum has answered for too long takes no writes.
            primary: primary_of(&state, &own)
                .filter(|_| state.until.is_none_or(|until| until > Instant::now())),
            term: state.term,
            path: Vec::new(),
            voters: raft.peers().into_iter().chain([own.addr.clone()]).collect(),
        });
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            () = expiry(&state) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Returns when this node's time as primary is over without further word from a quorum.
async fn expiry(state: &PrimaryState) {
    match state.until.filter(|until| *until > Instant::now()) {
        Some(until) => tokio::time::sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

pub(super) fn parse_cluster(text: &str) -> Result<ClusterId, NodeError> {
    text.parse().map_err(|error| NodeError::Cluster(format!("node.toml: {error}")))
}

fn wire_identity(
    file: &IdentityFile,
    cluster: &ClusterId,
    http: String,
    proxy: String,
) -> Result<stream::PeerIdentity, NodeError> {
    let identity = file.get();
    Ok(stream::PeerIdentity {
        cluster: cluster.clone(),
        node: identity.node,
        name: identity.name,
        protocol_version: stream::PROTOCOL_VERSION,
        role: identity.role,
        http,
        proxy,
    })
}

/// The primary as others are told it: a node knows its own addresses of this run better than the log does.
pub(super) fn primary_of(state: &PrimaryState, own: &PrimaryInfo) -> Option<PrimaryInfo> {
    match &state.primary {
        Some(leader) if state.is_self || leader.name == own.name => Some(own.clone()),
        leader => leader.clone(),
    }
}
