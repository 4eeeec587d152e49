use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{NodeError, blocking};
use crate::raft::PrimaryState;
use crate::store::{PrimaryInfo, Store, StoreError};
use crate::types::Access;

/// What the applications of a voter may do: write exactly while it is primary.
pub(super) struct VoterAccess {
    pub(super) store: Arc<Store>,
    /// This node as primary.
    pub(super) own: PrimaryInfo,
    /// Becomes true once a primary is known: applications may start.
    pub(super) settled: watch::Sender<bool>,
    pub(super) failures: mpsc::Sender<NodeError>,
}

/// The primary as others are told it: a node knows its own addresses of this run better than the log does.
pub(super) fn primary_of(state: &PrimaryState, own: &PrimaryInfo) -> Option<PrimaryInfo> {
    match &state.primary {
        Some(leader) if state.is_self || leader.name == own.name => Some(own.clone()),
        leader => leader.clone(),
    }
}

impl VoterAccess {
    /// Follows the log until `shutdown`. Whatever fails while fencing ends the node: one that may still take writes
    /// must not go on.
    pub(super) async fn follow(self, mut states: watch::Receiver<PrimaryState>, shutdown: CancellationToken) {
        let mut entered = None;
        loop {
            let mut state = states.borrow_and_update().clone();
            if let Some(why) = state.failed {
                let failure =
                    NodeError::Replication(format!("the log has stopped, so this node ends: {why}"));
                // Nobody to tell: the node ends already.
                let _ = self.failures.send(failure).await;
                return;
            }
            let expired = |until: Instant| until <= Instant::now();
            if state.is_self && state.until.is_some_and(expired) {
                state = PrimaryState { is_self: false, primary: None, until: None, ..state };
            }
            let place = (state.is_self, primary_of(&state, &self.own));
            if entered.as_ref() != Some(&place) {
                if let Err(failure) = self.enter(place.0, place.1.clone()).await {
                    // Nobody to tell: the node ends already.
                    let _ = self.failures.send(failure).await;
                    return;
                }
                // A leader that has not applied everything is no primary yet.
                let leads_soon = place.1.as_ref().is_some_and(|primary| primary.name == self.own.name);
                if place.0 || (place.1.is_some() && !leads_soon) {
                    self.settled.send_replace(true);
                }
                entered = Some(place);
            }
            let deadline = state.until.filter(|_| state.is_self);
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return },
                () = until(deadline) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Fence first, then tell; on the way up, tell first.
    async fn enter(&self, is_self: bool, primary: Option<PrimaryInfo>) -> Result<(), NodeError> {
        let store = self.store.clone();
        let changed = blocking(move || -> Result<(), StoreError> {
            if is_self {
                store.set_primary(primary);
                store.set_access(Access::Write)
            } else {
                store.set_access(Access::Fenced)?;
                store.set_primary(primary);
                Ok(())
            }
        });
        let what = if is_self { "lifting the fence" } else { "fencing" };
        changed
            .await?
            .map_err(|error| NodeError::Replication(format!("{what} failed, so this node ends: {error}")))
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
