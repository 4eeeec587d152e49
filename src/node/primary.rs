use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::control::HandoffOrder;
use super::current_role::{CurrentRole, note};
use super::replication::primary_of;
use super::{NodeError, blocking};
use crate::proxy::WriteGate;
use crate::raft::{PrimaryState, RaftNode};
use crate::store::{ClusterError, PrimaryInfo, Store, StoreError};
use crate::telemetry::metrics::HANDOFF_SECONDS;
use crate::types::{Access, NodeName};

/// What the applications of a voter may do: write exactly while it is primary.
pub(super) struct VoterAccess {
    pub(super) store: Arc<Store>,
    pub(super) raft: Arc<RaftNode>,
    /// This node as primary.
    pub(super) own: PrimaryInfo,
    /// The term that what applications may do, and the primary they are told, belong to.
    pub(super) term: Arc<AtomicU64>,
    /// Through which the proxy lets writes in: open while applications may write.
    pub(super) gate: WriteGate,
    /// Planned moves of the primary.
    pub(super) handoffs: mpsc::Receiver<HandoffOrder>,
    /// Counts how often the lease ended while applications could write: the fence is up then, whatever Raft says since.
    pub(super) ended: watch::Receiver<u64>,
    /// Which thread of this node is stuck.
    pub(super) stuck: watch::Receiver<Option<String>>,
    /// Becomes true once a primary is known: applications may start.
    pub(super) settled: watch::Sender<bool>,
    /// What the node is, once applications may do what that allows.
    pub(super) role: watch::Sender<CurrentRole>,
    pub(super) failures: mpsc::Sender<NodeError>,
}

/// What a voter is at the moment.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Standing {
    is_self: bool,
    primary: Option<PrimaryInfo>,
    /// Another node is primary, and its log has decided everything that was proposed here.
    follows: bool,
}

impl VoterAccess {
    /// Follows the log until `shutdown`. Whatever fails while fencing ends the node: one that may still take writes
    /// must not go on.
    pub(super) async fn follow(
        mut self,
        mut states: watch::Receiver<PrimaryState>,
        shutdown: CancellationToken,
    ) {
        let (mut entered, mut given_up) = (None, None);
        loop {
            let state = states.borrow_and_update().clone();
            if let Some(why) = state.failed {
                let why = format!("the log has stopped, so this node ends: {why}");
                return self.fail(NodeError::Replication(why)).await;
            }
            // Where the fence was raised this node is no primary until it is entered anew.
            let fenced = self.ended.has_changed().unwrap_or(false);
            let standing = match fenced {
                true => Standing { is_self: false, primary: None, follows: false },
                false => self.standing_of(&state),
            };
            if fenced {
                self.ended.mark_unchanged();
            }
            if entered.as_ref() != Some(&standing) {
                if standing.is_self {
                    self.term.store(state.term, Ordering::SeqCst);
                }
                if let Err(failure) = self.enter(&standing).await {
                    return self.fail(failure).await;
                }
                let primary = standing.primary.clone();
                note(&self.role, CurrentRole { is_primary: standing.is_self, primary, term: state.term });
                if standing.is_self || standing.follows {
                    self.settled.send_replace(true);
                }
                entered = Some(standing);
            }
            // On the way up before, on the way down after the rest: no node ever says that it is primary in a term of
            // another one.
            self.term.store(state.term, Ordering::SeqCst);
            if fenced {
                // By now a quorum may have answered.
                continue;
            }
            self.give_up_where_stuck(&state, &mut given_up);
            // One that was acted on is not waited for again.
            let deadline = state.until.filter(|_| entered.as_ref().is_some_and(|standing| standing.is_self));
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return },
                () = until(deadline) => {}
                Ok(()) = self.ended.changed() => { self.ended.mark_changed(); }
                Ok(()) = self.stuck.changed() => {}
                Some(order) = self.handoffs.recv() => {
                    if let Err(failure) = self.hand_off(order, &state).await {
                        return self.fail(failure).await;
                    }
                    // Whatever came of it is entered anew.
                    entered = None;
                }
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn fail(&self, failure: NodeError) {
        // Nobody to tell: the node ends already.
        let _ = self.failures.send(failure).await;
    }

    /// A thread of this node is stuck: has another voter lead, and asks again now and then for as long as this one does.
    fn give_up_where_stuck(&self, state: &PrimaryState, given_up: &mut Option<Instant>) {
        const AGAIN_AFTER: Duration = Duration::from_secs(2);
        if !state.is_self || !self.store.is_suspended() {
            return;
        }
        if given_up.is_some_and(|at: Instant| at.elapsed() < AGAIN_AFTER) {
            return;
        }
        *given_up = Some(Instant::now());
        let raft = self.raft.clone();
        tokio::spawn(async move {
            match tokio::time::timeout(AGAIN_AFTER, raft.transfer(None)).await {
                Ok(Ok(primary)) => tracing::warn!(%primary, "gave the primary up, because a thread is stuck"),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "cannot give the primary up, although a thread is stuck")
                }
                Err(_) => tracing::warn!("nobody took the primary over, although a thread is stuck"),
            }
        });
    }

    fn standing_of(&self, state: &PrimaryState) -> Standing {
        let expired = state.until.is_some_and(|until| until <= Instant::now()) || self.store.is_suspended();
        if state.is_self && expired {
            return Standing { is_self: false, primary: None, follows: false };
        }
        let primary = primary_of(state, &self.own);
        // A leader that has not applied everything is no primary yet.
        let other = primary.as_ref().is_some_and(|primary| primary.name != self.own.name);
        Standing { is_self: state.is_self, follows: other && state.resolved, primary }
    }

    /// Fence first, then tell; on the way up, tell first.
    async fn enter(&self, standing: &Standing) -> Result<(), NodeError> {
        if !standing.is_self {
            self.gate.set_primary(false);
        }
        let (store, to) = (self.store.clone(), standing.clone());
        let changed = blocking(move || -> Result<(), StoreError> {
            if to.is_self {
                store.set_primary(to.primary);
                return store.set_access(Access::Write);
            }
            store.set_access(Access::Fenced)?;
            store.set_primary(to.primary);
            if to.follows { store.follow_history() } else { Ok(()) }
        });
        let what = if standing.is_self { "lifting the fence" } else { "fencing" };
        changed
            .await?
            .map_err(|error| NodeError::Replication(format!("{what} failed, so this node ends: {error}")))?;
        self.gate.set_primary(standing.is_self);
        Ok(())
    }

    /// Moves the primary: writers wait, everything they were told is durable is, then another node leads.
    async fn hand_off(&self, order: HandoffOrder, state: &PrimaryState) -> Result<(), NodeError> {
        let HandoffOrder { to, done } = order;
        if !state.is_self {
            // Who asked may have gone.
            let _ =
                done.send(Err(ClusterError::NotPrimary(state.primary.clone().map(|primary| primary.addr))));
            return Ok(());
        }
        // Opened again where this node is entered as primary anew.
        self.gate.set_primary(false);
        let (store, begun) = (self.store.clone(), Instant::now());
        let fenced = blocking(move || {
            // From here on this node is primary no more, and does not know yet who is.
            store.hand_over().inspect(|()| store.set_primary(None))
        });
        let fenced = fenced.await?;
        let outcome: Result<NodeName, ClusterError> = match fenced {
            Ok(()) => self.raft.transfer(to.as_ref()).await,
            Err(error) => Err(ClusterError::Unavailable(error.to_string())),
        };
        match &outcome {
            Ok(name) => {
                metrics::histogram!(HANDOFF_SECONDS).record(begun.elapsed().as_secs_f64());
                tracing::info!(primary = %name, "handed off");
            }
            Err(error) => tracing::warn!(%error, "cannot hand off; going on"),
        }
        let _ = done.send(outcome);
        Ok(())
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
