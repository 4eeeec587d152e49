//! What all parts of one simulation share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio_util::sync::CancellationToken;

use super::databases::SimTarget;
use super::history::History;
use super::links::Links;
use crate::raft::RaftNode;
use crate::raft::handle::RaftHandle;
use crate::store::Store;

/// A node that runs.
pub struct Live {
    pub id: u64,
    /// Which run of the node this is, from 1.
    pub run: u64,
    /// Its data directory.
    pub dir: PathBuf,
    pub raft: Arc<RaftNode>,
    pub store: Arc<Store>,
    pub target: Arc<SimTarget>,
    pub stop: CancellationToken,
    /// Fenced for a planned move of the primary.
    pub handing_over: AtomicBool,
}

/// A node, running or not.
#[derive(Default)]
struct Seat {
    run: u64,
    /// Being started or running; false from the moment it crashes.
    up: bool,
    live: Option<Arc<Live>>,
}

/// One simulation.
pub struct World {
    pub root: PathBuf,
    /// Drives what of the product insists on real time and threads; the simulation stands still meanwhile.
    pub aside: tokio::runtime::Handle,
    began: tokio::time::Instant,
    seats: Mutex<Vec<Seat>>,
    links: Mutex<Links>,
    history: Mutex<History>,
    trace: Mutex<String>,
    broken: Mutex<Option<String>>,
    messages: AtomicU64,
    /// All nodes vote.
    pub founded: AtomicBool,
    /// An operator is at work on the members.
    pub changing: AtomicBool,
    /// The simulation ends.
    pub over: AtomicBool,
    /// Applications have stopped.
    pub quiet: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl World {
    /// A world of `nodes` nodes that do not run yet.
    pub fn new(root: PathBuf, nodes: u64, aside: tokio::runtime::Handle) -> Arc<Self> {
        Arc::new(Self {
            root,
            aside,
            began: tokio::time::Instant::now(),
            seats: Mutex::new((0..nodes).map(|_| Seat::default()).collect()),
            links: Mutex::default(),
            history: Mutex::default(),
            trace: Mutex::default(),
            broken: Mutex::default(),
            messages: AtomicU64::new(0),
            founded: AtomicBool::new(false),
            changing: AtomicBool::new(false),
            over: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
        })
    }

    pub fn links(&self) -> MutexGuard<'_, Links> {
        lock(&self.links)
    }

    pub fn history(&self) -> MutexGuard<'_, History> {
        lock(&self.history)
    }

    // ---- nodes

    /// Numbers of all nodes.
    pub fn nodes(&self) -> Vec<u64> {
        (1..=lock(&self.seats).len() as u64).collect()
    }

    fn seat<T>(&self, id: u64, work: impl FnOnce(&mut Seat) -> T) -> T {
        work(&mut lock(&self.seats)[id as usize - 1])
    }

    /// Begins a run of a node; returns its number.
    pub fn begin_run(&self, id: u64) -> u64 {
        self.seat(id, |seat| {
            seat.run += 1;
            seat.up = true;
            seat.run
        })
    }

    /// The node is reachable from now on, unless it crashed while it was starting.
    pub fn enter(&self, live: Arc<Live>) {
        self.seat(live.id, |seat| {
            if seat.up && seat.run == live.run {
                seat.live = Some(live);
            }
        });
    }

    /// The node is dead from now on.
    pub fn leave(&self, id: u64) -> Option<Arc<Live>> {
        self.seat(id, |seat| {
            let live = seat.live.take()?;
            seat.up = false;
            Some(live)
        })
    }

    /// Whether that run of the node has not ended.
    pub fn runs(&self, id: u64, run: u64) -> bool {
        self.seat(id, |seat| seat.up && seat.run == run)
    }

    /// The run whose files are the node's: the next one where it does not run.
    pub fn run_on_disk(&self, id: u64) -> u64 {
        self.seat(id, |seat| if seat.up { seat.run } else { seat.run + 1 })
    }

    /// The node, where it runs.
    pub fn live(&self, id: u64) -> Option<Arc<Live>> {
        self.seat(id, |seat| seat.live.clone())
    }

    /// All nodes that run.
    pub fn all_live(&self) -> Vec<Arc<Live>> {
        self.nodes().into_iter().filter_map(|id| self.live(id)).collect()
    }

    /// Nodes that neither run nor are being started.
    pub fn dead(&self) -> Vec<u64> {
        self.nodes().into_iter().filter(|id| self.seat(*id, |seat| !seat.up)).collect()
    }

    /// The node's Raft and its run.
    pub fn raft_of(&self, id: u64) -> Option<(RaftHandle, u64)> {
        self.live(id).map(|live| (live.raft.raft.clone(), live.run))
    }

    // ---- what is told

    /// Milliseconds of simulated time.
    pub fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Writes a line of the trace.
    pub fn note(&self, line: impl std::fmt::Display) {
        let line = format!("{:>7} {line}\n", self.now_ms());
        // Its name is drawn anew for each run.
        let line = line.replace(&self.root.display().to_string(), "");
        if super::is_loud() {
            eprint!("{line}");
        }
        lock(&self.trace).push_str(&line);
    }

    /// Counts a message: their sum in the trace shows the first difference between two runs.
    pub fn count_message(&self, what: &str, from: u64, to: u64) {
        let word = format!("{}{what}{from}{to}{}", self.now_ms(), self.messages.load(Ordering::Relaxed));
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64GoIso, word.as_bytes());
        self.messages.store(sum, Ordering::Relaxed);
    }

    /// A number that depends on all messages so far.
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// An invariant does not hold.
    pub fn broken(&self, what: impl std::fmt::Display) {
        let mut broken = lock(&self.broken);
        if broken.is_none() {
            self.note(format!("BROKEN {what}"));
            *broken = Some(format!("at {} ms: {what}", self.now_ms()));
        }
    }

    /// Reports what does not hold.
    pub fn check(&self, checked: Result<(), String>) {
        if let Err(what) = checked {
            self.broken(what);
        }
    }

    /// The first invariant that did not hold.
    pub fn verdict(&self) -> Option<String> {
        lock(&self.broken).clone()
    }

    /// The trace so far.
    pub fn trace(&self) -> String {
        lock(&self.trace).clone()
    }
}
