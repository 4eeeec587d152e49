//! Apply: a change set of the log becomes the content of a database of this node.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use super::database::{Database, State};
use super::incoming::Incoming;
use super::opened::WritePath;
use super::opening::GivenUp;
use super::roles::Wait;
use super::view::StateLock;
use super::wal_writer::WalAppend;
use super::{DbError, FileKind};
use crate::io::fault;
use crate::io::ofd_lock::{LockKind, try_lock, unlock};
use crate::ltx::ChangeSet;
use crate::sqlite::lock_bytes;
use crate::types::{Access, JournalMode, LogIndex, PageCount, PageSize};

/// Attempts to be alone among readers, of which the last keeps new ones out,
const INSIST_EVERY: u32 = 32;
/// for this long.
const INSIST_MAX: Duration = Duration::from_millis(4);

/// Frames in the log of an open database at which the daemon checkpoints it, as SQLite's default.
const CHECKPOINT_FRAMES: u32 = 1000;
/// How long the opening of the database file through the mount is waited for with the lock held.
const MOUNTED_OPEN_MAX: Duration = Duration::from_secs(1);

impl Database {
    /// Applies one change set of entry `index`. Entries the database already has are skipped. Blocking.
    ///
    /// # Errors
    /// `Conflict` where an application has to end a transaction first: nothing has changed, try again later. `Corrupt`
    /// where the change set does not continue the position or does not have the checksum it names: the database must
    /// then be resynced. `Io` where a file cannot be read or written.
    pub fn apply(self: &Arc<Self>, index: LogIndex, change: &ChangeSet) -> Result<(), DbError> {
        let (state, alone) = self.lock_for_writing()?;
        let mut state = self.wait_shared(state);
        if index <= state.index || state.service.is_dropped() {
            return Ok(());
        }
        if let Some(why) = state.service.failure() {
            return Err(self.corrupt(why));
        }
        // The next start applies the entry.
        self.check_not_ending()?;
        let undecided = state.undecided.is_some();
        if undecided && self.commit_undecided(&mut state, index, change)? {
            drop((state, alone));
            return self.set_access();
        }
        let redoing = state.redoing();
        let incoming = self.check_incoming(&state, change)?;
        let timestamp_ms = incoming.batch.timestamp_ms;
        self.write_incoming(&mut state, incoming, index)?;
        if redoing && !state.redoing() {
            self.check_redone(&state)?;
        }
        self.finish_apply(state, timestamp_ms);
        drop(alone);
        if undecided { self.set_access() } else { Ok(()) }
    }

    /// Takes the state's lock and, of a rollback database that is open, SQLite's EXCLUSIVE lock. Applications are not
    /// waited for: one that holds a lock may first open another connection, or ask for the position.
    ///
    /// # Errors
    /// `Conflict` where an application is in the middle of a transaction that has to end first.
    pub(super) fn lock_for_writing(&self) -> Result<(StateLock<'_>, Option<ExclusiveLock<'_>>), DbError> {
        let fail = |source| self.io_error("waiting for applications", source);
        self.wait_landed();
        self.keep_out_checkpoints(Wait::No)?;
        let mut state = self.lock();
        if let Some(wal) = state.open.wal()
            && self.access() != Access::Write
            && (!wal.fence.raised() || wal.follows.is_none())
        {
            // A writer from before this node was fenced. He may be waiting for an answer that needs the state's lock.
            let locks = wal.locks.clone();
            drop(state);
            let Some(_writers_out) = locks.try_take(lock_bytes::WAL_WRITE).map_err(fail)? else {
                return Err(self.conflict("an application is in the middle of a transaction"));
            };
            let _held = self.try_main_lock()?;
            // By now there may be more to take back.
            self.keep_out_checkpoints(Wait::No)?;
            state = self.lock();
            if let Some(wal) = state.open.wal_mut() {
                // The lock is had already; now it is known as the fence, and let go where it is none any more.
                wal.fence.try_raise(&wal.locks).map_err(fail)?;
                self.set_fence(wal)?;
            }
            return Ok((state, None));
        }
        if !state.is_open_rollback() {
            return Ok((state, None));
        }
        let file = self.mounted(&mut state).map_err(fail)?;
        drop(state);
        let alone = ExclusiveLock::try_take(file, self)?
            .ok_or_else(|| self.conflict("an application is reading it"))?;
        // By now it may be closed; being alone does no harm then.
        Ok((self.lock(), Some(alone)))
    }

    /// Brings checked pages into the database the way its openness demands, and moves the position. The lock must
    /// come from [`lock_for_writing`](Self::lock_for_writing).
    pub(super) fn write_incoming(
        self: &Arc<Self>,
        state: &mut State,
        incoming: Incoming,
        index: LogIndex,
    ) -> Result<(), DbError> {
        self.write_incoming_by(state, incoming, index, State::write_path)
    }

    /// The same, the way that `path` says.
    pub(super) fn write_incoming_by(
        self: &Arc<Self>,
        state: &mut State,
        incoming: Incoming,
        index: LogIndex,
        path: fn(&State) -> WritePath,
    ) -> Result<(), DbError> {
        self.rewind(state)?;
        let fail = |source| {
            self.io_error(format!("applying change set {}", incoming.batch.change.range.max()), source)
        };
        if state.cow.any() && !state.open.is_wal() && state.mode == Some(JournalMode::Wal) {
            self.attach(state)?;
        }
        let change = &incoming.batch.change;
        if incoming.batch.checksums.is_empty() && change.commit == state.pages {
            // The content is there already; only the position moves.
        } else {
            let path = path(state);
            if path == WritePath::Wal {
                self.make_room_for(state, change.page_size)?;
            } else {
                // A full disk is found out before the first page is written: readers go on with what they have.
                self.reserve_space(state, change).map_err(fail)?;
                self.take_back_in_place(state).and_then(|()| self.drop_staged()).map_err(fail)?;
                state.checksums.set_pending(index).map_err(fail)?;
            }
            match path {
                WritePath::Wal => self.apply_wal(state, &incoming),
                WritePath::OpenRollback => self.apply_open_rollback(state, &incoming),
                WritePath::Cold => self.apply_cold(state, &incoming),
            }
            .map_err(fail)?;
        }
        let was_empty = state.pages == PageCount::ZERO;
        self.adopt(state, &incoming.batch, index)?;
        if was_empty && let Some(cache) = self.shared.cache() {
            cache.entry_changed(self.name(), FileKind::Database);
        }
        Ok(())
    }

    /// After redo has caught up with the checksums: they must be those of the position.
    pub(super) fn check_redone(&self, state: &State) -> Result<(), DbError> {
        let fail = |source| self.io_error("reading page checksums", source);
        let found = state.checksums.fold(1, state.pages.get()).map_err(fail)?;
        if found != state.pos.checksum {
            return Err(self.corrupt(format!(
                "after recovery its pages have checksum {found}, not {}",
                state.pos.checksum
            )));
        }
        Ok(())
    }

    /// Tells the world, and keeps the log of an open database short.
    pub(super) fn finish_apply(&self, mut state: StateLock<'_>, timestamp_ms: i64) {
        let moved = self.moved(&state, timestamp_ms);
        if let Some(wal) = state.open.wal()
            && wal.captured.frame >= CHECKPOINT_FRAMES
            && wal.index.backfilled() < wal.captured.frame
            && let Err(error) = self.backfill(&mut state)
        {
            tracing::warn!(db = %self.name(), %error, "cannot checkpoint");
        }
        drop(state);
        self.changed.notify_all();
        (self.shared.observer)(self, moved);
    }

    /// Copies what is captured from the log into the database file, as far as readers allow.
    pub(super) fn backfill(&self, state: &mut State) -> Result<bool, DbError> {
        let fail = |source| self.io_error("checkpointing", source);
        if state.open.is_wal() && !self.recover_index(state) {
            return Ok(false);
        }
        let Some(wal) = state.open.wal_mut() else { return Ok(true) };
        let limit = wal.captured.frame;
        if wal.index.backfilled() < limit {
            let Some(_held) = wal.main_lock.try_hold().map_err(fail)? else { return Ok(false) };
            state.checksums.set_pending(state.index).map_err(fail)?;
            wal.backfill(limit).map_err(fail)?;
        }
        Ok(wal.index.backfilled() >= limit)
    }

    /// A WAL holds pages of one size: where the change set has another one, the WAL has to begin anew first.
    ///
    /// # Errors
    /// `Conflict` where a reader still uses what is in it.
    fn make_room_for(&self, state: &mut State, page_size: PageSize) -> Result<(), DbError> {
        let fail = |source| self.io_error("beginning the WAL anew", source);
        if !state.open.wal().is_some_and(|wal| wal.has_other_pages(page_size)) {
            return Ok(());
        }
        let whole = self.backfill(state)?;
        let begun = match state.open.wal_mut() {
            Some(wal) => whole && wal.begin_anew().map_err(fail)?,
            None => true,
        };
        if begun { Ok(()) } else { Err(self.conflict("an application reads it with another page size")) }
    }

    fn apply_wal(&self, state: &mut State, incoming: &Incoming) -> io::Result<()> {
        let (pages, page_size) = (state.pages, state.page_size);
        let wal = state.open.wal_mut().expect("callers have checked");
        let _writers_out = wal.locks.take(lock_bytes::WAL_WRITE)?;
        fault::point("apply_wal")?;
        wal.recover_index(pages, page_size)?;
        let mut append = WalAppend::begin(wal, incoming.batch.change.page_size)?;
        incoming.for_each(|pgno, page| append.page(pgno, page))?;
        append.publish(incoming.batch.change.commit)
    }

    /// Straight into the file: no application has it open.
    fn apply_cold(&self, state: &mut State, incoming: &Incoming) -> io::Result<()> {
        let path = self.files().path(FileKind::Database);
        fault::point("apply_cold")?;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        write_pages(state, incoming, &file)?;
        if let Some(cache) = self.shared.cache() {
            cache.data_changed(self.name(), FileKind::Database);
        }
        Ok(())
    }

    /// Under SQLite's EXCLUSIVE lock, which the caller holds, and through the mount, so that applications see it as
    /// another process' transaction.
    fn apply_open_rollback(&self, state: &mut State, incoming: &Incoming) -> io::Result<()> {
        fault::point("apply_rollback")?;
        if !incoming.beside_mount {
            let file = self.mounted(state)?;
            return write_pages(state, incoming, &file);
        }
        let file = File::options().read(true).write(true).open(self.files().path(FileKind::Database))?;
        let written = write_pages(state, incoming, &file);
        if let Some(cache) = self.shared.cache() {
            cache.data_changed(self.name(), FileKind::Database);
        }
        written
    }

    /// The database file through the mount, opened once and kept while applications have it open.
    pub(super) fn mounted(&self, state: &mut State) -> io::Result<File> {
        let Some(rollback) = state.open.rollback_mut() else {
            return Err(io::Error::other("it is not open in a rollback-journal mode"));
        };
        if rollback.mounted.is_none() {
            let cache = self.shared.cache().ok_or_else(|| io::Error::other("the mount is not up yet"))?;
            let path = cache.mount_point().join(self.name().as_str());
            let open = move |_: &GivenUp| File::options().read(true).write(true).open(path);
            let opened = self.opening.within(MOUNTED_OPEN_MAX, open);
            rollback.mounted = Some(opened.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))?);
        }
        rollback.mounted.as_ref().expect("just opened").try_clone()
    }
}

/// Writes pages and size of a change set; snapshots of the file keep what it overwrites.
fn write_pages(state: &mut State, incoming: &Incoming, file: &File) -> io::Result<()> {
    let change = &incoming.batch.change;
    incoming.for_each(|pgno, page| {
        state.cow.before_write(file, pgno.offset(change.page_size), page.len() as u64)?;
        fault::point("apply_page")?;
        file.write_all_at(page, pgno.offset(change.page_size))
    })?;
    let size = change.commit.bytes(change.page_size);
    if file.metadata()?.len() != size {
        state.cow.before_write(file, size, u64::MAX - size)?;
        file.set_len(size)?;
    }
    Ok(())
}

/// SQLite's EXCLUSIVE lock of a rollback database, held until dropped.
pub(super) struct ExclusiveLock<'a> {
    file: File,
    /// Its fence, which stays.
    reserved: &'a AtomicBool,
    /// The lock belongs to an open file that all of the daemon shares; this keeps its threads apart.
    _gate: MutexGuard<'a, ()>,
}

impl<'a> ExclusiveLock<'a> {
    /// Takes RESERVED and EXCLUSIVE where nobody is reading now; `None` where somebody is.
    ///
    /// PENDING, which lets nobody begin to read, is not held while a reader is waited for: one that stays would lock out
    /// all others. Readers that overlap without end are broken only so: at the 4th, 8th and 16th attempt, where they are
    /// short, and at each [`INSIST_EVERY`]th PENDING is held, for [`INSIST_MAX`]. The kernel tells nobody of a lock that is let go but who waits for it without limit,
    /// so the caller asks again.
    fn try_take(file: File, database: &'a Database) -> Result<Option<Self>, DbError> {
        let fail = |source| database.io_error("waiting for readers", source);
        let gate = match database.alone.try_lock() {
            Ok(gate) => gate,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return Ok(None),
        };
        // Also where the second fails, what was taken is let go.
        let guard = Self { file, reserved: &database.reserved, _gate: gate };
        let (first, size) = (lock_bytes::SHARED_FIRST, lock_bytes::SHARED_SIZE);
        let alone = || try_lock(&guard.file, LockKind::Exclusive, first, size);
        if !database.take_reserved(&guard.file, Wait::No)? {
            return Ok(None);
        }
        let mut taken = alone().map_err(fail)?;
        let refused = database.refused.fetch_add(1, Ordering::Relaxed);
        if !taken && insists(refused.wrapping_add(1)) {
            let pending = try_lock(&guard.file, LockKind::Exclusive, lock_bytes::PENDING, 1).map_err(fail)?;
            let until = Instant::now() + INSIST_MAX;
            while pending && !taken && Instant::now() < until {
                std::thread::sleep(INSIST_MAX / 20);
                taken = alone().map_err(fail)?;
            }
        }
        if taken {
            database.refused.store(0, Ordering::Relaxed);
        }
        Ok(taken.then_some(guard))
    }
}

/// Whether PENDING is held at that attempt.
fn insists(attempt: u32) -> bool {
    attempt.is_multiple_of(INSIST_EVERY) || attempt >= 4 && attempt.is_power_of_two()
}

impl Drop for ExclusiveLock<'_> {
    fn drop(&mut self) {
        let fence = match self.reserved.load(Ordering::SeqCst) {
            true => Ok(()),
            false => unlock(&self.file, lock_bytes::RESERVED, 1),
        };
        let others = unlock(&self.file, lock_bytes::PENDING, 1)
            .and_then(|()| unlock(&self.file, lock_bytes::SHARED_FIRST, lock_bytes::SHARED_SIZE));
        if let Err(error) = fence.and(others) {
            tracing::error!(%error, "cannot release the lock of a database file");
        }
    }
}
