use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::super::backoff::Backoff;
use super::{Item, Lane, Lanes, Outcome, Request, Work, databases};
use crate::store::{Change, ChangeKind, Origin};
use crate::types::{DbName, LogIndex, NodeId};

/// What a lane's thread does; it lives until its queue is empty.
impl Lanes {
    /// The life of a lane's thread.
    pub(super) fn work(self: Arc<Self>, number: u64) {
        while let Some(item) = self.next(number) {
            match item.work {
                Work::Apply(change) => self.apply(item.index, &change),
                Work::Resync(dbs, at) => self.resync(at, &dbs),
            }
        }
    }

    fn next(&self, number: u64) -> Option<Item> {
        let mut state = self.state();
        if let Some(lane) = state.lanes.get_mut(&number) {
            lane.running = None;
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

    fn apply(&self, index: LogIndex, change: &Change) {
        let dbs = databases(change);
        for blob in change.blobs() {
            if self.target.contains_blob(blob) {
                self.blob_arrived(blob);
                continue;
            }
            match self.ask(|reply| Request::Blob { blob, reply }) {
                Some(Outcome::Done) => self.blob_arrived(blob),
                Some(Outcome::Nobody) => {
                    let names: Vec<&str> = dbs.iter().map(DbName::as_str).collect();
                    tracing::error!(%index, databases = ?names, %blob, "a large change set is lost, and no other node has it");
                    break;
                }
                Some(_) => return self.resync(index, &dbs),
                None => return,
            }
        }
        if let Err(error) = self.target.apply(index, change) {
            let names: Vec<&str> = dbs.iter().map(DbName::as_str).collect();
            tracing::warn!(%index, databases = ?names, "entry cannot be applied ({error}); fetching the difference");
            self.resync(index, &dbs);
        }
    }

    fn resync(&self, at: LogIndex, dbs: &[DbName]) {
        for db in dbs {
            match self.ask(|reply| Request::Resync { db: db.clone(), at, reply }) {
                Some(Outcome::Done) => {
                    self.state().gone.remove(db);
                }
                Some(Outcome::Nobody) => {
                    tracing::error!(database = %db, "no other node has it: restore it with skein db import");
                    continue;
                }
                Some(_) => {
                    let origin = Origin { node: NodeId::new(0), run: 0, seq: 0 };
                    let change = Change { origin, timestamp_ms: 0, kind: ChangeKind::Drop(db.clone()) };
                    if let Err(error) = self.target.apply(at, &change) {
                        tracing::error!(database = %db, "gone upstream, but cannot be dropped here: {error}");
                    }
                    self.state().gone.insert(db.clone());
                }
                None => return,
            }
            self.status.send_modify(|status| status.resyncs += 1);
        }
        let mut state = self.state();
        state.missing.remove(&at);
        self.settle(&mut state);
    }

    /// Asks the upstream node until it answers; `None` when this node ends.
    fn ask(&self, request: impl Fn(oneshot::Sender<Outcome>) -> Request) -> Option<Outcome> {
        let mut backoff = Backoff::new();
        loop {
            let (reply, answer) = oneshot::channel();
            if self.requests.send(request(reply)).is_err() {
                self.stop();
                return None;
            }
            // An answer that never comes: the connection broke, and the next one takes the request again.
            match answer.blocking_recv() {
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
