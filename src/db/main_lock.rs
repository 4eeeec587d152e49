//! SQLite's SHARED lock on the database file, as the daemon holds it beside applications.
//!
//! On the primary the daemon lets go of it between its own changes: the last application to close then is the last
//! connection, which moves the WAL into the database file and removes it, and a connection can leave WAL mode or take
//! the file for itself. Who does so works without the locks of the wal-index, so whatever the daemon changes in
//! `-wal`, `-shm` or the database file needs this lock for that time. A node that applies the log keeps it.
//! Source: `wal.c`, sqlite3WalClose(); `pager.c`, pagerExclusiveLock().

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::io::ofd_lock::{LockKind, is_taken, try_lock, unlock};
use crate::sqlite::lock_bytes;

/// The SHARED lock of one open file; counted, because several users of the file have it in common.
#[derive(Clone)]
pub(super) struct MainLock(Arc<Counted>);

struct Counted {
    file: File,
    holders: Mutex<u32>,
}

/// One use of the lock; given back when dropped.
pub(super) struct HeldMainLock(Arc<Counted>);

impl MainLock {
    /// Nobody holds it yet; `file` is the database file through the mount.
    pub fn new(file: File) -> Self {
        Self(Arc::new(Counted { file, holders: Mutex::new(0) }))
    }

    /// Takes it; `None` where an application has the file for itself.
    ///
    /// # Errors
    /// Where locking fails.
    pub fn try_hold(&self) -> io::Result<Option<HeldMainLock>> {
        let mut holders = self.0.holders();
        let (first, size) = (lock_bytes::SHARED_FIRST, lock_bytes::SHARED_SIZE);
        if *holders == 0 && !try_lock(&self.0.file, LockKind::Shared, first, size)? {
            return Ok(None);
        }
        *holders += 1;
        Ok(Some(HeldMainLock(self.0.clone())))
    }

    /// Whether an application has the database file for itself: it holds SQLite's EXCLUSIVE lock.
    ///
    /// # Errors
    /// Where the lock cannot be asked for.
    pub fn is_exclusive(&self) -> io::Result<bool> {
        is_taken(&self.0.file, LockKind::Shared, lock_bytes::SHARED_FIRST, lock_bytes::SHARED_SIZE)
    }
}

impl Counted {
    fn holders(&self) -> MutexGuard<'_, u32> {
        self.holders.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for HeldMainLock {
    fn drop(&mut self) {
        let mut holders = self.0.holders();
        *holders = holders.saturating_sub(1);
        if *holders == 0
            && let Err(error) = unlock(&self.0.file, lock_bytes::SHARED_FIRST, lock_bytes::SHARED_SIZE)
        {
            tracing::error!(%error, "cannot release the lock of a database file");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_stays_until_its_last_user_has_given_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("database");
        std::fs::write(&path, b"").unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let (ours, theirs) = (MainLock::new(open()), open());
        let exclusive =
            || try_lock(&theirs, LockKind::Exclusive, lock_bytes::SHARED_FIRST, lock_bytes::SHARED_SIZE);
        let one = ours.try_hold().unwrap().unwrap();
        let two = ours.try_hold().unwrap().unwrap();
        drop(one);
        assert!(!exclusive().unwrap());
        drop(two);
        assert!(exclusive().unwrap() && ours.is_exclusive().unwrap());
        assert!(ours.try_hold().unwrap().is_none());
    }
}
