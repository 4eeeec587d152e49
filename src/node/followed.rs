//! Whom a replica follows, remembered for its next start.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{IdentityFile, blocking};
use crate::stream::FollowStatus;

/// Nodes that are remembered at most.
const FOLLOWED_MAX: usize = 16;
/// How often is looked whether they are others.
const FOLLOWED_EVERY: Duration = Duration::from_millis(500);

/// Notes whom a replica follows and the voters it hears of, so that it finds the cluster again when it is started without
/// being told where that is.
pub(super) async fn remember_followed(
    mut status: watch::Receiver<FollowStatus>,
    configured: Vec<String>,
    identity: Arc<IdentityFile>,
    shutdown: CancellationToken,
) {
    loop {
        let nodes = {
            let status = status.borrow_and_update();
            let mut nodes: Vec<String> = Vec::new();
            let upstream = status.upstream.clone().filter(|_| status.connected);
            let known = upstream.iter().chain(&configured).chain(&status.view.voters);
            for addr in known.filter(|addr| !addr.is_empty()) {
                if !nodes.contains(addr) && nodes.len() < FOLLOWED_MAX {
                    nodes.push(addr.clone());
                }
            }
            upstream.map(|_| nodes)
        };
        if let Some(nodes) = nodes.filter(|nodes| *nodes != identity.get().follows) {
            let file = identity.clone();
            let saved = blocking(move || file.update(|identity| identity.follows = nodes)).await;
            if let Err(error) = saved.and_then(|saved| saved) {
                tracing::warn!(%error, "whom this replica follows cannot be noted: its next start needs --join");
            }
        }
        // The status changes with every entry, the nodes hardly ever.
        tokio::select! {
            () = tokio::time::sleep(FOLLOWED_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}
