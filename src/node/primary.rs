use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::NodeError;
use crate::raft::PrimaryState;
use crate::store::{Store, StoreError};
use crate::types::Access;

/// Lets the applications of a voter write exactly while it is primary, until `shutdown`.
///
/// `settled` becomes true once a primary is known: applications may start. Whatever fails while fencing ends the node:
/// a node that may still take writes must not go on.
pub(super) async fn follow_primary(
    mut states: watch::Receiver<PrimaryState>,
    store: Arc<Store>,
    settled: watch::Sender<bool>,
    failures: mpsc::Sender<NodeError>,
    shutdown: CancellationToken,
) {
    loop {
        let state = states.borrow_and_update().clone();
        let known = state.primary.is_some();
        let (target, is_self) = (store.clone(), state.is_self);
        let changed = tokio::task::spawn_blocking(move || enter(&target, state)).await;
        let failure = match changed {
            Ok(Ok(())) => None,
            Ok(Err(error)) if is_self => {
                tracing::error!("lifting the fence: {error}");
                None
            }
            Ok(Err(error)) => Some(format!("fencing failed, so this node ends: {error}")),
            Err(error) => Some(format!("changing the primary: {error}")),
        };
        if let Some(why) = failure {
            // Nobody to tell: the node ends already.
            let _ = failures.send(NodeError::Replication(why)).await;
            return;
        }
        if known {
            settled.send_replace(true);
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

/// Fence first, then tell; on the way up, tell first. Blocking.
fn enter(store: &Store, state: PrimaryState) -> Result<(), StoreError> {
    if state.is_self {
        store.set_primary(state.primary);
        store.set_access(Access::Write)
    } else {
        store.set_access(Access::Fenced)?;
        store.set_primary(state.primary);
        Ok(())
    }
}
