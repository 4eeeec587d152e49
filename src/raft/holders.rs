//! Who holds what entries only name: large change sets are on the disks of a majority before the entries that name
//! them, and when others vote, every majority of those has one that holds them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc, watch};

use super::handle::{RaftHandle, change_membership};
use super::transport::{BlobSender, Delivery};
use super::types::{Peer, position};
use crate::io::blobs::BlobStore;
use crate::ltx::BlobRef;
use crate::types::LogIndex;

/// How long nodes that are to vote may take to apply what there is,
const CATCH_UP_MAX: Duration = Duration::from_secs(10);
/// and what came meanwhile: large change sets wait for it.
const HOLD_UP_MAX: Duration = Duration::from_secs(2);

/// Keeps the two in step: what is held by whom, and who votes.
pub(super) struct Holders {
    pub raft: RaftHandle,
    /// This node.
    pub id: u64,
    pub sender: Arc<dyn BlobSender>,
    pub blobs: Arc<BlobStore>,
    /// Up to here this node's databases have everything.
    pub settled: watch::Receiver<LogIndex>,
    /// Read from the choice of who receives a change set until its entry is on its way; written while voters change.
    pub voters: RwLock<()>,
}

/// As long as it lives, the voters stay who they are.
pub(super) type SameVoters<'a> = RwLockReadGuard<'a, ()>;

impl Holders {
    /// Brings what an entry names to a majority; the entry is to be submitted before what is returned is dropped.
    ///
    /// # Errors
    /// Where too few voters can be reached.
    pub async fn ship(&self, blobs: &[BlobRef]) -> Result<SameVoters<'_>, String> {
        let same = self.voters.read().await;
        let (peers, need) = self.receivers();
        for blob in blobs {
            let send = |(id, peer): &(u64, Peer)| self.sender.send(*id, peer, self.blobs.clone(), *blob);
            reached("a large change set", peers.iter().map(send).collect(), need).await?;
        }
        Ok(same)
    }

    /// Has the other voters remove copies of what was shipped and then refused. Who cannot be reached keeps its copy
    /// until it is old.
    pub fn drop_copies(&self, blob: BlobRef) {
        let (peers, _) = self.receivers();
        for (id, peer) in peers {
            tokio::spawn(self.sender.drop_blob(id, &peer, blob));
        }
    }

    /// The other voters, and how many of them make a majority together with this node.
    fn receivers(&self) -> (Vec<(u64, Peer)>, usize) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let others = membership.voter_ids().filter(|id| *id != self.id);
        let peers = others.filter_map(|id| Some((id, membership.get_node(&id)?.clone()))).collect();
        let need = membership.get_joint_config().iter().map(|config| config.len() / 2).max().unwrap_or(0);
        (peers, need)
    }

    /// Changes who votes, once every majority of those who will has one that has all that the log names.
    ///
    /// # Errors
    /// Where they cannot be reached or lag too far behind, and those of the change itself.
    pub async fn change_voters(&self, change: ChangeMembers<u64, Peer>, retain: bool) -> Result<(), String> {
        let voters = self.voters_after(&change);
        self.caught_up(&voters, CATCH_UP_MAX).await?;
        let _others_wait = self.hold_up().await?;
        self.caught_up(&voters, HOLD_UP_MAX).await?;
        change_membership(&self.raft, change, retain).await
    }

    /// Ends a change that another leader left in the middle; false where there is none.
    ///
    /// # Errors
    /// Those of the change itself.
    pub async fn complete_change(&self) -> Result<bool, String> {
        let _others_wait = self.hold_up().await?;
        let begun =
            self.raft.metrics().borrow_watched().membership_config.membership().get_joint_config().len();
        if begun < 2 {
            return Ok(false);
        }
        // Nothing is added: what is left is the second set alone, as if the first leader had gone on.
        change_membership(&self.raft, ChangeMembers::AddVoterIds(BTreeSet::new()), true).await.map(|()| true)
    }

    /// Waits for large change sets that are being shipped, no longer than those behind them may wait for us.
    async fn hold_up(&self) -> Result<RwLockWriteGuard<'_, ()>, String> {
        let late = |_| "a large change set is on its way to the voters; try again".to_owned();
        tokio::time::timeout(HOLD_UP_MAX, self.voters.write()).await.map_err(late)
    }

    fn voters_after(&self, change: &ChangeMembers<u64, Peer>) -> BTreeSet<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let mut voters: BTreeSet<u64> = metrics.membership_config.membership().voter_ids().collect();
        match change {
            ChangeMembers::AddVoterIds(more) => voters.extend(more),
            ChangeMembers::RemoveVoters(fewer) => voters.retain(|id| !fewer.contains(id)),
            _ => {}
        }
        voters
    }

    /// Waits until so many of `voters` have applied every entry there is now that no majority of them is without one.
    async fn caught_up(&self, voters: &BTreeSet<u64>, limit: Duration) -> Result<(), String> {
        // Asked of Raft behind everything submitted so far: the metrics may not have it yet.
        let last = self.raft.with_raft_state(|state| state.log_ids.last().map(|id| position(id.index))).await;
        let last = LogIndex::new(last.map_err(|error| error.to_string())?.unwrap_or(0));
        let membership = self.raft.metrics().borrow_watched().membership_config.membership().clone();
        let applied = |id: &u64| -> Option<Delivery> {
            if *id == self.id {
                let mut settled = self.settled.clone();
                let ended = |_| "the node is shutting down".to_owned();
                return Some(Box::pin(async move {
                    settled.wait_for(|settled| *settled >= last).await.map(drop).map_err(ended)
                }));
            }
            Some(self.sender.applied(*id, membership.get_node(id)?, last))
        };
        let within = |delivery: Delivery| -> Delivery {
            let late = move |_| Err(format!("not applied within {} s", limit.as_secs()));
            Box::pin(async move { tokio::time::timeout(limit, delivery).await.unwrap_or_else(late) })
        };
        let all = voters.iter().filter_map(applied).map(within).collect();
        reached(&format!("the log up to entry {last}"), all, voters.len().div_ceil(2)).await
    }
}

/// Waits until `need` of `deliveries` have succeeded; the others go on.
///
/// # Errors
/// Where too few do; the text names the last reason.
async fn reached(what: &str, deliveries: Vec<Delivery>, need: usize) -> Result<(), String> {
    if need == 0 {
        return Ok(());
    }
    let (told, mut results) = mpsc::channel(deliveries.len().max(1));
    for delivery in deliveries {
        let told = told.clone();
        tokio::spawn(async move {
            // Nobody listening: it has reached enough others.
            let _ = told.send(delivery.await).await;
        });
    }
    drop(told);
    let (mut held, mut last) = (0, "no other voter is known".to_owned());
    while held < need {
        match results.recv().await {
            Some(Ok(())) => held += 1,
            Some(Err(why)) => last = why,
            None => return Err(format!("{what} reached {held} of {need} voters: {last}")),
        }
    }
    Ok(())
}
