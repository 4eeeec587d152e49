//! Applies entries in order per database: at once where possible, else on a thread per slow database.
//!
//! An entry goes to a lane where one of its databases is busy, already has a lane, lacks a blob or must be resynced;
//! all others are applied on the caller's thread. Holds: the entries of one database are applied in log order; an entry
//! of several databases waits for the lanes it takes databases from; nothing above an entry that waits in a lane is
//! reported as applied.

mod worker;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::{FollowStatus, Globs, RecentLog, ReplicaTarget};
use crate::ltx::{BlobRef, ChangeSet};
use crate::store::{Change, ChangeKind};
use crate::types::{DbName, LogIndex, MountPath, Txid};

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
    cursor: LogIndex,
    reported: LogIndex,
    missing: BTreeMap<LogIndex, Vec<BlobRef>>,
    /// Not there any more when a resync asked the upstream: the log is yet to tell how they ended.
    gone: HashSet<DbName>,
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
/// What a waiting entry costs besides its bytes.
const ITEM_OVERHEAD: usize = 256;

impl Lanes {
    pub(super) fn new(parts: LaneParts, cursor: LogIndex) -> Arc<Self> {
        let LaneParts { target, globs, log, status, acks, requests, bytes_max } = parts;
        let state = State {
            drawn: 0,
            lanes: HashMap::new(),
            lane_of: HashMap::new(),
            cursor,
            reported: cursor,
            missing: BTreeMap::new(),
            gone: HashSet::new(),
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
            let dbs = databases(&change);
            missing = change.blobs().filter(|blob| !self.target.contains_blob(*blob)).collect();
            let mut state = self.state();
            let slow =
                |db| state.lane_of.contains_key(db) || state.gone.contains(db) || self.target.would_block(db);
            if change.blobs().next().is_some() || dbs.iter().any(slow) || self.comes_in(&change) {
                if !missing.is_empty() {
                    state.missing.insert(index, missing.clone());
                }
                let bytes = change.change_sets().iter().map(ChangeSet::inline_bytes).sum();
                for work in self.adjust(&mut state, index, change) {
                    self.push(&mut state, index, bytes, work);
                }
            } else {
                drop(state);
                if let Err(error) = self.target.apply(index, &change) {
                    self.out_of_step(index, &dbs, &error.to_string());
                }
            }
        }
        self.log.push(index, raw);
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
        for lane in state.lanes.values_mut() {
            lane.queue.clear();
            lane.bytes = 0;
        }
        state.bytes = 0;
        state.missing.clear();
        state.gone.clear();
        self.moved.notify_all();
    }

    /// All databases stand at `index` or later by a snapshot.
    pub(super) fn restart(&self, index: LogIndex) {
        let mut state = self.state();
        state.cursor = index;
        self.log.restart(index);
        self.settle(&mut state);
    }

    fn comes_in(&self, change: &Change) -> bool {
        match &change.kind {
            ChangeKind::Rename { from, .. } => !self.globs.matches(from),
            // Which of its databases do is for the lane to tell.
            ChangeKind::RenameDirectory { .. } => !self.globs.patterns().is_empty(),
            _ => false,
        }
    }

    /// What is to be done for an entry, given the databases that are gone upstream.
    fn adjust(&self, state: &mut State, index: LogIndex, mut change: Change) -> Vec<Work> {
        let comes_in = self.comes_in(&change);
        match &mut change.kind {
            ChangeKind::Commit(sets) => {
                sets.retain(|set| {
                    // A first transaction: the name is used anew.
                    let anew = set.range.min() == Txid::FIRST && state.gone.remove(&set.db);
                    anew || !state.gone.contains(&set.db)
                });
                if sets.is_empty() {
                    return Vec::new();
                }
            }
            ChangeKind::Drop(db) => {
                state.gone.remove(db);
            }
            ChangeKind::Create { name, .. } => {
                state.gone.remove(name);
            }
            ChangeKind::RenameDirectory { .. } => return self.adjust_directory(state, index, change),
            ChangeKind::SetAttributes { .. }
            | ChangeKind::MakeDirectory { .. }
            | ChangeKind::RemoveDirectory(_) => {}
            ChangeKind::Rename { from, to } => {
                state.gone.remove(to);
                if state.gone.remove(from) || comes_in {
                    return vec![Work::Resync(vec![to.clone()], index)];
                }
            }
        }
        vec![Work::Apply(change)]
    }

    /// A directory is renamed: its databases that are not here are fetched under their new names, those that this node no
    /// longer wants end.
    fn adjust_directory(&self, state: &mut State, index: LogIndex, mut change: Change) -> Vec<Work> {
        let (mut coming, mut going) = (Vec::new(), Vec::new());
        if let ChangeKind::RenameDirectory { from, to, databases } = &mut change.kind {
            databases.retain(|old| {
                // The record was checked when it was read.
                let Ok(new) = ChangeKind::name_below(from, to, old) else { return false };
                state.gone.remove(&new);
                let (gone, wanted) = (state.gone.remove(old), self.globs.matches(&new));
                let here = !gone && self.globs.matches(old);
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
        let dbs = match &work {
            Work::Apply(change) => databases(change),
            Work::Resync(dbs, _) => dbs.clone(),
        };
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
            overflow(state);
        }
        self.moved.notify_all();
    }

    /// A new lane, or the shortest one where there are many.
    fn choose(&self, state: &mut State) -> u64 {
        if state.lanes.len() >= LANES_MAX
            && let Some((number, _)) = state.lanes.iter().min_by_key(|(_, lane)| lane.bytes)
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
        let waiting = state.lanes.values().filter_map(Lane::lowest).min();
        let before = |index: LogIndex| LogIndex::new(index.get().saturating_sub(1));
        let applied = waiting.map_or(state.cursor, |index| before(index).min(state.cursor));
        let shippable =
            state.missing.keys().next().map_or(state.cursor, |index| before(*index).min(state.cursor));
        self.log.publish(shippable);
        if applied > state.reported {
            state.reported = applied;
            self.target.applied(applied);
            self.acks.send_replace(applied);
            self.status.send_modify(|status| {
                status.applied = applied;
                status.compare();
            });
        }
    }
}

/// The longest lane gives up its entries: its databases are to be fetched by difference instead.
fn overflow(state: &mut State) {
    let Some(lane) = state.lanes.values_mut().max_by_key(|lane| lane.bytes) else { return };
    let (Some(first), Some(last)) = (lane.queue.front(), lane.queue.back()) else { return };
    let (first, last) = (first.index, last.index);
    let mut dbs: Vec<DbName> = Vec::new();
    for item in lane.queue.drain(..) {
        state.missing.remove(&item.index);
        match item.work {
            Work::Apply(change) => dbs.extend(databases(&change)),
            Work::Resync(more, _) => dbs.extend(more),
        }
    }
    dbs.sort();
    dbs.dedup();
    tracing::warn!(databases = dbs.len(), from = %first, to = %last, "too much waits for slow databases; fetching the difference later");
    state.bytes -= lane.bytes;
    lane.bytes = ITEM_OVERHEAD;
    state.bytes += ITEM_OVERHEAD;
    let work = Work::Resync(dbs, last);
    // It waits for no other lane: what those still apply is older, and skipped.
    lane.queue.push_back(Item { index: first, work, bytes: ITEM_OVERHEAD, after: Vec::new() });
}

/// The databases an entry concerns. Directories have an order among themselves as well: the first component of their
/// paths stands for them.
fn databases(change: &Change) -> Vec<DbName> {
    let top = |path: &DbName| {
        let first = path.as_str().split('/').next().unwrap_or(path.as_str());
        DbName::new(first).unwrap_or_else(|_| path.clone())
    };
    match &change.kind {
        ChangeKind::Create { name, .. } => vec![name.clone()],
        ChangeKind::SetAttributes { path: MountPath::Database(name), .. } => vec![name.clone()],
        ChangeKind::SetAttributes { path: MountPath::Root, .. } => Vec::new(),
        ChangeKind::SetAttributes { path: MountPath::Directory(path), .. }
        | ChangeKind::MakeDirectory { path, .. }
        | ChangeKind::RemoveDirectory(path) => vec![top(path)],
        ChangeKind::RenameDirectory { from, to, databases } => {
            let renamed = databases.iter().filter_map(|old| ChangeKind::name_below(from, to, old).ok());
            renamed.chain(databases.iter().cloned()).chain([top(from), top(to)]).collect()
        }
        ChangeKind::Commit(sets) => sets.iter().map(|set| set.db.clone()).collect(),
        ChangeKind::Drop(db) => vec![db.clone()],
        ChangeKind::Rename { from, to } => vec![from.clone(), to.clone()],
    }
}
