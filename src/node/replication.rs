use std::sync::{Arc, OnceLock};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::primary::primary_of;
use super::{IdentityFile, NodeError, blocking};
use crate::io::blobs::BlobStore;
use crate::raft::{PrimaryState, RaftNode, RaftOptions};
use crate::rpc::{self, GrpcConnector};
use crate::store::{Member, PrimaryInfo, Store};
use crate::stream::{self, ClusterId, FollowOptions, Follower, PrimaryView, Serving};

/// How this node takes part in the cluster's history.
pub(super) enum Replication {
    /// As a member of the Raft group.
    Voter {
        /// The log.
        raft: Arc<RaftNode>,
        /// This node as primary, with the addresses of this run.
        own: PrimaryInfo,
        /// The nodes that follow this one.
        serving: Arc<Serving>,
    },
    /// As a follower of other nodes.
    Replica {
        /// The stream from them.
        follower: Arc<Follower>,
        /// The nodes that follow this one; empty until the cluster is known.
        serving: Arc<OnceLock<Arc<Serving>>>,
    },
}

/// What both kinds are made of.
pub(super) struct Parts {
    pub(super) store: Arc<Store>,
    pub(super) blobs: Arc<BlobStore>,
    pub(super) identity: Arc<IdentityFile>,
    pub(super) listener: TcpListener,
    pub(super) advertise: String,
    pub(super) advertise_http: String,
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
    pub(super) failures: mpsc::Sender<NodeError>,
}

impl Replication {
    /// Starts as a voter of `cluster`: redoes the log, and connects its entrance.
    pub(super) async fn vote(parts: Parts, cluster: String, bootstrap: bool) -> Result<Self, NodeError> {
        let identity = parts.identity.get();
        let own = PrimaryInfo {
            name: identity.name.to_string(),
            addr: parts.advertise.clone(),
            http: parts.advertise_http.clone(),
        };
        let options = RaftOptions {
            addr: own.addr.clone(),
            http: own.http.clone(),
            bootstrap,
            ..RaftOptions::new(identity.node, identity.name, parts.identity.layout().raft())
        };
        let (store, blobs) = (parts.store.clone(), parts.blobs.clone());
        let started = blocking(move || RaftNode::start(options, store, blobs));
        let raft = started.await?.map_err(|error| NodeError::Replication(error.to_string()))?;
        parts.store.set_sink(raft.sink());
        let (view, views) = watch::channel(PrimaryView::default());
        parts.tasks.spawn(tell_followers(raft.watch_primary(), own.clone(), view, parts.shutdown.clone()));
        let ready = watch::Sender::new(true).subscribe();
        let who = wire_identity(&parts.identity, &cluster)?;
        let serving =
            Serving::new(who, raft.log(), parts.store.clone(), views, ready, parts.shutdown.clone());
        parts.serve(serving.clone());
        Ok(Replication::Voter { raft, own, serving })
    }

    /// Starts to follow `upstreams`; serves others itself as soon as the cluster is known.
    pub(super) fn follow(parts: Parts, upstreams: Vec<String>) -> Result<Self, NodeError> {
        let identity = parts.identity.get();
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
        let connector = Arc::new(GrpcConnector::default());
        let follower = Follower::start(options, parts.store.clone(), connector, parts.shutdown.clone())
            .map_err(|error| NodeError::System(format!("starting to follow: {error}")))?;
        let follower = Arc::new(follower);
        let serving = Arc::new(OnceLock::new());
        let (tasks, shutdown) = (parts.tasks.clone(), parts.shutdown.clone());
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

    /// The nodes of the cluster as this one knows them.
    pub(super) fn members(&self) -> Vec<Member> {
        let (mut members, followers) = match self {
            Replication::Voter { raft, serving, .. } => (raft.members(), serving.members()),
            Replication::Replica { follower, serving } => {
                (follower.members(), serving.get().map(|serving| serving.members()).unwrap_or_default())
            }
        };
        let new = |m: &Member| !members.iter().any(|known| known.name == m.name);
        let followers: Vec<_> = followers.into_iter().filter(new).collect();
        members.extend(followers);
        members
    }

    /// The Raft term; 0 where unknown.
    pub(super) fn term(&self) -> u64 {
        match self {
            Replication::Voter { raft, .. } => raft.term(),
            Replication::Replica { follower, .. } => follower.view().borrow().term,
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
        match wire_identity(&self.identity, cluster.as_str()) {
            Ok(who) => {
                let (view, ready) = (follower.view(), follower.ready());
                let log = follower.recent();
                let made = Serving::new(who, log, self.store.clone(), view, ready, self.shutdown.clone());
                self.serve(serving.get_or_init(|| made).clone());
            }
            Err(error) => drop(self.failures.send(error).await),
        }
    }

    fn serve(self, serving: Arc<Serving>) {
        let (routes, shutdown) = (rpc::routes(serving), self.shutdown);
        let (listener, failures) = (self.listener, self.failures);
        self.tasks.spawn(async move {
            if let Err(error) = rpc::serve(listener, routes, shutdown).await {
                let error = NodeError::Replication(format!("the gRPC server failed: {error}"));
                // Nobody to tell: the node ends already.
                let _ = failures.send(error).await;
            }
        });
    }
}

/// Keeps what followers are told about the primary in step with the log.
async fn tell_followers(
    mut states: watch::Receiver<PrimaryState>,
    own: PrimaryInfo,
    view: watch::Sender<PrimaryView>,
    shutdown: CancellationToken,
) {
    loop {
        let state = states.borrow_and_update().clone();
        view.send_replace(PrimaryView {
            primary: primary_of(&state, &own),
            term: state.term,
            path: Vec::new(),
        });
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

fn parse_cluster(text: &str) -> Result<ClusterId, NodeError> {
    text.parse().map_err(|error| NodeError::Cluster(format!("node.toml: {error}")))
}

fn wire_identity(file: &IdentityFile, cluster: &str) -> Result<stream::Identity, NodeError> {
    let identity = file.get();
    Ok(stream::Identity {
        cluster: parse_cluster(cluster)?,
        node: identity.node,
        name: identity.name,
        protocol_version: stream::PROTOCOL_VERSION,
        role: identity.role,
    })
}
