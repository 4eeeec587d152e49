//! The daemon's own exclusive locks on the lock bytes of one wal-index, counted.
//!
//! An open-file-description lock belongs to the open file, so all threads of the daemon that share one share its
//! locks: two of them never exclude each other, and an unlock by one is an unlock for all. What the threads do to
//! each other is decided by the database's lock; this type sees to it that a byte is unlocked for the applications only
//! when the last user of it in the daemon has let go.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use crate::io::ofd_lock::{LockKind, is_taken, lock, try_lock, unlock};
use crate::sqlite::lock_bytes;

/// Lock bytes from `WAL_WRITE` up to the last read slot.
const BYTES: usize = (lock_bytes::DMS - lock_bytes::WAL_WRITE) as usize;

/// An open `-shm` and how many users in the daemon each of its lock bytes has.
#[derive(Clone, Debug)]
pub(super) struct WalLocks(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    shm: File,
    users: Mutex<Users>,
}

#[derive(Debug)]
struct Users {
    /// Those that hold a byte, and those that wait for it.
    counts: [u32; BYTES],
    /// One of those of `WAL_WRITE` is the lease that has ended.
    lease_ended: bool,
}

/// A lock on one or more neighbouring bytes; let go when dropped, where nobody else in the daemon uses them.
#[derive(Debug)]
pub(super) struct WalLock {
    locks: WalLocks,
    first: u64,
    count: u64,
}

impl WalLocks {
    /// Locks through `shm`, which no other lock goes through.
    pub fn new(shm: File) -> Self {
        Self(Arc::new(Counted { shm, users: Mutex::new(Users { counts: [0; BYTES], lease_ended: false }) }))
    }

    /// The open file the locks belong to.
    pub fn file(&self) -> &File {
        &self.0.shm
    }

    /// Takes one byte if no application holds it.
    ///
    /// # Errors
    /// Where the file cannot be locked.
    pub fn try_take(&self, byte: u64) -> io::Result<Option<WalLock>> {
        self.try_take_all(byte, 1)
    }

    /// Takes `count` neighbouring bytes from `first` on if no application holds one of them.
    ///
    /// # Errors
    /// Where the file cannot be locked.
    pub fn try_take_all(&self, first: u64, count: u64) -> io::Result<Option<WalLock>> {
        let mut users = self.users();
        if !try_lock(&self.0.shm, LockKind::Exclusive, first, count)? {
            return Ok(None);
        }
        slots(first, count).for_each(|slot| users.counts[slot] += 1);
        Ok(Some(WalLock { locks: self.clone(), first, count }))
    }

    /// Takes one byte; waits for the application that holds it.
    ///
    /// # Errors
    /// Where the file cannot be locked.
    pub fn take(&self, byte: u64) -> io::Result<WalLock> {
        self.take_all(byte, 1)
    }

    /// Takes `count` neighbouring bytes from `first` on; waits for the applications that hold them.
    ///
    /// # Errors
    /// Where the file cannot be locked.
    pub fn take_all(&self, first: u64, count: u64) -> io::Result<WalLock> {
        // Counted before it is had: whoever has it in the daemon and lets go meanwhile must leave it locked, because
        // this call may have been answered on the strength of that lock.
        slots(first, count).for_each(|slot| self.users().counts[slot] += 1);
        let held = WalLock { locks: self.clone(), first, count };
        lock(&self.0.shm, LockKind::Exclusive, first, count)?;
        Ok(held)
    }

    /// Whether an application holds `byte`; takes nothing, so that nobody is refused meanwhile.
    ///
    /// # Errors
    /// Where the file cannot be asked.
    pub fn is_taken(&self, byte: u64) -> io::Result<bool> {
        is_taken(&self.0.shm, LockKind::Exclusive, byte, 1)
    }

    /// Opens the file once more, so that locks of the new one conflict with these. Not by its name: the kernel may hold
    /// the directory locked for an unlink or a rename that waits for this daemon.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn reopen(&self) -> io::Result<File> {
        let path = format!("/proc/self/fd/{}", self.0.shm.as_raw_fd());
        File::options().read(true).write(true).open(path)
    }

    /// Whether both are the locks of the same wal-index.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Lets go of everything, whoever uses it: the file is removed.
    ///
    /// # Errors
    /// Where the file cannot be unlocked.
    pub fn end(&self) -> io::Result<()> {
        unlock(&self.0.shm, lock_bytes::WAL_WRITE, BYTES as u64)
    }

    /// Takes the write lock because the lease of this node has ended, and keeps it until
    /// [`begin_lease`](Self::begin_lease). Waits for nothing and allocates nothing; says whether it is had.
    pub fn try_end_lease(&self) -> bool {
        // Held for as long as a lock that is free is taken or let go, never while one is waited for.
        let mut users = match self.0.users.try_lock() {
            Ok(users) => users,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        if !users.lease_ended
            && matches!(try_lock(&self.0.shm, LockKind::Exclusive, lock_bytes::WAL_WRITE, 1), Ok(true))
        {
            users.counts[0] += 1;
            users.lease_ended = true;
        }
        users.lease_ended
    }

    /// Lets go of what [`try_end_lease`](Self::try_end_lease) keeps, if `still` says that the new lease has not ended: asked
    /// while nobody can end it here.
    ///
    /// # Errors
    /// Where the file cannot be unlocked.
    pub fn begin_lease(&self, still: impl FnOnce() -> bool) -> io::Result<()> {
        let mut users = self.users();
        if !users.lease_ended || !still() {
            return Ok(());
        }
        users.lease_ended = false;
        users.counts[0] = users.counts[0].saturating_sub(1);
        if users.counts[0] == 0 {
            unlock(&self.0.shm, lock_bytes::WAL_WRITE, 1)?;
        }
        Ok(())
    }

    fn users(&self) -> MutexGuard<'_, Users> {
        self.0.users.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl WalLock {
    /// Whether it is a lock of this wal-index.
    pub fn belongs_to(&self, locks: &WalLocks) -> bool {
        self.locks.is_same(locks)
    }

    /// Leaves the bytes locked for as long as a duplicate of the open file exists.
    pub fn leave(self) {
        // One user more than there will ever be, so that nobody is the last.
        let mut users = self.locks.users();
        slots(self.first, self.count).for_each(|slot| users.counts[slot] += 1);
    }
}

impl Drop for WalLock {
    fn drop(&mut self) {
        let mut users = self.locks.users();
        for slot in slots(self.first, self.count) {
            users.counts[slot] = users.counts[slot].saturating_sub(1);
            if users.counts[slot] == 0
                && let Err(error) = unlock(self.locks.file(), lock_bytes::WAL_WRITE + slot as u64, 1)
            {
                tracing::error!(%error, slot, "cannot release a lock of a wal-index");
            }
        }
    }
}

fn slots(first: u64, count: u64) -> impl Iterator<Item = usize> {
    let first =
        first.checked_sub(lock_bytes::WAL_WRITE).expect("lock bytes begin with the write lock") as usize;
    first..first + count as usize
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn opened() -> (tempfile::TempDir, WalLocks, File) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shm");
        std::fs::write(&path, b"").unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let (locks, application) = (WalLocks::new(open()), open());
        (dir, locks, application)
    }

    fn is_free(application: &File, byte: u64) -> bool {
        !is_taken(application, LockKind::Exclusive, byte, 1).unwrap()
    }

    #[test]
    fn a_byte_is_unlocked_only_when_its_last_user_lets_go() {
        let (_dir, locks, application) = opened();
        let one = locks.try_take(lock_bytes::WAL_WRITE).unwrap().unwrap();
        let two = locks.take(lock_bytes::WAL_WRITE).unwrap();
        drop(one);
        assert!(!is_free(&application, lock_bytes::WAL_WRITE));
        drop(two);
        assert!(is_free(&application, lock_bytes::WAL_WRITE));
    }

    #[test]
    fn a_range_leaves_the_bytes_that_others_use_locked() {
        let (_dir, locks, application) = opened();
        let slot = locks.try_take(lock_bytes::read(2)).unwrap().unwrap();
        drop(locks.try_take_all(lock_bytes::read(1), 4).unwrap().unwrap());
        let free: Vec<bool> = (1..5).map(|slot| is_free(&application, lock_bytes::read(slot))).collect();
        assert_eq!(free, [true, false, true, true]);
        drop(slot);
        assert!(is_free(&application, lock_bytes::read(2)));
    }

    #[test]
    fn a_byte_that_an_application_holds_is_refused_or_waited_for() {
        let (_dir, locks, application) = opened();
        assert!(try_lock(&application, LockKind::Exclusive, lock_bytes::CKPT, 1).unwrap());
        assert!(locks.is_taken(lock_bytes::CKPT).unwrap());
        assert!(locks.try_take(lock_bytes::CKPT).unwrap().is_none());
        let (sender, receiver) = mpsc::channel();
        let waiting = locks.clone();
        let thread = std::thread::spawn(move || {
            let held = waiting.take(lock_bytes::CKPT).unwrap();
            sender.send(()).unwrap();
            held
        });
        assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err());
        unlock(&application, lock_bytes::CKPT, 1).unwrap();
        receiver.recv_timeout(Duration::from_secs(30)).unwrap();
        let held = thread.join().unwrap();
        assert!(!is_free(&application, lock_bytes::CKPT));
        drop(held);
        assert!(is_free(&application, lock_bytes::CKPT));
    }

    #[test]
    fn the_end_of_a_lease_keeps_the_write_lock_until_another_one_begins() {
        let (_dir, locks, application) = opened();
        let byte = lock_bytes::WAL_WRITE;
        let other = locks.try_take(byte).unwrap().unwrap();
        assert!(locks.try_end_lease() && locks.try_end_lease());
        drop(other);
        assert!(!is_free(&application, byte), "another user has let go");
        locks.begin_lease(|| false).unwrap();
        assert!(!is_free(&application, byte), "that lease has ended, too");
        locks.begin_lease(|| true).unwrap();
        assert!(is_free(&application, byte));
        assert!(try_lock(&application, LockKind::Exclusive, byte, 1).unwrap());
        assert!(!locks.try_end_lease(), "a writer is at work");
        unlock(&application, byte, 1).unwrap();
        assert!(locks.try_end_lease());
    }

    #[test]
    fn what_is_left_stays_locked_while_a_duplicate_of_the_file_is_open() {
        let (_dir, locks, application) = opened();
        let duplicate = locks.file().try_clone().unwrap();
        locks.try_take(lock_bytes::WAL_WRITE).unwrap().unwrap().leave();
        drop(locks);
        assert!(!is_free(&application, lock_bytes::WAL_WRITE));
        drop(duplicate);
        assert!(is_free(&application, lock_bytes::WAL_WRITE));
    }
}
