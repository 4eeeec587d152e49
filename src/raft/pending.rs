use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::db::{CommitDone, CommitError};
use crate::store::Origin;
use crate::telemetry::CommitTimes;

/// Proposals of this run whose fate is not known yet.
///
/// Openraft keeps a proposal's responder for as long as it likes (trap 7), so the fate is told from here: applied,
/// refused, lost to another leader, or unknown after a time.
#[derive(Default)]
pub(super) struct Pending {
    proposals: Mutex<HashMap<Origin, Proposal>>,
    /// The last one was decided.
    emptied: Notify,
}

struct Proposal {
    done: CommitDone,
    /// The term it is proposed in; it enters the log in this term or never.
    term: u64,
    /// When it was handed to Raft.
    since: Option<Instant>,
    times: CommitTimes,
}

impl Pending {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Origin, Proposal>> {
        self.proposals.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Notes a proposal before it is made.
    pub fn insert(&self, origin: Origin, term: u64, times: CommitTimes, done: CommitDone) {
        self.lock().insert(origin, Proposal { done, term, since: None, times });
    }

    /// It is handed to Raft now: from here on its fate is waited for.
    pub fn begin(&self, origin: &Origin) {
        if let Some(proposal) = self.lock().get_mut(origin) {
            proposal.since = Some(Instant::now());
            proposal.times.submit();
        }
    }

    /// Whether somebody still waits for its fate.
    pub fn contains(&self, origin: &Origin) -> bool {
        self.lock().contains_key(origin)
    }

    /// Takes a proposal whose fate is about to be told: who waits for it, and how long its way took.
    pub fn take(&self, origin: &Origin) -> Option<(CommitDone, CommitTimes)> {
        let mut proposals = self.lock();
        let taken = proposals.remove(origin);
        if taken.is_some() && proposals.is_empty() {
            self.emptied.notify_waiters();
        }
        taken.map(|proposal| (proposal.done, proposal.times))
    }

    /// Whether nobody waits for anything.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Returns once nobody waits for anything.
    pub async fn emptied(&self) {
        let mut emptied = std::pin::pin!(self.emptied.notified());
        // Registered before the look, so that no end of a proposal is missed.
        emptied.as_mut().enable();
        if !self.is_empty() {
            emptied.await;
        }
    }

    /// Tells the fate of a proposal, if nobody did before.
    pub fn fail(&self, origin: &Origin, error: CommitError) {
        if let Some((done, _)) = self.take(origin) {
            done(Err(error));
        }
    }

    fn fail_where(&self, fails: impl Fn(&Proposal) -> bool, error: &CommitError) {
        let mut failing: Vec<Origin> =
            self.lock().iter().filter(|(_, proposal)| fails(proposal)).map(|(origin, _)| *origin).collect();
        failing.sort_by_key(|origin| origin.seq);
        failing.iter().for_each(|origin| self.fail(origin, error.clone()));
    }

    /// An entry of `term` is applied: what was proposed before and is not applied by now never will be, because a
    /// leader's log begins with everything that can still be committed (Raft paper, 5.4.2).
    pub fn lost_before(&self, term: u64) {
        let error = CommitError::Refused("another leader came before it was committed".into());
        self.fail_where(|proposal| proposal.term < term, &error);
    }

    /// Gives up on proposals older than `age`.
    pub fn expire(&self, age: Duration) {
        let now = Instant::now();
        let error = CommitError::Unknown(format!("the log did not answer within {} s", age.as_secs_f32()));
        let late = |since: Instant| now.saturating_duration_since(since) >= age;
        self.fail_where(|proposal| proposal.since.is_some_and(late), &error);
    }

    /// Gives up on all.
    pub fn abandon(&self, why: &str) {
        self.fail_where(|_| true, &CommitError::Unknown(why.to_owned()));
    }
}
