//! Events of the files of a rollback-journal database: what applications do to `database` and `-journal`.
//!
//! Writes to the database are staged, see [`Overlay`](super::overlay::Overlay); the end of the journal goes to
//! `capture_journal`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::attach::WalAttachment;
use super::database::{Database, State};
use super::guarded_file::{AfterDeath, GuardedFile};
use super::journal_end::JournalEnd;
use super::{DbError, Done, FileKind};
use crate::io::fault;
use crate::io::ofd_lock::{LockKind, is_taken};
use crate::sqlite::{header, journal, lock_bytes};
use crate::types::{JournalMode, PageCount};

impl Database {
    /// May a rollback journal be created now? Creates the backing file.
    ///
    /// # Errors
    /// `NotPrimary` where this node may not write; `Io` where the file cannot be made.
    pub fn journal_created(&self) -> Result<(), DbError> {
        if !self.may_commit() {
            return Err(DbError::NotPrimary(self.name().clone()));
        }
        let path = self.files().path(FileKind::Journal);
        fault::point("journal_create").map_err(|source| self.io_error("creating the journal", source))?;
        File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| self.io_error(format!("creating {}", path.display()), source))?;
        Ok(())
    }

    /// A write to the database file that reaches the daemon (rollback mode, or a checkpoint without passthrough);
    /// `file` is the backing file. Waits for the database's lock.
    ///
    /// # Errors
    /// `Invalid` where no journal could roll the write back; `NotPrimary`; `Io`.
    pub fn database_write(self: &Arc<Self>, file: &File, offset: u64, data: &[u8]) -> Result<(), DbError> {
        self.finish_unseen_journal()?;
        let mut state = self.lock();
        if self.lacks_guard(&state)
            && let Err(error) = self.keep_cached(&mut state)
        {
            tracing::warn!(db = %self.name(), %error, "should this process die, a transaction under way may be read");
        }
        self.write_in(&state, file, offset, data)
    }

    /// Whether nobody would empty the kernel's cache of what a transaction writes.
    fn lacks_guard(&self, state: &State) -> bool {
        !state.open.is_wal()
            && state.open.rollback().is_none_or(|open| open.cached.is_none())
            && self.shared.guard().is_some()
    }

    fn keep_cached(&self, state: &mut State) -> io::Result<()> {
        if let Some(guard) = self.shared.guard() {
            let cached = GuardedFile::new(guard, AfterDeath::Cached, &self.mounted(state)?)?;
            if let Some(open) = state.open.rollback_mut() {
                open.cached = Some(cached);
            }
        }
        Ok(())
    }

    /// The same for FUSE threads; `None` where the lock is taken, or more than that is to be done.
    pub fn try_database_write(
        self: &Arc<Self>,
        file: &File,
        offset: u64,
        data: &[u8],
    ) -> Option<Result<(), DbError>> {
        let state = self.try_lock().filter(|state| !self.lacks_guard(state) && !self.has_ended_unseen());
        state.map(|state| self.write_in(&state, file, offset, data))
    }

    /// A write was refused that may have come from a mapping: the kernel's cache has it all the same. Drops what the kernel has
    /// cached of the file. Never on a FUSE thread.
    pub fn drop_refused_write(&self) {
        if let Some(cache) = self.shared.cache() {
            cache.data_changed(self.name(), FileKind::Database);
        }
    }

    fn write_in(
        self: &Arc<Self>,
        state: &State,
        file: &File,
        offset: u64,
        data: &[u8],
    ) -> Result<(), DbError> {
        let fail = |source| self.io_error("writing the database file", source);
        if state.open.is_wal() {
            // A checkpoint: what it copies is captured, the read mark and its own sync of the WAL see to that.
            return file.write_all_at(data, offset).map_err(fail);
        }
        self.may_change(state)?;
        self.check_first_page(offset, data)?;
        if self.overlay.size().is_none() {
            // With synchronous=OFF there is no fsync to refuse.
            self.check_first_write(file, offset, data)?;
            self.begin_unseen_journal();
        }
        fault::point("database_write").map_err(fail)?;
        self.overlay.write(file, &self.shared.tmp, offset, data).map_err(fail)
    }

    /// Refuses a first page that no node could tell the size of a page from, before anything has changed.
    fn check_first_page(&self, offset: u64, data: &[u8]) -> Result<(), DbError> {
        if offset > 0 || data.len() < header::MAGIC.len() || header::is_magic(data) {
            return Ok(());
        }
        self.content_refused.store(true, Ordering::SeqCst);
        Err(self.invalid(
            "its first page does not begin as that of a SQLite database; an encrypted one needs a plain header (SQLCipher: PRAGMA cipher_plaintext_header_size=32)",
        ))
    }

    /// Whether an application was refused such a page: where the database has no content, it is to go.
    pub fn content_was_refused(&self) -> bool {
        self.content_refused.load(Ordering::SeqCst)
    }

    /// Whether a write to the database file that reaches the daemon is none of SQLite's: it has no journal that could take
    /// it back, and is no checkpoint, which holds the lock for that or has the database to itself. Waits for the
    /// database's lock.
    ///
    /// Asked of handles whose opening leaves it open who has them. In a rollback mode only a database without content
    /// is written so; all else without a journal is refused, see [`database_write`](Self::database_write).
    pub fn is_foreign_write(&self) -> bool {
        let state = self.lock();
        let Some(wal) = state.open.wal() else {
            let new = state.pages == PageCount::ZERO || state.mode == Some(JournalMode::Wal);
            return new && self.overlay.size().is_none() && !self.journal_in_force();
        };
        !is_checkpointed(wal)
    }

    /// A read of the database file that reaches the daemon; `file` is the backing file. Returns how much there was.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn database_read(&self, file: &File, offset: u64, data: &mut [u8]) -> io::Result<usize> {
        self.overlay.read(file, offset, data)
    }

    /// Size of the database file as its writer sees it, in bytes; `None` where that is the backing file's.
    pub fn database_bytes(&self) -> Option<u64> {
        self.overlay.size()
    }

    fn may_change(&self, state: &State) -> Result<(), DbError> {
        if let Some(why) = state.service.failure() {
            return Err(self.corrupt(why));
        }
        if !self.may_commit() {
            return Err(DbError::NotPrimary(self.name().clone()));
        }
        self.check_not_ending()?;
        self.check_not_lost()?;
        if self.overlay.size().is_some() {
            return Ok(());
        }
        // The journal is written before the database, and stays in force until the end.
        if !self.journal_in_force() {
            return Err(self.invalid(
                "a write without a rollback journal (journal_mode=OFF or MEMORY) could not be undone; use DELETE, TRUNCATE, PERSIST or WAL",
            ));
        }
        Ok(())
    }

    /// The database file is truncated by ftruncate.
    pub fn database_truncated(self: &Arc<Self>, size: u64, done: Done) {
        let state = self.lock();
        if state.open.is_wal() {
            let foreign = state.open.wal().is_some_and(|wal| !is_checkpointed(wal));
            // Elsewhere than on the primary a checkpoint moves only what is history, and so ends with that size.
            let as_committed = size == state.pages.bytes(state.page_size);
            drop(state);
            if !as_committed && !self.shared.may_commit() {
                return done(Err(DbError::NotPrimary(self.name().clone())));
            }
            if foreign {
                let why = "is cut by one that is no checkpoint; open it only for writing, or with O_TRUNC";
                return done(Err(self.invalid(why)));
            }
            // The last step of a checkpoint that copied everything; the log may begin anew after it, so
            // everything must be captured by now.
            let database = self.clone();
            let gate: Done = Box::new(move |answer| {
                let answer = answer.and_then(|()| database.set_database_len(size));
                database.release_pin();
                done(answer);
            });
            return self.capture_wal(Some(gate));
        }
        if self.is_in_place() {
            drop(state);
            return done(self.set_database_len(size));
        }
        // After a commit SQLite cuts the file to the size the commit gave it, which it has by then.
        let committed = size == state.pages.bytes(state.page_size) && self.may_commit();
        let answer = match self.may_change(&state) {
            Ok(()) => {
                self.overlay.truncate(size);
                Ok(())
            }
            Err(_) if committed => Ok(()),
            Err(error) => Err(error),
        };
        drop(state);
        done(answer);
    }

    fn set_database_len(&self, size: u64) -> Result<(), DbError> {
        let fail = |source| self.io_error("truncating the database file", source);
        self.open_backing(FileKind::Database)?.set_len(size).map_err(fail)
    }

    /// `fsync` of the database file: the log is what makes it durable.
    pub fn database_synced(self: &Arc<Self>, done: Done) {
        self.release_pin();
        if self.overlay.size().is_some() {
            return self.check_staged(done);
        }
        done(Ok(()));
    }

    /// A write to the rollback journal, whose backing file is `file`; zeroing its header ends the transaction
    /// (PERSIST), which is captured first.
    pub fn journal_write(self: &Arc<Self>, file: &File, offset: u64, data: &[u8], done: Done) {
        if journal::ends_transaction(offset, data) {
            return self.journal_ends(JournalEnd::Write(offset, data.to_vec()), done);
        }
        done(self.write_journal(file, offset, data));
    }

    /// `fsync` of the journal: nothing of it has to be durable, but where the kernel writes it by itself this is
    /// where a transaction of journal_mode=PERSIST is seen to have ended.
    pub fn journal_synced(self: &Arc<Self>, done: Done) {
        if self.is_in_place() {
            return self.sync_journal(done);
        }
        if self.overlay.size().is_none() || !self.journal_has_ended() {
            return done(Ok(()));
        }
        self.journal_ends(JournalEnd::Written, done);
    }

    /// Whether the kernel may write the journal by itself: its end must be one that the daemon sees coming. The mode is
    /// each connection's own, so the last end is a guess; where it is wrong the end is seen at the journal's fsync,
    /// before the commit returns, or with synchronous=OFF as `capture_unseen_journal` says.
    pub fn journal_may_be_passed_through(&self) -> bool {
        self.journal_vanishes.load(Ordering::Relaxed) && !self.is_in_place()
    }

    /// Whether the journal has a header with which SQLite would roll back.
    pub(super) fn journal_in_force(&self) -> bool {
        let mut magic = [0; 8];
        File::open(self.files().path(FileKind::Journal))
            .and_then(|file| file.read_exact_at(&mut magic, 0))
            .is_ok_and(|()| journal::is_header_magic(&magic))
    }

    fn write_journal(&self, file: &File, offset: u64, data: &[u8]) -> Result<(), DbError> {
        let fail = |source| self.io_error("writing the journal", source);
        if !self.may_commit() {
            return Err(DbError::NotPrimary(self.name().clone()));
        }
        fault::point("journal_write").map_err(fail)?;
        file.write_all_at(data, offset).map_err(fail)
    }

    /// The rollback journal is truncated; to zero ends the transaction (TRUNCATE).
    pub fn journal_truncated(self: &Arc<Self>, size: u64, done: Done) {
        if size == 0 {
            return self.journal_ends(JournalEnd::Truncate(0), done);
        }
        done(self.end_journal_file(&JournalEnd::Truncate(size)));
    }

    /// The rollback journal is unlinked, which ends the transaction (DELETE). Removes the backing file.
    pub fn journal_unlinked(self: &Arc<Self>, done: Done) {
        self.journal_ends(JournalEnd::Unlink, done);
    }

    /// Does to the journal what the application asked for.
    pub(super) fn end_journal_file(&self, end: &JournalEnd) -> Result<(), DbError> {
        self.journal_vanishes
            .store(matches!(end, JournalEnd::Unlink | JournalEnd::Truncate(0)), Ordering::Relaxed);
        let fail = |source| self.io_error("ending the journal", source);
        fault::point("journal_end").map_err(fail)?;
        match end {
            JournalEnd::Unlink => match std::fs::remove_file(self.files().path(FileKind::Journal)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail(error)),
                _ => Ok(()),
            },
            JournalEnd::Truncate(size) => self.open_backing(FileKind::Journal)?.set_len(*size).map_err(fail),
            JournalEnd::Written => Ok(()),
            JournalEnd::Write(offset, data) => {
                self.open_backing(FileKind::Journal)?.write_all_at(data, *offset).map_err(fail)
            }
        }
    }
}

/// Whether a connection may write pages of a WAL database into its file now: it holds the checkpoint lock, or has the file to
/// itself.
fn is_checkpointed(wal: &WalAttachment) -> bool {
    let taken = |file, kind, start, length| is_taken(file, kind, start, length).unwrap_or(true);
    let (first, size) = (lock_bytes::SHARED_FIRST, lock_bytes::SHARED_SIZE);
    taken(wal.locks.file(), LockKind::Exclusive, lock_bytes::CKPT, 1)
        || taken(&wal.database, LockKind::Shared, first, size)
}
