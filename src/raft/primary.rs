//! Who is primary: a leader that has applied its whole log, and only for as long as a quorum has heard of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::error::Fatal;
use tokio::sync::watch;

use super::acks::Acks;
use super::first_committed::FirstCommitted;
use super::handle::RaftHandle;
use super::log_store::StoreShared;
use super::target::SharedTarget;
use super::transport::Heard;
use super::types::{TypeConfig, position};
use crate::store::{Lease, PrimaryInfo};

/// The primary as this voter knows it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PrimaryState {
    /// The Raft term.
    pub term: u64,
    /// This node is it: it leads, and the blank entry of its term is applied.
    pub is_self: bool,
    /// Until when that holds without further word from a quorum; `None` without limit, as for a single voter.
    ///
    /// openraft's leader does not step down by itself (trap 1), so this is a deadline and never a state.
    pub until: Option<Instant>,
    /// The primary, also where it is this node; `None` where unknown.
    pub primary: Option<PrimaryInfo>,
    /// The log of the present term's leader is known here as far as it decides the fate of everything proposed before.
    pub resolved: bool,
    /// Why Raft has ended by itself: nothing can be committed here until the node is started again.
    pub failed: Option<String>,
}

impl PrimaryState {
    /// Whether somebody has to act. The deadline is computed from an age, and so is never twice the same.
    fn differs(&self, other: &Self) -> bool {
        const ROUNDING: Duration = Duration::from_millis(5);
        let deadlines = match (self.until, other.until) {
            (Some(a), Some(b)) => a.max(b) - a.min(b) > ROUNDING,
            (a, b) => a != b,
        };
        deadlines || Self { until: None, ..self.clone() } != Self { until: None, ..other.clone() }
    }
}

/// What the watch looks at.
pub(super) struct Watched {
    pub raft: RaftHandle,
    pub id: u64,
    /// Whether the databases agree with the log of the start.
    pub replayed: watch::Receiver<bool>,
    pub store: Arc<StoreShared>,
    /// Is told how long this node may be primary.
    pub target: SharedTarget,
    /// The term this node leads, for its proposals.
    pub led_term: Arc<AtomicU64>,
    /// Who has answered this node as leader.
    pub acks: Acks,
    /// What a leader had committed when this node first heard from one.
    pub committed: FirstCommitted,
    /// How long a leader may go without word from a quorum.
    pub lease: Duration,
    /// When another voter last spoke as leader.
    pub heard: Arc<Heard>,
    /// Without a word for so long, who led then leads no more.
    pub silence_max: Duration,
}

type Metrics = openraft::RaftMetrics<TypeConfig>;

/// Watches Raft for as long as it runs.
///
/// Also has the log synced the way the number of voters makes fastest.
pub(super) fn watch(mut watched: Watched) -> watch::Receiver<PrimaryState> {
    let (sender, receiver) = watch::channel(watched.look());
    tokio::spawn(async move {
        let (mut server, mut data) = (watched.raft.server_metrics(), watched.raft.data_metrics());
        let (heard, mut replayed) = (watched.heard.clone(), false);
        loop {
            let state = watched.look();
            // The one voter's state changes only with these; a quorum's acknowledgements come with each heartbeat.
            let every = state.until.is_some() || !state.resolved;
            let follows = !watched.leads();
            let leader_may_fall_silent = follows && state.primary.is_some();
            let leader_may_speak_again = follows && state.primary.is_none();
            sender.send_if_modified(|known| {
                let changed = known.differs(&state);
                *known = state;
                changed
            });
            let more = tokio::select! {
                biased;
                changed = server.changed() => changed.is_ok(),
                changed = data.changed(), if every => changed.is_ok(),
                // Nothing tells of what does not happen.
                () = tokio::time::sleep(watched.patience()), if leader_may_fall_silent => true,
                () = heard.next(), if leader_may_speak_again => true,
                over = watched.replayed.wait_for(|over| *over), if !replayed => { replayed = true; over.is_ok() }
            };
            if !more {
                let ended = watched.raft.metrics().borrow_watched().running_state.clone().err();
                watched.target.lease(Lease::None);
                if let Some(fatal) = ended.filter(|fatal| !matches!(fatal, Fatal::Stopped)) {
                    let failed = Some(fatal.to_string());
                    sender.send_modify(|known| {
                        *known = PrimaryState { term: known.term, failed, ..Default::default() }
                    });
                }
                return;
            }
        }
    });
    receiver
}

fn lease_of(leads: bool, term: u64, voters: usize, until: Option<Instant>) -> Lease {
    match until {
        _ if !leads => Lease::None,
        _ if voters == 1 => Lease::Forever { term },
        Some(until) => Lease::Until { term, until },
        None => Lease::None,
    }
}

impl Watched {
    fn look(&self) -> PrimaryState {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters = membership.voter_ids().count();
        self.store.set_puts_off(voters > 1 || !membership.voter_ids().any(|id| id == self.id));
        let leads = self.is_led_by_this(&metrics);
        self.led_term.store(if leads { metrics.current_term } else { 0 }, Ordering::SeqCst);
        let leader = metrics.current_leader;
        let audible = leader.filter(|_| leads || self.heard.silence() < self.silence_max);
        let primary = audible.and_then(|leader| membership.get_node(&leader)).map(|peer| PrimaryInfo {
            name: peer.name.clone(),
            addr: peer.addr.clone(),
            http: peer.http.clone(),
        });
        let resolved = leader.is_some() && self.resolved(&metrics);
        let until = leads.then(|| self.until(&metrics, voters)).flatten();
        let acknowledged = voters == 1 || until.is_some();
        // First of all, and from this thread: whoever is told by the watch may be late.
        self.target.lease(lease_of(leads, metrics.current_term, voters, until));
        PrimaryState {
            term: metrics.current_term,
            is_self: leads && resolved && acknowledged,
            until,
            primary,
            resolved,
            failed: None,
        }
    }

    fn is_led_by_this(&self, metrics: &Metrics) -> bool {
        metrics.state == ServerState::Leader && metrics.current_leader == Some(self.id)
    }

    fn leads(&self) -> bool {
        self.is_led_by_this(&self.raft.metrics().borrow_watched())
    }

    /// After which time the leader, where it stays silent, is none any more.
    fn patience(&self) -> Duration {
        const ROUNDING: Duration = Duration::from_millis(10);
        self.silence_max.saturating_sub(self.heard.silence()) + ROUNDING
    }

    /// Whether a leader's first entry in the present term has been given to the databases. One that still waits for its
    /// turn is fenced by itself, and keeps no other waiting.
    fn resolved(&self, metrics: &Metrics) -> bool {
        *self.replayed.borrow()
            && metrics.last_applied.is_some_and(|at| {
                at.leader_id.term == metrics.current_term && position(at.index) >= self.committed.get()
            })
    }

    /// Four fifths of the lease after a quorum was last known to listen: the rest is for fencing.
    fn until(&self, metrics: &Metrics, voters: usize) -> Option<Instant> {
        if voters == 1 {
            return None;
        }
        let voters = metrics.membership_config.membership().get_joint_config();
        let age = self.acks.quorum(self.id, metrics.current_term, voters)?.elapsed();
        let now = tokio::time::Instant::now().into_std();
        Some(now + (self.lease * 4 / 5).checked_sub(age).unwrap_or_default())
    }
}
