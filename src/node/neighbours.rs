//! The nodes that follow other voters, as those tell: an operator sees all of the cluster wherever he asks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::raft::RaftNode;
use crate::rpc::Neighbour;
use crate::security::Peering;
use crate::store::Member;

/// Between two questions to the same voter; lags are told in milliseconds, and are as old as this at most.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long a voter has to answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Asks the other voters who follows them, until `shutdown`. What one said last is forgotten when it does not answer.
pub(super) async fn watch_followers(
    raft: Arc<RaftNode>,
    peering: Peering,
    elsewhere: watch::Sender<Vec<Member>>,
    shutdown: CancellationToken,
) {
    let mut neighbours: HashMap<String, Neighbour> = HashMap::new();
    // A timer is the event here: nothing tells when somebody begins to follow another node.
    let mut tick = tokio::time::interval(ASK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let peers = raft.peers();
        neighbours.retain(|addr, _| peers.contains(addr));
        for addr in peers {
            if !neighbours.contains_key(&addr)
                && let Ok(neighbour) = Neighbour::new(&addr, &peering)
            {
                neighbours.insert(addr, neighbour);
            }
        }
        let ask = |neighbour| tokio::time::timeout(ANSWER_MAX, Neighbour::followers(neighbour));
        let answers = futures::future::join_all(neighbours.values_mut().map(ask)).await;
        elsewhere.send_replace(answers.into_iter().flatten().flatten().flatten().collect());
    }
}
