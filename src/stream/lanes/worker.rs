use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::super::backoff::Backoff;
use super::{Item, Lane, Lanes, Outcome, Request, Work};
use crate::db::DbError;
use crate::io::log_rate_limit;
use crate::store::{Change, ChangeKind, StoreError};
use crate::types::{DbName, LogIndex};

/// Between two attempts to apply an entry that waits for applications: it grows by this much
const HELD_PAUSE: Duration = Duration::from_millis(1);
/// up to so many times. The kernel tells nobody of a byte-range lock that is let go.
const HELD_PAUSES_MAX: u32 = 25;
/// Attempts after which it is worth a line in the log.
const TRIES_UNTOLD: u32 = 40;

/// What a lane's thread does; it lives until its queue is empty.
impl Lanes {
    /// The life of a lane's thread.
    pub(super) fn work(self: Arc<Self>, number: u64) {
        while let Some(item) = self.next(number) {
            let done = match &item.work {
                Work::Apply(change) => self.apply(number, item.index, change),
                Work::Resync(dbs, at) => self.resync(*at, dbs),
            };
            if done.is_none() {
                // The node ends: what was not applied is left to the next start.
                break;
            }
            let whole = self.no_longer_waits(&mut self.state(), &item.work);
            whole.iter().for_each(|db| self.target.clone().caught_up(db));
        }
    }

    fn next(&self, number: u64) -> Option<Item> {
        let mut state = self.state();
        if let Some(lane) = state.lanes.get_mut(&number) {
            (lane.running, lane.held) = (None, false);
        }
        self.settle(&mut state);
        self.moved.notify_all();
        loop {
            let lane = state.lanes.get(&number)?;
            let Some(front) = lane.queue.front().filter(|_| !state.stopped) else {
                state.lanes.remove(&number);
                state.lane_of.retain(|_, lane| *lane != number);
                self.settle(&mut state);
                self.moved.notify_all();
                return None;
            };
            let waits = front.after.iter().any(|(other, until)| {
                state.lanes.get(other).and_then(Lane::lowest).is_some_and(|lowest| lowest <= *until)
            });
            if !waits {
                break;
            }
            state = self.moved.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        let lane = state.lanes.get_mut(&number)?;
        let item = lane.queue.pop_front()?;
        lane.running = Some(item.index);
        lane.bytes -= item.bytes;
        state.bytes -= item.bytes;
        Some(item)
    }

    /// Applies an entry, whatever it takes; `None` when this node ends.
    fn apply(&self, number: u64, index: LogIndex, change: &Change) -> Option<()> {
        let names: Vec<String> = change.databases().iter().map(ToString::to_string).collect();
        for blob in change.blobs() {
            if self.target.contains_blob(blob) {
                self.blob_arrived(blob);
                continue;
            }
            match self.ask(|| false, |reply| Request::Blob { blob, reply })? {
                Outcome::Done => self.blob_arrived(blob),
                Outcome::Nobody => {
                    tracing::error!(%index, databases = ?names, %blob, "a large change set is lost, and no other node has it");
                    break;
                }
                _ => return self.resync(index, &change.databases()),
            }
        }
        let (mut backoff, mut tries) = (Backoff::new(), 0);
        loop {
            let error = match self.target.apply(index, change) {
                Ok(()) => {
                    return match &change.kind {
                        // What was not served is not served under its new name either.
                        ChangeKind::Rename { to, .. } if self.target.is_failed(to) => {
                            self.resync(index, std::slice::from_ref(to))
                        }
                        _ => Some(()),
                    };
                }
                Err(StoreError::Db(error @ DbError::Conflict { .. })) => {
                    tries += 1;
                    if tries == TRIES_UNTOLD {
                        tracing::info!(%index, databases = ?names, "entries wait for an application: {error}");
                    }
                    self.set_held(number, true);
                    if self.pause(HELD_PAUSE * tries.min(HELD_PAUSES_MAX)) {
                        return None;
                    }
                    continue;
                }
                Err(error) => error,
            };
            self.set_held(number, false);
            let fetched = match &change.kind {
                ChangeKind::Commit(sets) => sets.iter().map(|set| set.db.clone()).collect(),
                // Its content is under the new name now; the old one ends here whatever it holds.
                ChangeKind::Rename { to, .. } => vec![to.clone()],
                ChangeKind::RenameDirectory { from, to, databases } => {
                    databases.iter().filter_map(|old| ChangeKind::name_below(from, to, old).ok()).collect()
                }
                _ => Vec::new(),
            };
            // What is claimed here waits for this node's own disk, and was not elsewhere before.
            if fetched.is_empty() || self.target.is_claimed(change) {
                if let Some(suppressed) = log_rate_limit::due((index.get(), error.to_string())) {
                    tracing::error!(%index, databases = ?names, suppressed, "an entry cannot be applied ({error}); trying again");
                }
                if self.pause(backoff.next()) {
                    return None;
                }
                continue;
            }
            tracing::warn!(%index, databases = ?names, "entry cannot be applied ({error}); fetching the difference");
            self.resync(index, &fetched)?;
            if matches!(change.kind, ChangeKind::Commit(_)) {
                return Some(());
            }
            if let Err(error) = self.target.apply(index, change) {
                tracing::error!(%index, databases = ?names, "a rename cannot be completed: {error}");
            }
            return Some(());
        }
    }

    fn set_held(&self, number: u64, held: bool) {
        let mut state = self.state();
        if let Some(lane) = state.lanes.get_mut(&number) {
            lane.held = held;
        }
        self.settle(&mut state);
    }

    /// Fetches what differs; `None` when this node ends.
    ///
    /// A database that the other node does not have, or that nobody can be asked for, keeps its files and is not served:
    /// the log is yet to tell how it ended, or its operator decides. Nor is anybody waited for where an entry that waits here
    /// ends it: others may wait for it in the same way, and nobody has it any more.
    fn resync(&self, at: LogIndex, dbs: &[DbName]) -> Option<()> {
        for db in dbs {
            let ended = || self.is_ended_behind(at, db);
            match self.ask(ended, |reply| Request::Resync { db: db.clone(), at, reply })? {
                Outcome::Done => {}
                Outcome::Nobody => {
                    tracing::error!(database = %db, "no other node has it: restore it with skein db import, or drop it");
                    self.target.fail(db, "it lacks committed transactions, and no other node has them");
                    continue;
                }
                _ => {
                    tracing::warn!(database = %db, "the other nodes do not have it; its files stay until the log tells how it ended");
                    self.target
                        .fail(db, "it lacks committed transactions, and the other nodes do not have it");
                }
            }
            self.status.send_modify(|status| status.resyncs += 1);
        }
        let mut state = self.state();
        state.missing.remove(&at);
        self.settle(&mut state);
        Some(())
    }

    /// Whether an entry behind `at` that waits in a lane drops a database, moves it away or replaces it.
    fn is_ended_behind(&self, at: LogIndex, db: &DbName) -> bool {
        let ends = |item: &Item| {
            let Work::Apply(change) = &item.work else { return false };
            item.index > at
                && match &change.kind {
                    ChangeKind::Drop(name) => name == db,
                    ChangeKind::Rename { from, to } => from == db || to == db,
                    ChangeKind::RenameDirectory { databases, .. } => databases.contains(db),
                    _ => false,
                }
        };
        self.state().lanes.values().flat_map(|lane| &lane.queue).any(ends)
    }

    /// Asks the upstream node until it answers, or until nothing needs the answer; `None` when this node ends.
    fn ask(
        &self,
        is_over: impl Fn() -> bool,
        request: impl Fn(oneshot::Sender<Outcome>) -> Request,
    ) -> Option<Outcome> {
        let mut backoff = Backoff::new();
        loop {
            let (reply, answer) = oneshot::channel();
            if self.requests.send(request(reply)).is_err() {
                self.stop();
                return None;
            }
            // An answer that never comes: the connection broke, and the next one takes the request again.
            match answer.blocking_recv() {
                Ok(Outcome::Retry(_)) if is_over() => return Some(Outcome::NotFound),
                Ok(Outcome::Retry(why)) => tracing::debug!("asking the upstream node again: {why}"),
                Ok(outcome) => return Some(outcome),
                Err(_) => {}
            }
            if self.pause(backoff.next()) {
                return None;
            }
        }
    }

    /// Waits before another attempt; whether this node ends meanwhile.
    fn pause(&self, wait: Duration) -> bool {
        let state = self.state();
        let waited = self.moved.wait_timeout_while(state, wait, |state| !state.stopped);
        waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0.stopped
    }
}
