//! Who is primary: a leader that has applied its whole log, and only for as long as a quorum has heard of it.

use std::sync::Arc;
use std::time::Instant;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::error::Fatal;
use tokio::sync::watch;

use super::log_store::StoreShared;
use super::node::RaftHandle;
use super::types::position;
use crate::store::PrimaryInfo;
use crate::types::LogIndex;

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
    /// Why Raft has ended by itself: nothing can be committed here until the node is started again.
    pub failed: Option<String>,
}

/// Watches Raft for as long as it runs.
///
/// Also has the log synced the way the number of voters makes fastest.
pub(super) fn watch(
    raft: RaftHandle,
    id: u64,
    mut applied: watch::Receiver<LogIndex>,
    store: Arc<StoreShared>,
) -> watch::Receiver<PrimaryState> {
    let (sender, receiver) = watch::channel(state_of(&raft, id, &applied));
    tokio::spawn(async move {
        let mut metrics = raft.server_metrics();
        loop {
            let state = state_of(&raft, id, &applied);
            let voters = raft.metrics().borrow_watched().membership_config.membership().voter_ids().count();
            store.set_threaded(voters > 1);
            let settled = state.is_self || raft.metrics().borrow_watched().state != ServerState::Leader;
            sender.send_if_modified(|known| {
                let changed = *known != state;
                *known = state;
                changed
            });
            // Entries applied matter only between winning an election and applying its blank entry.
            let more = tokio::select! {
                changed = metrics.changed() => changed.is_ok(),
                changed = applied.changed(), if !settled => changed.is_ok(),
            };
            if !more {
                let ended = raft.metrics().borrow_watched().running_state.clone().err();
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

fn state_of(raft: &RaftHandle, id: u64, applied: &watch::Receiver<LogIndex>) -> PrimaryState {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let membership = metrics.membership_config.membership();
    let primary = metrics.current_leader.and_then(|leader| membership.get_node(&leader)).map(|peer| {
        PrimaryInfo { name: peer.name.clone(), addr: peer.addr.clone(), http: peer.http.clone() }
    });
    let leads = metrics.state == ServerState::Leader && metrics.current_leader == Some(id);
    // A leader's first entry is the blank one of its term; what is applied up to the last entry includes it.
    let caught_up = metrics.last_applied.is_some_and(|at| {
        at.leader_id.term == metrics.current_term && applied.borrow().get() >= position(at.index)
    });
    PrimaryState {
        term: metrics.current_term,
        is_self: leads && caught_up,
        until: None,
        primary,
        failed: None,
    }
}
