//! How an application of this node gets its write lease: the primary is moved here, as planned.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::current_role::CurrentRole;
use super::holds::Holds;
use crate::store::{ClusterControl, ClusterError, Hold, HoldError, PrimaryHolds, Store};
use crate::telemetry::metrics::{LEASE_REFUSED, LEASE_WAIT_SECONDS};
use crate::types::{Access, DbName, NodeName};

/// How long an application waits for the lease, as in LiteFS.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Time until a move that was refused is asked for again: who holds the primary elsewhere tells nobody when it ends.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// Gives applications of this node their holds.
pub(super) struct NodeHolds {
    pub(super) holds: Holds,
    pub(super) store: Arc<Store>,
    pub(super) control: Arc<OnceLock<Arc<dyn ClusterControl>>>,
    /// What the node is, as it changes.
    pub(super) roles: watch::Receiver<CurrentRole>,
    /// This node, where it can become primary.
    pub(super) voter: Option<NodeName>,
    pub(super) runtime: Handle,
}

impl PrimaryHolds for NodeHolds {
    fn hold(&self, db: &DbName) -> Result<Hold, HoldError> {
        let start = Instant::now();
        let held = self.runtime.block_on(self.wait(db, start + WAIT_MAX));
        match &held {
            Ok(_) => metrics::histogram!(LEASE_WAIT_SECONDS).record(start.elapsed().as_secs_f64()),
            Err(_) => metrics::counter!(LEASE_REFUSED).increment(1),
        }
        held
    }
}

impl NodeHolds {
    async fn wait(&self, db: &DbName, deadline: Instant) -> Result<Hold, HoldError> {
        let Some(own) = &self.voter else {
            let why =
                "a replica cannot take a write lease, because it never becomes primary: take it on a voter";
            return Err(HoldError::Never(why.into()));
        };
        let mut roles = self.roles.clone();
        loop {
            roles.mark_unchanged();
            let why = match self.attempt(db, own, deadline).await {
                Ok(hold) => return Ok(hold),
                // Also that it is refused may change: a node that leads already is primary a moment later.
                Err(error) => error.to_string(),
            };
            if Instant::now() + ASK_AGAIN >= deadline {
                return Err(HoldError::Late(format!("no write lease of {db} within {WAIT_MAX:?}: {why}")));
            }
            // However that went, it is tried again.
            let _ = tokio::time::timeout(ASK_AGAIN, roles.changed()).await;
        }
    }

    async fn attempt(&self, db: &DbName, own: &NodeName, deadline: Instant) -> Result<Hold, ClusterError> {
        let unavailable = |why: &str| ClusterError::Unavailable(why.to_owned());
        if self.store.access() == Access::Write {
            // Held first and looked at then: a move that has begun in between has fenced the databases by now, or waits for
            // this to be given back.
            let held = self.holds.enter(db).filter(|_| self.store.access() == Access::Write);
            return held.map(Hold::new).ok_or_else(|| unavailable("the primary is being moved"));
        }
        let control = self.control.get().ok_or_else(|| unavailable("the cluster is not known yet"))?;
        match tokio::time::timeout_at(deadline.into(), control.hand_off(Some(own.clone()))).await {
            Ok(moved) => moved.and_then(|_| Err(unavailable("this node is about to be primary"))),
            Err(_) => Err(unavailable("the primary does not answer")),
        }
    }
}
