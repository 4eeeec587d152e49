//! The nodes that follow other voters, as those tell: an operator sees the whole cluster from every node.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::raft::RaftNode;
use crate::rpc::OtherVoter;
use crate::security::Peering;
use crate::store::Member;

/// Between two questions to the same voter; lags are told in milliseconds, and are as old as this at most.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long a voter has to answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// What the other voters said when they were last asked.
#[derive(Clone, Default, Debug)]
pub(super) struct OtherVoters {
    /// Those who follow one of them.
    pub(super) followers: Vec<Member>,
    /// HOST:PORT of those that answered.
    pub(super) answering: BTreeSet<String>,
}

/// Asks the other voters who follows them, until `shutdown`. What one said last is forgotten when it does not answer.
pub(super) async fn watch_followers(
    raft: Arc<RaftNode>,
    peering: Peering,
    elsewhere: watch::Sender<OtherVoters>,
    shutdown: CancellationToken,
) {
    let mut voters: HashMap<String, OtherVoter> = HashMap::new();
    // A timer is the event here: nothing tells when somebody begins to follow another node.
    let mut tick = tokio::time::interval(ASK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let peers = raft.peers();
        voters.retain(|addr, _| peers.contains(addr));
        for addr in peers {
            if !voters.contains_key(&addr)
                && let Ok(voter) = OtherVoter::new(&addr, &peering)
            {
                voters.insert(addr, voter);
            }
        }
        let ask = |(addr, voter): (&String, _)| {
            let addr = addr.clone();
            async { (addr, tokio::time::timeout(ANSWER_MAX, OtherVoter::followers(voter)).await) }
        };
        let answers = futures::future::join_all(voters.iter_mut().map(ask)).await;
        let mut told = OtherVoters::default();
        for (addr, answer) in answers {
            if let Ok(Ok(followers)) = answer {
                told.followers.extend(followers);
                told.answering.insert(addr);
            }
        }
        elsewhere.send_replace(told);
    }
}
