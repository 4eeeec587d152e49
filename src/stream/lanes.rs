//! Applies entries in order per database: at once where possible, else on a thread per slow database.
//!
//! An entry goes to a lane where one of its databases is busy, already has a lane, lacks a blob or must be resynced, and
//! where it moves or removes files; all others are applied on the caller's thread. Holds: the entries of one database are
//! applied in log order, and none is thrown away; an entry of several databases waits for the lanes it takes databases
//! from; nothing above an entry that waits in a lane is reported as applied. Where a lane waits for applications to end a
//! transaction, this node still counts as settled: the entry and all that it names are here, and only that database lags.

#[cfg(test)]
mod tests;
mod worker;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::{FollowStatus, Globs, RecentLog, ReplicaTarget};
use crate::db::DbError;
use crate::ltx::{BlobRef, ChangeSet};
use crate::store::{Change, ChangeKind, StoreError};
use crate::types::{DbName, LogIndex};

/// What a lane needs from an upstream node.
pub(super) enum Request {
    /// A large change set.
    Blob { blob: BlobRef, reply: oneshot::Sender<Outcome> },
    /// A database by difference, at least as new as entry `at`.
    Resync { db: DbName, at: LogIndex, reply: oneshot::Sender<Outcome> },
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is here now.
    Done,
    /// The upstream node does not have it (any more).
    NotFound,
    /// Ask again.
    Retry(String),
    /// There is nobody to ask: the databases stay as they are, not served.
    Nobody,
}

#[derive(Debug)]
enum Work {
    Apply(Change),
    /// Fetch the difference; the databases must then be at least as new as the entry.
    Resync(Vec<DbName>, LogIndex),
}

struct Item {
    index: LogIndex,
    work: Work,
    bytes: usize,
    /// Lanes that must first be past an index.
    after: Vec<(u64, LogIndex)>,
}

#[derive(Default)]
struct Lane {
    queue: VecDeque<Item>,
    running: Option<LogIndex>,
    bytes: usize,
    /// It waits for applications to end a transaction.
    held: bool,
}

impl Lane {
    fn lowest(&self) -> Option<LogIndex> {
        self.running.or_else(|| self.queue.front().map(|item| item.index))
    }
}

struct State {
    drawn: u64,
    lanes: HashMap<u64, Lane>,
    lane_of: HashMap<DbName, u64>,
    /// How many entries of a database wait.
    waiting: HashMap<DbName, usize>,
    cursor: LogIndex,
    /// Applied in every database.
    reported: LogIndex,
    /// Applied, or waiting for nothing but applications.
    settled: LogIndex,
    missing: BTreeMap<LogIndex, Vec<BlobRef>>,
    bytes: usize,
    stopped: bool,
}

pub(super) struct Lanes {
    state: Mutex<State>,
    moved: Condvar,
    target: Arc<dyn ReplicaTarget>,
    globs: Globs,
    log: Arc<RecentLog>,
    status: watch::Sender<FollowStatus>,
    acks: watch::Sender<LogIndex>,
    requests: mpsc::UnboundedSender<Request>,
    bytes_max: usize,
}

/// What the lanes work on, and whom they tell.
pub(super) struct LaneParts {
    pub(super) target: Arc<dyn ReplicaTarget>,
    pub(super) globs: Globs,
    pub(super) log: Arc<RecentLog>,
    pub(super) status: watch::Sender<FollowStatus>,
    pub(super) acks: watch::Sender<LogIndex>,
    /// At most one request per lane is open, so the channel needs no bound of its own.
    pub(super) requests: mpsc::UnboundedSender<Request>,
    pub(super) bytes_max: usize,
}

/// Threads at a time; more databases share.
const LANES_MAX: usize = 32;
/// The same including those that wait for applications.
const LANES_HELD_MAX: usize = 256;
/// What a waiting entry costs besides its bytes.
const ITEM_OVERHEAD: usize = 256;

impl Lanes {
    pub(super) fn new(parts: LaneParts, cursor: LogIndex) -> Arc<Self> {
        let LaneParts { target, globs, log, status, acks, requests, bytes_max } = parts;
        let state = State {
            drawn: 0,
            lanes: HashMap::new(),
            lane_of: HashMap::new(),
            waiting: HashMap::new(),
            cursor,
            reported: cursor,
            settled: cursor,
            missing: BTreeMap::new(),
            bytes: 0,
            stopped: false,
        };
        let (state, moved) = (Mutex::new(state), Condvar::new());
        Arc::new(Self { state, moved, target, globs, log, status, acks, requests, bytes_max })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The last entry taken; the next one to ask for is behind it.
    pub(super) fn cursor(&self) -> LogIndex {
        self.state().cursor
    }

    /// Lets lanes end after what they are doing; entries that come later are not applied.
    pub(super) fn stop(&self) {
        self.state().stopped = true;
        self.moved.notify_all();
    }

    /// Takes the next entry: applies it, or queues it and names the blobs it lacks. Blocking as long as the
    /// application takes.
    pub(super) fn take(
        self: &Arc<Self>,
        index: LogIndex,
        raw: Bytes,
        change: Option<Change>,
    ) -> Vec<BlobRef> {
        let mut missing = Vec::new();
        if self.state().stopped {
            // The next start applies it; nobody is told that it was.
            return missing;
        }
        if let Some(change) = change {
            let dbs = change.databases();
            missing = change.blobs().filter(|blob| !self.target.contains_blob(*blob)).collect();
            let mut state = self.state();
            let slow = |db| state.lane_of.contains_key(db) || self.target.would_block(db);
            let moves_files = matches!(
                change.kind,
                ChangeKind::Drop(_) | ChangeKind::Rename { .. } | ChangeKind::RenameDirectory { .. }
            );
            if moves_files || change.blobs().next().is_some() || dbs.iter().any(slow) {
                if !missing.is_empty() {
                    state.missing.insert(index, missing.clone());
                }
                let bytes = change.change_sets().iter().map(ChangeSet::inline_bytes).sum();
                for work in self.work_of(index, change) {
                    self.push(&mut state, index, bytes, work);
                }
            } else {
                drop(state);
                match self.target.apply(index, &change) {
                    Ok(()) => {}
                    // An application was quicker than the look above.
                    Err(StoreError::Db(DbError::Conflict { .. })) => {
                        let bytes = change.change_sets().iter().map(ChangeSet::inline_bytes).sum();
                        self.push(&mut self.state(), index, bytes, Work::Apply(change));
                    }
                    Err(error) => self.out_of_step(index, &dbs, &error.to_string()),
                }
            }
        }
        self.log.push(index, raw);
        self.target.taken(index);
        let mut state = self.state();
        state.cursor = index;
        self.settle(&mut state);
        missing
    }

    /// A blob has arrived: entries that wait for it may be shipped onward.
    pub(super) fn blob_arrived(&self, blob: BlobRef) {
        let mut state = self.state();
        state.missing.retain(|_, blobs| {
            blobs.retain(|lacking| *lacking != blob);
            !blobs.is_empty()
        });
        self.settle(&mut state);
    }

    /// Drops what waits: a snapshot of everything follows.
    pub(super) fn clear(&self) {
        let mut state = self.state();
        let mut dropped = Vec::new();
        for lane in state.lanes.values_mut() {
            dropped.extend(lane.queue.drain(..));
            lane.bytes = 0;
        }
        state.bytes = 0;
        state.missing.clear();
        for item in dropped {
            self.no_longer_waits(&mut state, &item.work);
        }
        self.moved.notify_all();
    }

    /// All databases stand at `index` or later by a snapshot.
    pub(super) fn restart(&self, index: LogIndex) {
        let mut state = self.state();
        state.cursor = index;
        self.target.taken(index);
        self.log.restart(index);
        self.settle(&mut state);
    }

    /// What is to be done for an entry, given the databases that are followed here.
    fn work_of(&self, index: LogIndex, change: Change) -> Vec<Work> {
        match &change.kind {
            // The old name is none that is followed here.
            ChangeKind::Rename { from, to } if !self.globs.matches(from) => {
                vec![Work::Resync(vec![to.clone()], index)]
            }
            ChangeKind::RenameDirectory { .. } => self.adjust_directory(index, change),
            _ => vec![Work::Apply(change)],
        }
    }

    /// A directory is renamed: its databases that are not here are fetched under their new names, those that this node no
    /// longer wants end.
    fn adjust_directory(&self, index: LogIndex, mut change: Change) -> Vec<Work> {
        let (mut coming, mut going) = (Vec::new(), Vec::new());
        if let ChangeKind::RenameDirectory { from, to, databases } = &mut change.kind {
            databases.retain(|old| {
                // The record was checked when it was read.
                let Ok(new) = ChangeKind::name_below(from, to, old) else { return false };
                let (here, wanted) = (self.globs.matches(old), self.globs.matches(&new));
                match (here, wanted) {
                    (false, true) => coming.push(new),
                    (true, false) => going.push(old.clone()),
                    _ => {}
                }
                here && wanted
            });
        }
        let (origin, timestamp_ms) = (change.origin, change.timestamp_ms);
        let ended = |db| Work::Apply(Change { origin, timestamp_ms, kind: ChangeKind::Drop(db) });
        let mut work: Vec<Work> = going.into_iter().map(ended).collect();
        work.push(Work::Apply(change));
        if !coming.is_empty() {
            work.push(Work::Resync(coming, index));
        }
        work
    }

    fn out_of_step(self: &Arc<Self>, index: LogIndex, dbs: &[DbName], why: &str) {
        let names: Vec<&str> = dbs.iter().map(DbName::as_str).collect();
        tracing::warn!(%index, databases = ?names, "entry cannot be applied ({why}); fetching the difference");
        let mut state = self.state();
        self.push(&mut state, index, 0, Work::Resync(dbs.to_vec(), index));
    }

    /// Brings a database in step by difference, as of the last entry taken.
    pub(super) fn repair(self: &Arc<Self>, db: &DbName) {
        let mut state = self.state();
        let index = state.cursor;
        self.push(&mut state, index, 0, Work::Resync(vec![db.clone()], index));
    }

    fn push(self: &Arc<Self>, state: &mut State, index: LogIndex, bytes: usize, work: Work) {
        let dbs = work.databases();
        self.waits(state, &work);
        let mut known: Vec<u64> = dbs.iter().filter_map(|db| state.lane_of.get(db).copied()).collect();
        known.sort_unstable();
        known.dedup();
        let number = known.first().copied().unwrap_or_else(|| self.choose(state));
        let others = known.into_iter().filter(|other| *other != number);
        let after = others.map(|other| (other, LogIndex::new(index.get() - 1))).collect();
        state.lane_of.extend(dbs.into_iter().map(|db| (db, number)));
        let bytes = bytes + ITEM_OVERHEAD;
        let lane = state.lanes.entry(number).or_default();
        let fresh = lane.queue.is_empty() && lane.running.is_none();
        lane.queue.push_back(Item { index, work, bytes, after });
        lane.bytes += bytes;
        state.bytes += bytes;
        if fresh {
            let lanes = self.clone();
            let spawned =
                std::thread::Builder::new().name("skein-lane".into()).spawn(move || lanes.work(number));
            if let Err(error) = spawned {
                // Left in the queue: the next entry of the lane cannot start a thread either, so say it.
                tracing::error!("no thread for a slow database: {error}");
            }
        }
        if state.bytes > self.bytes_max {
            self.overflow(state);
        }
        self.moved.notify_all();
    }

    /// A new lane, or the shortest one where there are many.
    fn choose(&self, state: &mut State) -> u64 {
        // What waits for applications may wait for long, and must not keep other databases waiting.
        let busy = state.lanes.values().filter(|lane| !lane.held).count();
        if (busy >= LANES_MAX || state.lanes.len() >= LANES_HELD_MAX)
            && let Some((number, _)) = state.lanes.iter().min_by_key(|(_, lane)| (lane.held, lane.bytes))
        {
            return *number;
        }
        state.drawn += 1;
        state.drawn
    }

    /// Reports what is applied, and lets readers of the recent log see what they may.
    fn settle(&self, state: &mut State) {
        if state.stopped {
            // Lanes end with work undone.
            return;
        }
        let before = |index: LogIndex| LogIndex::new(index.get().saturating_sub(1)).min(state.cursor);
        let shippable = state.missing.keys().next().map_or(state.cursor, |index| before(*index));
        let applied = state.lanes.values().filter_map(Lane::lowest).min().map_or(state.cursor, before);
        let at_work =
            state.lanes.values().filter(|lane| !state.only_waits(lane)).filter_map(Lane::lowest).min();
        let settled = at_work.map_or(state.cursor, before).min(shippable);
        self.log.publish(shippable);
        if applied > state.reported {
            state.reported = applied;
            self.target.applied(applied);
        }
        if settled > state.settled {
            state.settled = settled;
            self.acks.send_replace(settled);
            self.status.send_modify(|status| {
                status.applied = settled;
                status.compare();
            });
        }
    }

    /// One more entry of these databases waits. Of what is claimed here nobody else can see the database meanwhile.
    fn waits(&self, state: &mut State, work: &Work) {
        if matches!(work, Work::Apply(change) if self.target.is_claimed(change)) {
            return;
        }
        for db in work.databases() {
            let count = state.waiting.entry(db.clone()).or_default();
            *count += 1;
            if *count == 1 {
                self.target.set_behind(&db, true);
            }
        }
    }

    /// One entry less; gives the databases that have caught up.
    fn no_longer_waits(&self, state: &mut State, work: &Work) -> Vec<DbName> {
        let mut whole = Vec::new();
        for db in work.databases() {
            let Some(count) = state.waiting.get_mut(&db) else { continue };
            *count -= 1;
            if *count == 0 {
                state.waiting.remove(&db);
                self.target.set_behind(&db, false);
                whole.push(db);
            }
        }
        whole
    }

    /// The longest lane gives up the change sets in it: their databases are to be fetched by difference instead. What
    /// ends or renames a database stays where it is in the order.
    fn overflow(&self, state: &mut State) {
        let Some(lane) = state.lanes.values_mut().max_by_key(|lane| lane.bytes) else { return };
        let mut left: VecDeque<Item> = VecDeque::new();
        let mut given_up = Vec::new();
        for item in std::mem::take(&mut lane.queue) {
            let commits = match &item.work {
                Work::Apply(change) => matches!(change.kind, ChangeKind::Commit(_)),
                Work::Resync(..) => true,
            };
            if !commits {
                left.push_back(item);
                continue;
            }
            let dbs = item.work.databases();
            match left.back_mut() {
                Some(Item { work: Work::Resync(known, at), .. }) => {
                    *at = item.index;
                    known.extend(dbs);
                    known.sort();
                    known.dedup();
                }
                // It waits for no other lane: what those still apply is older, and skipped.
                _ => left.push_back(Item {
                    index: item.index,
                    work: Work::Resync(dbs, item.index),
                    bytes: ITEM_OVERHEAD,
                    after: Vec::new(),
                }),
            }
            given_up.push(item);
        }
        let Some((first, last)) = given_up.first().zip(given_up.last()) else {
            return lane.queue = left;
        };
        tracing::warn!(entries = given_up.len(), from = %first.index, to = %last.index, "too much waits for slow databases; fetching the difference later");
        let resyncs: Vec<Work> = left.iter().filter_map(|item| item.work.as_resync()).collect();
        let bytes = left.iter().map(|item| item.bytes).sum();
        let freed = lane.bytes - bytes;
        (lane.queue, lane.bytes) = (left, bytes);
        state.bytes -= freed;
        resyncs.iter().for_each(|work| self.waits(state, work));
        for item in given_up {
            state.missing.remove(&item.index);
            // What replaces it waits already.
            self.no_longer_waits(state, &item.work);
        }
    }
}

impl State {
    /// Whether nothing but applications keeps a lane from going on.
    fn only_waits(&self, lane: &Lane) -> bool {
        let behind_held = |item: &Item| {
            item.after.iter().any(|(other, until)| {
                self.lanes.get(other).is_some_and(|other| other.held && other.lowest() <= Some(*until))
            })
        };
        lane.held || lane.running.is_none() && lane.queue.front().is_some_and(behind_held)
    }
}

impl Work {
    fn databases(&self) -> Vec<DbName> {
        match self {
            Work::Apply(change) => change.databases(),
            Work::Resync(dbs, _) => dbs.clone(),
        }
    }

    fn as_resync(&self) -> Option<Work> {
        match self {
            Work::Resync(dbs, at) => Some(Work::Resync(dbs.clone(), *at)),
            Work::Apply(_) => None,
        }
    }
}
