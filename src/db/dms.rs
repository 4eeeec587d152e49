//! The dead man switch of the wal-index: the lock that tells an opener whether anybody uses the shared memory.
//!
//! A connection that finds it free cuts `-shm` short, because nobody can have it mapped. So the daemon, which maps it,
//! holds the lock whenever that could happen. It cannot hold it for good on the primary: SQLite (from 3.51.1) takes a
//! held lock as a sign that others use the database, and then neither removes the WAL at the last close nor leaves WAL
//! mode. There the daemon takes it before the open of `-shm` is answered, and lets go as soon as the application has it.
//! Should an opener find it free nevertheless, its request to cut the file is answered by emptying the header, which
//! comes to the same: the opener then builds the wal-index anew.
//! Source: `os_unix.c`, unixLockSharedMemory() and unixIsSharingShmNode().

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::attach::WalAttachment;
use super::database::Database;
use super::{DbError, Done, FileKind};
use crate::io::ofd_lock::{LockKind, is_taken, try_lock, unlock};
use crate::sqlite::lock_bytes;

/// Between two looks whether the application has the lock by now.
const LOOK_EVERY: Duration = Duration::from_micros(50);
/// Looks after which it is left to the next commit.
const LOOKS: u32 = 40;

/// Takes the lock where nobody has it for itself; says whether it did. Never waits.
///
/// # Errors
/// Where locking fails.
pub(super) fn take_dms(shm: &File) -> io::Result<bool> {
    try_lock(shm, LockKind::Shared, lock_bytes::DMS, 1)
}

impl WalAttachment {
    /// Takes the lock where it is not held, and where nobody has it for itself: an application that has found it free cuts
    /// the file, and waits for the answer to that, which needs the database's lock. So it is not waited for here.
    ///
    /// # Errors
    /// Where locking fails.
    pub fn hold_dms(&mut self) -> io::Result<()> {
        if !self.holds_dms {
            self.holds_dms = take_dms(self.index.shm())?;
        }
        Ok(())
    }

    /// Lets go of it where an application has it, unless this node applies the log: then it is taken where it was not to be
    /// had before. Says whether it is free of it.
    ///
    /// # Errors
    /// Where locking fails.
    pub fn pass_dms_on(&mut self) -> io::Result<bool> {
        if self.follows.is_some() {
            self.hold_dms()?;
        }
        if self.holds_dms
            && self.follows.is_none()
            && is_taken(self.index.shm(), LockKind::Exclusive, lock_bytes::DMS, 1)?
        {
            unlock(self.index.shm(), lock_bytes::DMS, 1)?;
            self.holds_dms = false;
        }
        Ok(!self.holds_dms || self.follows.is_some())
    }
}

impl Database {
    /// After an open of `-shm` has been answered: waits a moment for the application to take the lock.
    pub(super) fn pass_dms_on_soon(self: &Arc<Self>) {
        for _ in 0..LOOKS {
            match self.lock().open.wal_mut().map(WalAttachment::pass_dms_on) {
                Some(Ok(false)) => {}
                Some(Ok(true)) | None => return,
                Some(Err(error)) => {
                    return tracing::warn!(db = %self.name(), %error, "cannot let go of a lock of the wal-index");
                }
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// An application asks for the size of `-shm`, which it does when it has the lock. Never waits.
    pub fn shm_measured(&self) {
        if let Some(mut state) = self.lock_at_once()
            && let Some(Err(error)) = state.open.wal_mut().map(WalAttachment::pass_dms_on)
        {
            tracing::warn!(db = %self.name(), %error, "cannot let go of a lock of the wal-index");
        }
    }

    /// An application that takes nobody to have `-shm` open cuts it to `size` bytes.
    pub fn shm_truncated(self: &Arc<Self>, size: u64, done: Done) {
        self.off_thread(done, move |database, done| done(database.cut_shm(size)));
    }

    fn cut_shm(&self, size: u64) -> Result<(), DbError> {
        let mut state = self.lock();
        match state.open.wal_mut() {
            // A file that is mapped here must not get shorter.
            Some(wal) if wal.index.is_mapped() => {
                wal.index.clear();
                Ok(())
            }
            _ => self.open_backing(FileKind::Shm).and_then(|file| {
                file.set_len(size).map_err(|source| self.io_error("truncating -shm", source))
            }),
        }
    }
}
