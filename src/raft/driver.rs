//! Which thread drives Raft's runtime: its own, or, where this node is the only voter, the one that waits for a commit.
//!
//! A commit whose proposal wakes Raft's thread costs two wakeups more than one that is appended, synced and applied by the
//! thread that proposed it; between CPUs a wakeup takes as long as the sync itself. With one voter there is nobody to wait
//! for but the disk. So a thread that proposes, and can wait, lends itself to Raft ([`Driver::drive`]): Raft's own thread
//! stays outside the runtime meanwhile, and for a moment after, and comes back when nobody drives any more. What others propose meanwhile
//! is decided by whoever drives, and shares its sync.
//!
//! With more voters Raft's thread stays inside: answers of the others have to be taken as they come.

use std::cell::Cell;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Runtime};
use tokio::sync::Notify;

use super::log_store::StoreShared;
use super::pending::Pending;
use crate::io::watchdog;

/// How long Raft's thread stays outside after the last thread that drove in its place: what else the runtime has to do
/// (timers, sockets) is late by as much.
const OUTSIDE_MAX: Duration = Duration::from_millis(5);

thread_local! {
    /// Whether this thread comes to drive after it has proposed.
    static DRIVES: Cell<bool> = const { Cell::new(false) };
    /// Whether it has proposed since it last came.
    static PROPOSED: Cell<bool> = const { Cell::new(false) };
}

/// Raft's runtime, and who drives it.
pub(super) struct Driver {
    /// `None` once Raft has ended.
    runtime: RwLock<Option<Runtime>>,
    work: OnceLock<Work>,
    /// Raft's own thread is not in the runtime.
    outside: AtomicBool,
    /// A thread drives in its place.
    driven: AtomicBool,
    /// Asks Raft's thread to leave the runtime.
    leave: Notify,
    last: Mutex<Instant>,
    own: OnceLock<Thread>,
}

/// What tells whether there is something to do, and who may do it.
struct Work {
    pending: Arc<Pending>,
    store: Arc<StoreShared>,
}

impl Driver {
    pub fn new(runtime: Runtime) -> Self {
        Self {
            runtime: RwLock::new(Some(runtime)),
            work: OnceLock::new(),
            outside: AtomicBool::new(false),
            driven: AtomicBool::new(false),
            leave: Notify::new(),
            last: Mutex::new(Instant::now()),
            own: OnceLock::new(),
        }
    }

    /// From here on other threads may drive.
    pub fn lend(&self, pending: Arc<Pending>, store: Arc<StoreShared>) {
        let _ = self.work.set(Work { pending, store });
    }

    /// Runs `life` to its end, and ends what else runs on the runtime; on Raft's own thread.
    pub fn run(&self, life: impl Future<Output = ()>) {
        let _ = self.own.set(std::thread::current());
        let mut life = std::pin::pin!(life);
        loop {
            let ended = self.block_on(async {
                tokio::select! {
                    biased;
                    () = &mut life => true,
                    () = self.asked_to_leave() => false,
                }
            });
            if ended.unwrap_or(true) {
                break;
            }
            *self.last() = Instant::now();
            self.outside.store(true, Ordering::SeqCst);
            self.stay_outside();
            self.outside.store(false, Ordering::SeqCst);
        }
        // Whoever drives leaves: nothing is pending any more.
        let runtime = self.runtime.write().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        drop(runtime);
    }

    /// `None` where Raft has ended.
    fn block_on<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let runtime = self.runtime.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        runtime.as_ref().map(|runtime| runtime.block_on(future))
    }

    /// Returns when another thread has asked for it and nothing is to be decided.
    async fn asked_to_leave(&self) {
        self.leave.notified().await;
        if let Some(work) = self.work.get() {
            work.pending.emptied().await;
        }
    }

    /// Returns when nobody has driven for a while, or something is to be done that nobody drives.
    fn stay_outside(&self) {
        loop {
            if !self.driven.load(Ordering::SeqCst)
                && (self.is_busy() || self.last().elapsed() >= OUTSIDE_MAX || !self.may_be_driven())
            {
                return;
            }
            std::thread::park_timeout(OUTSIDE_MAX);
        }
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Instant> {
        self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn is_busy(&self) -> bool {
        self.work.get().is_some_and(|work| !work.pending.is_empty())
    }

    fn may_be_driven(&self) -> bool {
        self.work.get().is_some_and(|work| work.store.syncs_at_once())
    }

    /// This thread has proposed something: Raft's thread is told unless this one comes to drive.
    pub fn note_proposal(&self) {
        PROPOSED.set(true);
        if !DRIVES.get() && self.outside.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(own) = self.own.get() {
            own.unpark();
        }
    }

    /// Where this thread has proposed something since it last came, drives Raft until all proposals are decided. Returns
    /// at once where another thread sees to that.
    pub fn drive(&self) {
        DRIVES.set(true);
        if !PROPOSED.take() {
            return;
        }
        let Some(work) = self.work.get() else { return };
        // A runtime's own thread may not wait.
        if Handle::try_current().is_ok() {
            return self.wake();
        }
        while !work.pending.is_empty() {
            if !self.may_be_driven() {
                return self.wake();
            }
            if !self.outside.load(Ordering::SeqCst) {
                // Its own thread does this one, and leaves for the next.
                return self.leave.notify_one();
            }
            if self.driven.swap(true, Ordering::SeqCst) {
                return;
            }
            let call = watchdog::begin("running Raft for a commit");
            let driven = self.block_on(work.pending.emptied());
            drop(call);
            *self.last() = Instant::now();
            // Whoever proposed in between and did not get the turn is seen by the next look.
            self.driven.store(false, Ordering::SeqCst);
            if driven.is_none() {
                return;
            }
        }
    }
}
