//! What a leader knows of its quorum: when each voter was last sent something that it has answered since.
//!
//! openraft counts an answer for every request that ends at the same entry, also for one that was sent after the
//! answer was given: a leader that was stopped for a while finds old answers waiting and believes itself confirmed.
//! Here each answer counts for the request it belongs to, and for nothing else.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use openraft::raft::{StreamAppendError, StreamAppendResult};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::types::TypeConfig;

/// The voters' answers to this node as leader, by voter.
#[derive(Clone, Default)]
pub(super) struct Acks {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    heard: Mutex<HashMap<u64, Sent>>,
    changed: Notify,
}

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// The leader's term.
    pub term: u64,
    /// Not later than it left.
    pub at: Instant,
}

impl Acks {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Sent>> {
        self.shared.heard.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Voter `from` has answered `request`, as a follower of its term.
    pub fn heard(&self, from: u64, request: Sent) {
        let mut heard = self.lock();
        let last = heard.entry(from).or_insert(request);
        if (last.term, last.at) < (request.term, request.at) {
            *last = request;
        }
        drop(heard);
        self.shared.changed.notify_waiters();
    }

    /// Voter `from` has answered `request` of a stream: unless it follows another leader, it listens.
    pub fn answered<E>(
        &self,
        from: u64,
        request: Option<Sent>,
        answer: &Result<StreamAppendResult<TypeConfig>, E>,
    ) {
        if let (Some(request), Ok(Ok(_) | Err(StreamAppendError::Conflict(_)))) = (request, answer) {
            self.heard(from, request);
        }
    }

    /// The last moment of which `own`, leader of `term`, knows that a majority of each of `configs` has listened to it
    /// since; `None` where there is none.
    pub fn quorum(&self, own: u64, term: u64, configs: &[BTreeSet<u64>]) -> Option<Instant> {
        let heard = self.lock();
        let now = Instant::now();
        let at = |id: &u64| match heard.get(id) {
            _ if *id == own => Some(now),
            Some(sent) if sent.term == term => Some(sent.at),
            _ => None,
        };
        let of_majority = |voters: &BTreeSet<u64>| {
            let mut times: Vec<Instant> = voters.iter().filter_map(at).collect();
            times.sort_unstable();
            times.len().checked_sub(voters.len() / 2 + 1).map(|index| times[index])
        };
        configs.iter().map(of_majority).min().flatten()
    }

    /// Waits until `term`'s leader `own` has been listened to by a quorum since `asked`.
    pub async fn confirmed_since(&self, asked: Instant, own: u64, term: u64, configs: &[BTreeSet<u64>]) {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.quorum(own, term, configs).is_some_and(|at| at >= asked) {
                return;
            }
            changed.await;
        }
    }
}

/// Requests of one stream that are not answered yet; answers come in their order.
#[derive(Clone, Default)]
pub(super) struct Outstanding {
    requests: Arc<Mutex<VecDeque<Sent>>>,
}

impl Outstanding {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Sent>> {
        self.requests.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// One is about to be sent.
    pub fn send(&self, term: u64) {
        self.lock().push_back(Sent { term, at: Instant::now() });
    }

    /// An answer has come: the request it belongs to.
    pub fn answered(&self) -> Option<Sent> {
        self.lock().pop_front()
    }

    /// Whether nothing is being waited for.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn voters(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_from_when_its_own_request_left() {
        let (acks, outstanding) = (Acks::default(), Outstanding::default());
        let configs = [voters(&[1, 2, 3])];
        assert_eq!(acks.quorum(1, 7, &configs), None);
        outstanding.send(7);
        let left = Instant::now();
        // The leader stands still, then sends more before it looks at the answer that has been waiting.
        tokio::time::advance(Duration::from_secs(2)).await;
        outstanding.send(7);
        acks.heard(2, outstanding.answered().unwrap());
        assert_eq!(acks.quorum(1, 7, &configs), Some(left));
        assert!(!outstanding.is_empty());
        acks.heard(2, outstanding.answered().unwrap());
        assert_eq!(acks.quorum(1, 7, &configs), Some(Instant::now()));
        assert_eq!(acks.quorum(1, 8, &configs), None, "another term's followers");
    }

    #[tokio::test(start_paused = true)]
    async fn a_quorum_is_a_majority_of_each_configuration() {
        let acks = Acks::default();
        let start = Instant::now();
        for (voter, second) in [(2, 1), (3, 2), (4, 3)] {
            acks.heard(voter, Sent { term: 1, at: start + Duration::from_secs(second) });
        }
        tokio::time::advance(Duration::from_secs(9)).await;
        let at = |configs: &[BTreeSet<u64>]| {
            acks.quorum(1, 1, configs).map(|at| at.duration_since(start).as_secs())
        };
        assert_eq!(at(&[voters(&[1])]), Some(9));
        assert_eq!(at(&[voters(&[1, 2, 3])]), Some(2));
        assert_eq!(at(&[voters(&[1, 2, 3, 4, 5])]), Some(2));
        assert_eq!(at(&[voters(&[2, 3, 4])]), Some(2), "a leader that is no voter");
        assert_eq!(at(&[voters(&[1, 5, 6]), voters(&[1])]), None, "both, while members change");
        assert_eq!(at(&[voters(&[1, 2, 3]), voters(&[1, 2, 5])]), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_confirmation_waits_for_an_answer_to_what_was_sent_since() {
        let (acks, configs) = (Acks::default(), [voters(&[1, 2, 3])]);
        let asked = Instant::now();
        acks.heard(2, Sent { term: 1, at: asked.checked_sub(Duration::from_millis(1)).unwrap() });
        let confirmed = {
            let acks = acks.clone();
            tokio::spawn(async move { acks.confirmed_since(asked, 1, 1, &configs).await })
        };
        tokio::task::yield_now().await;
        assert!(!confirmed.is_finished());
        acks.heard(3, Sent { term: 1, at: asked });
        confirmed.await.unwrap();
    }
}
