//! Who shall vote: learners that are close behind are promoted, and a change that its leader left in the middle is completed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{ChangeMembers, Instant as _, Membership, ServerState};
use tokio_util::sync::CancellationToken;

use super::holders::Holders;
use super::types::{Peer, TypeConfig};

/// What openraft tells of itself.
pub(super) type Metrics = openraft::RaftMetrics<TypeConfig>;
/// Who votes, and who receives the log.
pub(super) type Members = Membership<u64, Peer>;

/// Voters of one cluster at most: with more, each commit waits for more disks and gains nothing.
pub const VOTERS_MAX: usize = 5;
/// A learner this many entries behind the log's end is close enough to vote.
const CLOSE_ENTRIES: u64 = 1000;
/// Without word for longer a member does not count as healthy.
const HEARD_MAX: Duration = Duration::from_secs(2);

/// The last entry a member is known to have on disk.
pub(super) fn matched(metrics: &Metrics, id: u64) -> u64 {
    let replication = metrics.replication.as_ref();
    replication.and_then(|all| all.get(&id).copied().flatten()).map_or(0, |at| at.index)
}

/// Whether a member has answered of late.
pub(super) fn is_heard(metrics: &Metrics, id: u64) -> bool {
    let heard = metrics.heartbeat.as_ref().and_then(|all| all.get(&id).cloned().flatten());
    heard.is_some_and(|at| at.elapsed() < HEARD_MAX)
}

/// What the leader has to do about who votes.
#[derive(Debug)]
enum Due {
    /// These learners are close behind.
    Promote(BTreeSet<u64>),
    /// A change was left in the middle, with two sets of voters (Raft thesis, 4.3): its leader died.
    Complete,
}

fn due(metrics: &Metrics) -> Option<Due> {
    let members = metrics.membership_config.membership();
    if metrics.state != ServerState::Leader {
        return None;
    }
    if members.get_joint_config().len() != 1 {
        return Some(Due::Complete);
    }
    let ready = ready(metrics, members);
    (!ready.is_empty()).then_some(Due::Promote(ready))
}

/// Learners that shall vote and are close behind, as many as keep the number of voters odd.
fn ready(metrics: &Metrics, members: &Members) -> BTreeSet<u64> {
    let (voters, last) = (members.voter_ids().count(), metrics.last_log_index.unwrap_or(0));
    let close = |id: &u64| {
        matched(metrics, *id) > 0
            && last.saturating_sub(matched(metrics, *id)) <= CLOSE_ENTRIES
            && is_heard(metrics, *id)
    };
    let waiting = members.learner_ids().filter(|id| members.get_node(id).is_some_and(|peer| peer.votes));
    let mut ready: Vec<u64> = waiting.filter(close).collect();
    ready.truncate(VOTERS_MAX.saturating_sub(voters));
    if (voters + ready.len()).is_multiple_of(2) {
        ready.pop();
    }
    ready.into_iter().collect()
}

async fn settle(due: Due, holders: &Holders) -> Result<(), String> {
    match due {
        Due::Promote(ready) => {
            let voters = ready.len();
            holders.change_voters(ChangeMembers::AddVoterIds(ready), true).await?;
            tracing::info!(voters, "nodes that joined vote now");
        }
        Due::Complete => {
            if holders.complete_change().await? {
                tracing::info!("completed a change of the voters that another primary had begun");
            }
        }
    }
    Ok(())
}

/// Has learners vote when it is their turn; on Raft's thread, whether this node leads or not.
pub(super) async fn promote_learners(holders: Arc<Holders>, stop: CancellationToken) {
    let raft = holders.raft.clone();
    let (mut data, mut server) = (raft.data_metrics(), raft.server_metrics());
    loop {
        let due = due(&raft.metrics().borrow_watched());
        if let Some(due) = due
            && let Err(error) = settle(due, &holders).await
        {
            tracing::debug!(%error, "the voters stay who they are for now");
        }
        // Learners are there or not: without them only a change of the members matters.
        let learners =
            raft.metrics().borrow_watched().membership_config.membership().learner_ids().count() > 0;
        let more = tokio::select! {
            biased;
            () = stop.cancelled() => false,
            changed = server.changed() => changed.is_ok(),
            changed = data.changed(), if learners => changed.is_ok(),
        };
        if !more {
            return;
        }
    }
}
