//! What must be seen to when the daemon dies: another process holds the open files for it.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is to be done with an open file when the daemon has died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AfterDeath {
    /// A `-shm`: SQLite's write lock is held on it for as long as applications may use the mount, also of a daemon that
    /// has ended, so that nobody writes what no log captures.
    Fence,
    /// A database file whose uncommitted pages may be in the kernel's cache: it is emptied before applications hear of
    /// the death, because they do not find the journal any more that would take the pages back.
    Cached,
}

/// Holds open files for the time when the daemon is gone.
pub trait MountGuard: Send + Sync + 'static {
    /// Takes a duplicate of `file` under a number of its own.
    ///
    /// # Errors
    /// Where it cannot be passed on; nobody sees to the database then when the daemon is gone.
    fn keep(&self, number: u64, legacy: AfterDeath, file: &File) -> io::Result<()>;

    /// Gives it up: the daemon has let go of the database in order.
    fn give_up(&self, number: u64);
}

/// A file that is kept; given up when dropped.
pub(super) struct GuardedFile {
    guard: Arc<dyn MountGuard>,
    number: u64,
}

impl GuardedFile {
    /// Has the file kept.
    ///
    /// # Errors
    /// Those of [`MountGuard::keep`].
    pub fn new(guard: &Arc<dyn MountGuard>, legacy: AfterDeath, file: &File) -> io::Result<Self> {
        static DRAWN: AtomicU64 = AtomicU64::new(0);
        let number = DRAWN.fetch_add(1, Ordering::Relaxed);
        guard.keep(number, legacy, file)?;
        Ok(Self { guard: guard.clone(), number })
    }

    /// Leaves it kept for good.
    pub fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for GuardedFile {
    fn drop(&mut self) {
        self.guard.give_up(self.number);
    }
}
