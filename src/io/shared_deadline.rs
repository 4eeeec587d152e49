//! A deadline that two processes share: one puts it off, the other acts once when it has passed.
//!
//! A process that is stopped (SIGSTOP, a debugger) or starved cannot see to it that what it allows others ends in time. So
//! another one waits for the same moment. Both may be late, and neither may be interrupted in the middle: the deadline is
//! one word in shared memory, changed by compare-and-swap. Once it is taken it cannot be put off any more, until whoever
//! put it off has seen that and gives it back.
//!
//! Layout of the shared page, words of 8 bytes in the machine's order: 0 the deadline, in nanoseconds of CLOCK_MONOTONIC
//! (0 none, 2^64-1 taken, 2^64-2 given back); 1 whether the other process is acting; 2 when it had acted first.

use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mlock, mmap, munmap};
use nix::time::{ClockId, clock_gettime};

/// Size of the shared memory: a page.
const BYTES: usize = 4096;
/// No deadline.
const NONE: u64 = 0;
/// The deadline has passed, and is acted on.
const TAKEN: u64 = u64::MAX;
/// It was given back, and the other process may still be in the middle of acting.
const RETURNED: u64 = u64::MAX - 1;

/// Where the words are.
const UNTIL: usize = 0;
const ACTING: usize = 1;
const ACTED_AT: usize = 2;

/// The deadline. Waits for nothing, and allocates nothing but where it is made.
#[derive(Debug)]
pub struct SharedDeadline {
    page: NonNull<u64>,
    memory: File,
    /// An eventfd: readable when a deadline is set where there was none.
    set: File,
}

// SAFETY: the page is only accessed through atomics, and is unmapped when the only owner is dropped.
unsafe impl Send for SharedDeadline {}
// SAFETY: as above.
unsafe impl Sync for SharedDeadline {}

/// Nanoseconds of CLOCK_MONOTONIC, which all processes of the machine share.
///
/// # Errors
/// Where the kernel does not tell.
fn monotonic() -> io::Result<u64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    u64::try_from(now.as_nanos()).map_err(io::Error::other)
}

impl SharedDeadline {
    /// Without a deadline.
    ///
    /// # Errors
    /// Where there is no memory, or no descriptor is left.
    pub fn create() -> io::Result<Self> {
        let memory = File::from(memfd_create(c"skein-deadline", MFdFlags::MFD_CLOEXEC)?);
        memory.set_len(BYTES as u64)?;
        let set = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Self::open(memory, File::from(OwnedFd::from(set)))
    }

    /// The deadline in `memory`, which is that of another process.
    ///
    /// # Errors
    /// Where it cannot be mapped, or is too small.
    pub fn open(memory: File, set: File) -> io::Result<Self> {
        if memory.metadata()?.len() < BYTES as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length = NonZeroUsize::new(BYTES).expect("a page has bytes");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new shared mapping at an address the kernel chooses aliases nothing of ours; the file covers it, and
        // neither process makes it shorter.
        let page = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &memory, 0) }?;
        // SAFETY: the range was just mapped. Without page faults nothing is waited for; failing is harmless.
        let _ = unsafe { mlock(page, BYTES) };
        Ok(Self { page: page.cast(), memory, set })
    }

    /// What the other process opens it with, in the order of [`open`](Self::open).
    pub fn files(&self) -> [&File; 2] {
        [&self.memory, &self.set]
    }

    fn word(&self, which: usize) -> &AtomicU64 {
        assert!(which < BYTES / 8, "word inside the page");
        // SAFETY: inside the mapping by the assertion, aligned because mappings are, valid until `self` is dropped, and
        // only accessed as an atomic.
        unsafe { AtomicU64::from_ptr(self.page.as_ptr().add(which)) }
    }

    /// Puts the deadline off until `left` from now; `None`: there is none. Says whether that was possible: one that is taken
    /// has to be given back first.
    pub fn set(&self, left: Option<Duration>) -> bool {
        let until = Self::after(left);
        let word = self.word(UNTIL);
        let mut known = word.load(Ordering::SeqCst);
        loop {
            if known >= RETURNED {
                return false;
            }
            match word.compare_exchange(known, until, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => break,
                Err(now) => known = now,
            }
        }
        if known == NONE && until != NONE {
            self.ring();
        }
        true
    }

    fn after(left: Option<Duration>) -> u64 {
        let Some(left) = left else { return NONE };
        let left = u64::try_from(left.as_nanos()).unwrap_or(TAKEN);
        // Without a clock the deadline is in the past: better too early than never.
        monotonic().unwrap_or_default().saturating_add(left).clamp(NONE + 1, RETURNED - 1)
    }

    /// Whether the other process has taken it, and it is not given back entirely.
    pub fn is_taken(&self) -> bool {
        self.word(UNTIL).load(Ordering::SeqCst) >= RETURNED
    }

    /// How long ago the other process, which has taken it, had acted everywhere where it could; `None` before.
    pub fn acted_since(&self) -> Option<Duration> {
        let at = self.word(ACTED_AT).load(Ordering::SeqCst);
        (at != 0).then(|| Duration::from_nanos(monotonic().unwrap_or(at).saturating_sub(at)))
    }

    /// Takes it back from the other process, which has acted or is at it. Says whether that is done: it does nothing more
    /// then, and there is no deadline. Otherwise it is in the middle of acting, and this is to be called again.
    pub fn give_back(&self) -> bool {
        self.word(UNTIL).store(RETURNED, Ordering::SeqCst);
        // Either it sees that before it acts, or this sees that it acts: both are sequentially consistent.
        if self.word(ACTING).load(Ordering::SeqCst) != 0 {
            return false;
        }
        self.word(ACTED_AT).store(0, Ordering::SeqCst);
        self.word(UNTIL).store(NONE, Ordering::SeqCst);
        self.ring();
        true
    }

    fn ring(&self) {
        // A counter that is full says the same.
        let _ = (&self.set).write(&1u64.to_ne_bytes());
    }

    /// The other process is gone, whatever it was doing.
    pub fn other_is_gone(&self) {
        self.word(ACTING).store(0, Ordering::SeqCst);
    }

    /// For the other process: how long it may sleep; `None` where there is no deadline, or where it is taken.
    pub fn left(&self) -> Option<Duration> {
        match self.word(UNTIL).load(Ordering::SeqCst) {
            NONE | TAKEN | RETURNED => None,
            until => Some(Duration::from_nanos(until.saturating_sub(monotonic().unwrap_or(until)))),
        }
    }

    /// For the other process: takes it where it has passed; says whether it is taken.
    pub fn take(&self) -> bool {
        let word = self.word(UNTIL);
        let known = word.load(Ordering::SeqCst);
        match known {
            NONE | RETURNED => false,
            TAKEN => true,
            until if monotonic().is_ok_and(|now| now < until) => false,
            _ => word.compare_exchange(known, TAKEN, Ordering::SeqCst, Ordering::SeqCst).is_ok(),
        }
    }

    /// For the other process: acts, unless it was given back. `act` waits for nothing, and is told again later as long as it
    /// is taken.
    pub fn act(&self, act: impl FnOnce()) {
        self.word(ACTING).store(1, Ordering::SeqCst);
        if self.word(UNTIL).load(Ordering::SeqCst) == TAKEN {
            act();
            let now = monotonic().unwrap_or(1);
            let _ = self.word(ACTED_AT).compare_exchange(0, now, Ordering::SeqCst, Ordering::SeqCst);
        }
        self.word(ACTING).store(0, Ordering::SeqCst);
    }

    /// For the other process: readable when a deadline was set where there was none.
    pub fn when_set(&self) -> BorrowedFd<'_> {
        self.set.as_fd()
    }

    /// For the other process: has heard of it.
    pub fn heard(&self) {
        // Nothing there is nothing to be heard.
        let _ = (&self.set).read(&mut [0; 8]);
    }
}

impl Drop for SharedDeadline {
    fn drop(&mut self) {
        // SAFETY: exactly the range that was mapped, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.page.cast(), BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn pair() -> (SharedDeadline, SharedDeadline) {
        let ours = SharedDeadline::create().unwrap();
        let [memory, set] = ours.files().map(|file| file.try_clone().unwrap());
        let theirs = SharedDeadline::open(memory, set).unwrap();
        (ours, theirs)
    }

    #[test]
    fn it_is_taken_when_it_has_passed_and_not_put_off_then() {
        let (ours, theirs) = pair();
        assert!(!theirs.take() && theirs.left().is_none(), "there is none");
        assert!(ours.set(Some(Duration::from_secs(60))));
        assert!(!theirs.take() && theirs.left().unwrap() > Duration::from_secs(50));
        assert!(ours.set(Some(Duration::ZERO)));
        assert!(theirs.take() && theirs.take() && ours.is_taken());
        assert!(!ours.set(Some(Duration::from_secs(60))), "too late");
        let mut acted = 0;
        theirs.act(|| acted += 1);
        assert!(acted == 1 && ours.acted_since().is_some());
        assert!(ours.give_back());
        assert!(!ours.is_taken() && !theirs.take() && ours.acted_since().is_none());
        theirs.act(|| acted += 1);
        assert_eq!(acted, 1, "it was given back");
        assert!(ours.set(None) && theirs.left().is_none());
    }

    #[test]
    fn nothing_is_done_any_more_after_it_was_given_back() {
        let (ours, theirs) = pair();
        let (allowed, over) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    if theirs.take() {
                        theirs
                            .act(|| assert!(allowed.load(Ordering::SeqCst), "acts after it was given back"));
                    }
                }
            });
            for _ in 0..2000 {
                allowed.store(true, Ordering::SeqCst);
                assert!(ours.set(Some(Duration::ZERO)));
                while !ours.is_taken() {
                    std::hint::spin_loop();
                }
                while !ours.give_back() {
                    assert!(!ours.set(Some(Duration::ZERO)), "it is not given back yet");
                }
                allowed.store(false, Ordering::SeqCst);
            }
            over.store(true, Ordering::SeqCst);
        });
    }

    #[test]
    fn who_is_gone_in_the_middle_acts_no_more() {
        let (ours, _theirs) = pair();
        ours.word(ACTING).store(1, Ordering::SeqCst);
        ours.word(UNTIL).store(TAKEN, Ordering::SeqCst);
        assert!(!ours.give_back() && ours.is_taken());
        ours.other_is_gone();
        assert!(ours.give_back() && !ours.is_taken());
    }

    #[test]
    fn memory_that_is_too_small_is_refused() {
        let memory = File::from(memfd_create(c"small", MFdFlags::MFD_CLOEXEC).unwrap());
        let set = File::open("/dev/null").unwrap();
        assert!(SharedDeadline::open(memory, set).is_err());
    }
}
