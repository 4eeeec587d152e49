//! Which processes use the write-ahead log of a database, and so are SQLite.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

/// Processes that have opened `-wal` or `-shm` since the database was last closed by all; 0 stands for those of other process
/// namespaces.
#[derive(Debug, Default)]
pub(super) struct LogUsers(Mutex<BTreeSet<u32>>);

impl LogUsers {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// This one opens the log.
    pub fn add(&self, process: u32) {
        self.lock().insert(process);
    }

    /// Whether it has.
    pub fn has(&self, process: u32) -> bool {
        self.lock().contains(&process)
    }

    /// Nobody has the database open any more.
    pub fn forget(&self) {
        self.lock().clear();
    }
}
