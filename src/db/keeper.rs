//! Fences that outlive the daemon: another process holds the open file whose locks they are.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Holds a fence's open file for as long as applications may use a mount whose daemon has died or ended, with SQLite's
/// write lock on it: nobody writes what no log captures.
pub trait FenceKeeper: Send + Sync + 'static {
    /// Takes a duplicate of `work`, an open file of `-shm`, under a number of its own.
    ///
    /// # Errors
    /// Where it cannot be passed on; the database then has no fence when the daemon is gone.
    fn keep(&self, number: u64, work: &File) -> io::Result<()>;

    /// Gives it up: the daemon has let go of the database in order.
    fn give_up(&self, number: u64);
}

/// A fence that is kept; given up when dropped.
pub(super) struct KeptFence {
    keeper: Arc<dyn FenceKeeper>,
    number: u64,
}

impl KeptFence {
    /// Has the fence kept.
    ///
    /// # Errors
    /// Those of [`FenceKeeper::keep`].
    pub fn new(keeper: &Arc<dyn FenceKeeper>, work: &File) -> io::Result<Self> {
        static DRAWN: AtomicU64 = AtomicU64::new(0);
        let number = DRAWN.fetch_add(1, Ordering::Relaxed);
        keeper.keep(number, work)?;
        Ok(Self { keeper: keeper.clone(), number })
    }

    /// Leaves it kept for good.
    pub fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for KeptFence {
    fn drop(&mut self) {
        self.keeper.give_up(self.number);
    }
}
