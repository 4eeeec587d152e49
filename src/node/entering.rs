//! How a node enters its cluster: it founds one, goes on in the one it was in, joins one, or follows one.

use std::sync::{Arc, OnceLock};

use super::founding::{Founded, Founding};
use super::joining::{self, find_cluster, look_up, stay_member};
use super::replication::{Parts, Replication, parse_cluster};
use super::start_mode::StartMode;
use super::{IdentityFile, NodeError};
use crate::config::Settings;
use crate::raft::{AddressBook, Beginning};
use crate::security::Peering;
use crate::store::{Candidate, ClusterControl, PrimaryInfo};

/// Fills in the cluster as a whole once its id is known: a replica learns it from whom it follows.
pub(super) async fn know_cluster(
    slot: Arc<OnceLock<Arc<dyn ClusterControl>>>,
    replication: Arc<Replication>,
    settings: Settings,
    identity: Arc<IdentityFile>,
    peering: Peering,
) {
    replication.wait_cluster().await;
    let Some(Ok(cluster)) = identity.get().cluster.map(|cluster| parse_cluster(&cluster)) else { return };
    let nodes = settings.join.iter().map(ToString::to_string).collect();
    let _only_once = slot.set(replication.control(&cluster, nodes, peering));
}

pub(super) async fn start_replication(
    settings: &Settings,
    mode: StartMode,
    parts: Parts,
) -> Result<Replication, NodeError> {
    // One list serves all nodes, so that this one may be in it.
    let others = settings.join.iter().map(ToString::to_string).filter(|addr| *addr != parts.advertise);
    let nodes: Vec<String> = others.collect();
    if mode == StartMode::Follow {
        return Replication::follow(parts, nodes);
    }
    let (identity, book) = (parts.identity.clone(), AddressBook::default());
    let mut founders = Vec::new();
    let mut mode = mode;
    if mode == StartMode::Meet {
        (mode, founders) = meet(settings, &parts, nodes.clone()).await?;
    }
    if mode == StartMode::Join {
        if nodes.is_empty() {
            let why = "--join names nobody but this node: name others of the cluster, or give --bootstrap";
            return Err(NodeError::Cluster(why.into()));
        }
        let found = find_cluster(&nodes, &book, &parts.peering).await?;
        identity.update(|identity| {
            identity.cluster = Some(found.to_string());
            identity.role = settings.role;
            identity.founding = false;
        })?;
    }
    let cluster =
        identity.get().cluster.ok_or_else(|| NodeError::Cluster("node.toml names no cluster".into()))?;
    let cluster = parse_cluster(&cluster)?;
    let beginning = match mode {
        StartMode::Found => Beginning::Found,
        StartMode::Join => Beginning::Wait,
        StartMode::Resume | StartMode::Follow | StartMode::Meet if nodes.is_empty() => Beginning::Never,
        StartMode::Resume | StartMode::Follow | StartMode::Meet => Beginning::Wait,
    };
    let (tasks, shutdown, failures) = (parts.tasks.clone(), parts.shutdown.clone(), parts.failures.clone());
    if !nodes.is_empty() {
        // Before Raft starts: where the others are now may be all that is missing for a quorum.
        let looking = look_up(
            nodes.clone(),
            (cluster.clone(), identity.get().former),
            book.clone(),
            parts.peering.clone(),
            shutdown.clone(),
        );
        let failures = failures.clone();
        tasks.spawn(async move {
            if let Err(error) = looking.await {
                // Nobody to tell: the node ends already.
                let _ = failures.send(error).await;
            }
        });
    }
    let peering = parts.peering.clone();
    let replication = Replication::vote(parts, &cluster, (beginning, founders), book).await?;
    identity.update(|identity| identity.founding = false)?;
    let node = identity.get().node;
    if let Replication::Voter { raft, removed, .. } = &replication
        && let Some((control, candidate)) = replication.enlistment(&cluster, node, nodes, peering)?
    {
        let (raft, removed) = (raft.clone(), removed.clone());
        tasks.spawn(async move {
            if let Err(error) = stay_member(control, candidate, raft, removed, shutdown).await {
                let _ = failures.send(error).await;
            }
        });
    }
    Ok(replication)
}

/// Waits for the other voters of a new cluster: how this node enters it then, and whom it founds it with.
async fn meet(
    settings: &Settings,
    parts: &Parts,
    addrs: Vec<String>,
) -> Result<(StartMode, Vec<Candidate>), NodeError> {
    let own = PrimaryInfo {
        name: settings.name.to_string(),
        addr: parts.advertise.clone(),
        http: parts.advertise_http.clone(),
    };
    let founding = Founding {
        own: joining::candidate(parts.identity.get().node, &own, false)?,
        expect: settings.bootstrap_expect,
        addrs,
        identity: parts.identity.clone(),
        peering: parts.peering.clone(),
    };
    Ok(match founding.meet(&parts.listener).await? {
        Founded::ByThis(others) => (StartMode::Found, others),
        Founded::ByAnother => (StartMode::Join, Vec::new()),
    })
}
