//! How a voter finds the others, and they it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::NodeError;
use crate::raft::{AddressBook, RaftNode};
use crate::rpc::GrpcConnector;
use crate::security::Peering;
use crate::store::{Candidate, ClusterControl, ClusterError};
use crate::stream::{ClusterId, Connector, PeerIdentity, StreamError};
use crate::types::{NodeId, Role};

/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(500);
/// Between two looks whether a leader is heard of.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a node has to say who it is.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Asks the nodes at `addrs` for their cluster until one answers; `ours` is the cluster this node belongs to.
///
/// # Errors
/// Where they belong to another cluster: nothing of it is touched.
pub(super) async fn find_cluster(
    addrs: &[String],
    book: &AddressBook,
    peering: &Peering,
) -> Result<ClusterId, NodeError> {
    let mut said = None;
    loop {
        for addr in addrs {
            match identify(addr, book, peering).await {
                Ok(cluster) => return Ok(cluster),
                Err(error) if error.is_refusal() => {
                    return Err(NodeError::Cluster(format!("cannot join through {addr}: {error}")));
                }
                Err(error) => {
                    let text = error.to_string();
                    // Said once, not at every attempt.
                    if said.as_ref() != Some(&text) {
                        tracing::warn!(node = %addr, "cannot join yet: {text}");
                    }
                    said = Some(text);
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Looks up the nodes at `addrs` now and then, so that voters are found where they are now, until `shutdown`.
///
/// Nodes of a cluster in `former` are refused, and nothing more.
///
/// # Errors
/// Where one of them belongs to another cluster.
pub(super) async fn look_up(
    addrs: Vec<String>,
    (cluster, former): (ClusterId, Vec<String>),
    book: AddressBook,
    peering: Peering,
    shutdown: CancellationToken,
) -> Result<(), NodeError> {
    let (mut pause, mut refused) = (PAUSE, std::collections::BTreeSet::new());
    loop {
        for addr in &addrs {
            match identify(addr, &book, &peering).await {
                Ok(theirs) if former.iter().any(|former| former == theirs.as_str()) => {
                    if refused.insert(addr.clone()) {
                        tracing::warn!(
                            node = %addr,
                            "refused: it is of the cluster that this node was in before it was recovered; empty its data directory to let it join this one"
                        );
                    }
                }
                Ok(theirs) if theirs != cluster => {
                    let (ours, theirs) = (cluster.to_string(), theirs.to_string());
                    let foreign = StreamError::ForeignCluster { ours, theirs };
                    return Err(NodeError::Cluster(format!("--join {addr}: {foreign}")));
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(node = %addr, "not found: {error}"),
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(10)),
        }
    }
}

async fn identify(addr: &str, book: &AddressBook, peering: &Peering) -> Result<ClusterId, StreamError> {
    let identity = who_is(addr, peering).await?;
    if identity.role == Role::Voter {
        book.found(identity.node.get(), addr.to_owned());
    }
    Ok(identity.cluster)
}

/// Who answers at `addr`.
///
/// # Errors
/// Where nobody does in time.
pub(super) async fn who_is(addr: &str, peering: &Peering) -> Result<PeerIdentity, StreamError> {
    let answer = async {
        let upstream = GrpcConnector::with_peering(peering.clone()).connect(addr).await?;
        upstream.identify().await
    };
    let late = |_| StreamError::Unavailable(format!("{addr} did not answer in time"));
    tokio::time::timeout(ANSWER_MAX, answer).await.map_err(late)?
}

/// Tells the primary where this node is until it knows, so that it becomes or stays a member; asks again whenever no
/// leader has been heard of for a while, because a node that was removed hears nothing. While it is no member
/// `removed` says so and how it is let in.
///
/// # Errors
/// Where it is refused; the text says why.
pub(super) async fn stay_member(
    control: Arc<dyn ClusterControl>,
    mut candidate: Candidate,
    raft: Arc<RaftNode>,
    removed: watch::Sender<Option<String>>,
    shutdown: CancellationToken,
) -> Result<(), NodeError> {
    let mut said = None;
    loop {
        match control.enlist(candidate.clone()).await {
            Ok(()) => {
                if removed.send_replace(None).is_some() {
                    tracing::info!("this node is a member of the cluster again");
                }
                // From now on not to be known means to have been removed.
                (candidate.returning, said) = (true, None);
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    () = no_leader(&raft) => {}
                }
            }
            Err(ClusterError::Refused(why)) => return Err(NodeError::Cluster(format!("cannot join: {why}"))),
            Err(ClusterError::Removed(why)) => {
                if removed.send_replace(Some(why.clone())).is_none() {
                    tracing::warn!("this node serves what it had, and waits: {why}");
                }
            }
            Err(error) => {
                let text = error.to_string();
                if said.as_ref() != Some(&text) {
                    tracing::info!("waiting to hear from the primary: {text}");
                }
                said = Some(text);
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Returns when this node has heard of no leader for a while.
async fn no_leader(raft: &RaftNode) {
    // Nothing tells of what does not happen.
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        look.tick().await;
        if raft.lost_leader().is_some() {
            return;
        }
    }
}

/// The voter that answers at `addr`.
///
/// # Errors
/// Where nobody does, or it is none.
pub(super) async fn candidate_at(addr: String, peering: &Peering) -> Result<Candidate, ClusterError> {
    let unavailable = |error: StreamError| ClusterError::Unavailable(format!("node at {addr}: {error}"));
    let identity = who_is(&addr, peering).await.map_err(unavailable)?;
    if identity.role != Role::Voter {
        return Err(ClusterError::Refused(format!(
            "{} at {addr} runs as a replica: start it with --role voter --join",
            identity.name
        )));
    }
    let (node, name, http) = (identity.node, identity.name, identity.http);
    Ok(Candidate { node, name, addr, http, returning: false })
}

/// This node as others shall know it.
pub(super) fn candidate(
    node: NodeId,
    own: &crate::store::PrimaryInfo,
    returning: bool,
) -> Result<Candidate, NodeError> {
    let name = own.name.parse().map_err(|error| NodeError::Cluster(format!("node name: {error}")))?;
    Ok(Candidate { node, name, addr: own.addr.clone(), http: own.http.clone(), returning })
}
