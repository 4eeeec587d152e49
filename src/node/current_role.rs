use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::replication::Replication;
use crate::store::{PrimaryInfo, Store, StoreEvent};

/// What a node is at the moment, for whoever acts on a change of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct CurrentRole {
    /// Applications may write here.
    pub(super) is_primary: bool,
    /// Who is primary, also where it is this node; `None` where unknown.
    pub(super) primary: Option<PrimaryInfo>,
    /// The Raft term; 0 where unknown.
    pub(super) term: u64,
}

/// Notes what the node is, if that is new. A new term alone is not.
pub(super) fn note(role: &watch::Sender<CurrentRole>, now: CurrentRole) {
    role.send_if_modified(|known| {
        let changed = (known.is_primary, &known.primary) != (now.is_primary, &now.primary);
        *known = now;
        changed
    });
}

/// Keeps the role of a replica, whose primary is always another node, in step with what it hears; until `shutdown`.
pub(super) async fn follow_primary(
    store: Arc<Store>,
    replication: Arc<Replication>,
    role: watch::Sender<CurrentRole>,
    shutdown: CancellationToken,
) {
    let mut events = store.events();
    loop {
        note(&role, CurrentRole { is_primary: false, primary: store.primary(), term: replication.term() });
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = shutdown.cancelled() => return,
            };
            match event {
                Ok(StoreEvent::Primary(_)) | Err(RecvError::Lagged(_)) => break,
                Ok(_) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }
}
