//! Which super-journals are on this mount.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::sync::{Mutex, MutexGuard};

/// Names, without their directories, of the super-journals that exist on the mount. They are random and hold the name of
/// their main database.
#[derive(Debug, Default)]
pub struct SuperJournals(Mutex<HashSet<OsString>>);

impl SuperJournals {
    /// One was made.
    pub fn made(&self, name: &OsStr) {
        self.lock().insert(name.to_owned());
    }

    /// One was removed.
    pub fn removed(&self, name: &OsStr) {
        self.lock().remove(name);
    }

    /// Whether there is one of that name.
    pub fn contains(&self, name: &OsStr) -> bool {
        self.lock().contains(name)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<OsString>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
