//! Until when the applications of this node may write, and the thread that ends their writing at that moment.
//!
//! A primary that no quorum answers must have stopped writing before another node can be primary. Raft's thread says how
//! long it may go on; the thread started here raises the fence when that time is over. It waits for nobody: it only tries
//! locks, and only such as nobody holds while he waits for a file, for an application or for the network. It allocates
//! nothing before the fence is up.
//!
//! Where the whole process is stopped, that thread is, too, and applications would go on: the kernel serves their writes. So
//! the process that guards the mount has the same deadline in shared memory, a little later, and takes the same locks through
//! duplicates of the same open files. This process, once it runs again, raises the fence itself before it goes on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::shared::Shared;
use super::wal_locks::WalLocks;
use crate::io::{SharedDeadline, watchdog};
use crate::types::Access;

/// Time after which a lock that was not to be had is tried again.
const RETRY: Duration = Duration::from_micros(200);
/// How long the thread sleeps where nothing is due: then it looks whether it is still needed.
const IDLE: Duration = Duration::from_secs(1);
/// How much later than this process the guard raises the fence: only where this process does not. Less than what is left
/// of a lease for fencing.
const GUARD_AFTER: Duration = Duration::from_millis(10);
/// `until` of a lease without end.
const WITHOUT_END: u64 = u64::MAX;

/// How long this node may be primary without hearing more, as Raft's thread says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lease {
    /// It does not lead, or no quorum has answered it.
    None,
    /// It leads in `term`, and is the only voter.
    Forever {
        /// The term it leads in.
        term: u64,
    },
    /// It leads in `term`.
    Until {
        /// The term it leads in.
        term: u64,
        /// The moment from which on others may elect another one, less what fencing may take.
        until: Instant,
    },
}

/// The lease of a node, and the locks that end with it.
pub struct WriteLease {
    started: Instant,
    /// The end of the lease in nanoseconds after `started`.
    until: AtomicU64,
    /// The term of the lease; 0 where this node does not lead.
    term: AtomicU64,
    /// The term in which applications were last let write; 0 where what they wrote then is settled.
    written_in: AtomicU64,
    /// The write locks of all databases that applications have open in WAL mode.
    locks: Mutex<Vec<WalLocks>>,
    /// A thread of this node is stuck: where another one can be primary, this is none.
    suspended: AtomicBool,
    /// Applications may write, or the fence is not up everywhere since: the process that guards the mount watches, too.
    guarded: AtomicBool,
    /// What that process knows of the lease.
    deadline: OnceLock<Arc<SharedDeadline>>,
    thread: OnceLock<Thread>,
    ended: OnceLock<Ended>,
}

/// Hears that the fence was raised at the end of a lease: how much later than that it was up wherever no writer was at
/// work. Called on the fence's thread after that.
pub type Ended = Box<dyn Fn(Duration) + Send + Sync>;

/// The write lock of one database as the lease knows it; forgotten when dropped.
pub(super) struct Leased {
    lease: Arc<WriteLease>,
    locks: WalLocks,
}

impl Drop for Leased {
    fn drop(&mut self) {
        let mut all = self.lease.all();
        let at = all.iter().position(|locks| locks.is_same(&self.locks));
        let removed = at.map(|at| all.swap_remove(at));
        drop(all);
        // Closing the file may ask the mount, so not with that lock held.
        drop(removed);
    }
}

impl Default for WriteLease {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            until: AtomicU64::new(0),
            term: AtomicU64::new(0),
            written_in: AtomicU64::new(0),
            locks: Mutex::default(),
            suspended: AtomicBool::new(false),
            guarded: AtomicBool::new(false),
            deadline: OnceLock::new(),
            thread: OnceLock::new(),
            ended: OnceLock::new(),
        }
    }
}

impl WriteLease {
    /// Sets how long this node may be primary. Waits for nothing.
    pub fn set(&self, lease: Lease) {
        let (term, until) = match lease {
            // The end of a lease that was not over yet is now.
            Lease::None => (0, self.until.load(Ordering::SeqCst).min(self.nanos(Instant::now()))),
            Lease::Forever { term } => (term, WITHOUT_END),
            Lease::Until { term, until } => (term, self.nanos(until)),
        };
        self.until.store(until, Ordering::SeqCst);
        self.tell_guard();
        let before = self.term.swap(term, Ordering::SeqCst);
        if before != term {
            self.wake();
        }
    }

    /// Has the process that guards the mount raise the fence, too, should this process be stopped when the lease ends.
    pub fn share(&self, deadline: Arc<SharedDeadline>) {
        let _ = self.deadline.set(deadline);
        self.tell_guard();
    }

    /// Where it has raised the fence already, this process does before it goes on: see [`look`].
    fn tell_guard(&self) {
        if let Some(deadline) = self.deadline.get()
            && !deadline.set(self.guarded_for())
        {
            self.wake();
        }
    }

    /// When the guard is to act; `None` where it is not.
    fn guarded_for(&self) -> Option<Duration> {
        let until = self.until.load(Ordering::SeqCst);
        (until != WITHOUT_END && self.guarded.load(Ordering::SeqCst))
            .then(|| Duration::from_nanos(until.saturating_sub(self.nanos(Instant::now()))) + GUARD_AFTER)
    }

    /// Has the guard watch, too. To be said again once applications may write: a fence that was raised before is over then.
    pub fn guard(&self) {
        self.guarded.store(true, Ordering::SeqCst);
        self.tell_guard();
    }

    /// The fence is up in all databases: there is nothing left for the guard.
    pub fn close(&self) {
        self.guarded.store(false, Ordering::SeqCst);
        self.tell_guard();
    }

    /// Whether the guard has raised the fence.
    fn is_taken_by_guard(&self) -> bool {
        self.deadline.get().is_some_and(|deadline| deadline.is_taken())
    }

    /// By how many nanoseconds the guard's fence was up before now.
    fn guard_was_faster_by(&self) -> u64 {
        let since = self.deadline.get().and_then(|deadline| deadline.acted_since());
        since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or_default())
    }

    /// The fence is up in all databases by this process, too: the guard, if it has raised it, lets this process have it. Says
    /// whether it does nothing more.
    fn relieve_guard(&self, shared: &Shared) -> bool {
        if let Some(deadline) = self.deadline.get()
            && deadline.is_taken()
            && !deadline.give_back()
        {
            return false;
        }
        self.guarded.store(false, Ordering::SeqCst);
        // Entered anew meanwhile.
        if shared.access() == Access::Write {
            self.guarded.store(true, Ordering::SeqCst);
        }
        self.tell_guard();
        true
    }

    fn nanos(&self, at: Instant) -> u64 {
        let after = at.saturating_duration_since(self.started).as_nanos();
        u64::try_from(after).unwrap_or(WITHOUT_END - 1)
    }

    /// Whether the lease has ended.
    pub fn has_ended(&self) -> bool {
        self.left().is_zero()
    }

    /// How long it still lasts.
    fn left(&self) -> Duration {
        let until = self.until.load(Ordering::SeqCst);
        if self.is_taken_by_guard() {
            return Duration::ZERO;
        }
        if until != WITHOUT_END && self.suspended.load(Ordering::SeqCst) {
            return Duration::ZERO;
        }
        Duration::from_nanos(until.saturating_sub(self.nanos(Instant::now())))
    }

    /// Ends the lease before its time, or no more, where others can be primary.
    pub fn suspend(&self, suspended: bool) {
        if self.suspended.swap(suspended, Ordering::SeqCst) != suspended {
            self.wake();
        }
    }

    /// Whether it is ended before its time.
    pub fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::SeqCst) && self.until.load(Ordering::SeqCst) != WITHOUT_END
    }

    /// Applications are about to be let write, in the term of the present lease.
    pub fn begin(&self) {
        self.written_in.store(self.term.load(Ordering::SeqCst), Ordering::SeqCst);
        self.guard();
        self.wake();
    }

    /// What applications wrote is settled: nothing of it can be committed any more.
    pub fn settle(&self) {
        self.written_in.store(0, Ordering::SeqCst);
    }

    /// Whether this node still leads in the term in which applications were last let write: nobody else can have
    /// committed anything since, so what they began then may be committed, although nothing new may be begun.
    pub(super) fn may_finish(&self) -> bool {
        let term = self.written_in.load(Ordering::SeqCst);
        term != 0 && self.term.load(Ordering::SeqCst) == term
    }

    /// Has the write lock of a database end with the lease, until what is returned is dropped. Whether the lease has
    /// ended already is to be asked after that.
    pub(super) fn include(self: &Arc<Self>, locks: &WalLocks) -> Leased {
        self.all().push(locks.clone());
        Leased { lease: self.clone(), locks: locks.clone() }
    }

    fn all(&self) -> MutexGuard<'_, Vec<WalLocks>> {
        self.locks.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wake(&self) {
        self.thread.get().into_iter().for_each(Thread::unpark);
    }

    /// Takes the write locks of all databases as far as they are free; says whether all are had.
    fn fence(&self) -> Fenced {
        // Held by others for as long as it takes to put a lock into the list or out of it.
        let all = match self.locks.try_lock() {
            Ok(all) => all,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Fenced { looked: false, everywhere: false },
        };
        let mut everywhere = true;
        for locks in all.iter() {
            everywhere &= locks.try_end_lease();
        }
        Fenced { looked: true, everywhere }
    }
}

/// What came of an attempt to fence.
struct Fenced {
    /// All databases were looked at.
    looked: bool,
    /// The fence is up in all of them.
    everywhere: bool,
}

/// Starts the thread; it ends when `shared` does. `ended` hears of each fence that it raises.
///
/// # Errors
/// Where no thread can be had.
pub(super) fn start(shared: &Arc<Shared>, ended: Ended) -> std::io::Result<()> {
    let lease = shared.lease().clone();
    let _ = lease.ended.set(ended);
    let shared = Arc::downgrade(shared);
    let thread = std::thread::Builder::new().name("skein-fence".into()).spawn(move || run(&shared))?;
    let _ = lease.thread.set(thread.thread().clone());
    Ok(())
}

fn run(shared: &Weak<Shared>) {
    crate::io::priority::prefer_this_thread();
    let mut raising: Option<Raising> = None;
    let call = watchdog::begin("watching the lease");
    loop {
        call.goes_on();
        let Some(shared) = shared.upgrade() else { return };
        let pause = look(&shared, &mut raising);
        drop(shared);
        std::thread::park_timeout(pause);
    }
}

/// A fence that is not up everywhere yet.
struct Raising {
    /// When the lease ended, in nanoseconds after the start.
    since: u64,
    told: bool,
}

/// Raises the fence where it is due; says when to look again.
fn look(shared: &Shared, raising: &mut Option<Raising>) -> Duration {
    let lease = shared.lease();
    if shared.access() == Access::Write {
        *raising = None;
        let left = lease.left();
        if !left.is_zero() {
            return left.min(IDLE);
        }
        if shared.end_write() {
            *raising = Some(Raising {
                since: lease.until.load(Ordering::SeqCst).min(lease.nanos(Instant::now())),
                told: false,
            });
        }
    }
    if raising.is_none() && lease.is_taken_by_guard() {
        // This process was stopped, or late: what the guard holds locked is this process's from now on.
        *raising = Some(Raising { since: lease.until.load(Ordering::SeqCst), told: false });
    }
    let Some(under_way) = raising else { return IDLE };
    let fenced = lease.fence();
    if fenced.looked && !under_way.told {
        under_way.told = true;
        let up = lease.nanos(Instant::now()).saturating_sub(lease.guard_was_faster_by());
        let late = up.saturating_sub(under_way.since);
        if let Some(ended) = lease.ended.get() {
            ended(Duration::from_nanos(late));
        }
    }
    if fenced.everywhere && lease.relieve_guard(shared) {
        *raising = None;
        return IDLE;
    }
    RETRY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lasts_until_its_end_or_until_it_is_taken_away() {
        let lease = WriteLease::default();
        assert!(lease.has_ended());
        lease.set(Lease::Until { term: 3, until: Instant::now() + Duration::from_secs(60) });
        assert!(!lease.has_ended());
        lease.set(Lease::None);
        assert!(lease.has_ended());
        lease.set(Lease::Forever { term: 4 });
        assert!(!lease.has_ended());
        lease.set(Lease::Until { term: 4, until: Instant::now() });
        assert!(lease.has_ended());
    }

    #[test]
    fn what_was_begun_may_be_finished_in_the_same_term_only() {
        let lease = WriteLease::default();
        lease.set(Lease::Forever { term: 3 });
        assert!(!lease.may_finish(), "applications have written nothing yet");
        lease.begin();
        assert!(lease.may_finish());
        lease.set(Lease::Until { term: 3, until: Instant::now() });
        assert!(lease.has_ended() && lease.may_finish());
        lease.set(Lease::None);
        assert!(!lease.may_finish());
        lease.set(Lease::Forever { term: 5 });
        assert!(!lease.may_finish(), "another leader may have been there in between");
        lease.begin();
        lease.settle();
        assert!(!lease.may_finish());
    }
}
