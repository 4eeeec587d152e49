//! Makes this node's run known to the other voters, see [`super::incarnations`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use tokio_util::sync::CancellationToken;

use super::holders::Holders;
use super::transport::BlobSender;
use super::types::Peer;

/// How long one node has to answer,
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// and the time until those that did not are asked again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Greets nodes; returns those that know this run now.
pub(super) async fn greet(
    sender: &dyn BlobSender,
    peers: Vec<(u64, Peer)>,
    limit: Duration,
) -> BTreeSet<u64> {
    let greetings = peers.into_iter().map(|(id, peer)| {
        let greeted = sender.greet(id, &peer);
        async move {
            tokio::time::timeout(limit, greeted).await.is_ok_and(|greeted| greeted.is_ok()).then_some(id)
        }
    });
    futures::future::join_all(greetings).await.into_iter().flatten().collect()
}

/// Greets every member until it has answered once, also those that become members later.
pub(super) async fn introduce(holders: Arc<Holders>, stop: CancellationToken) {
    let raft = holders.raft.clone();
    let mut server = raft.server_metrics();
    let mut known = BTreeSet::from([holders.id]);
    loop {
        let members = raft.metrics().borrow_watched().membership_config.membership().clone();
        let strangers = members.nodes().filter(|(id, _)| !known.contains(id));
        let strangers: Vec<(u64, Peer)> = strangers.map(|(id, peer)| (*id, peer.clone())).collect();
        let waits_for = strangers.len();
        let greeted = greet(&*holders.sender, strangers, ANSWER_MAX).await;
        let missing = waits_for > greeted.len();
        known.extend(greeted);
        let more = tokio::select! {
            biased;
            () = stop.cancelled() => false,
            () = tokio::time::sleep(AGAIN_AFTER), if missing => true,
            changed = server.changed() => changed.is_ok(),
        };
        if !more {
            return;
        }
    }
}
