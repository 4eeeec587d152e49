//! Changes of a database that do not come from its applications: imports, resyncs and what a crash left behind.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::DbError;
use super::apply::ExclusiveLock;
use super::batch::Batch;
use super::claim::Claim;
use super::commit::all_of;
use super::database::{Database, State};
use super::incoming::{Incoming, LtxSource};
use super::main_lock::HeldMainLock;
use super::opened::WritePath;
use super::traits::CommitError;
use super::view::StateLock;
use super::wal_locks::WalLock;
use crate::ltx::ChangeSet;
use crate::sqlite::lock_bytes;
use crate::types::{Access, LogIndex};

/// How often applications that are waited for are looked at: fcntl(2) waits without a limit or not at all.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// How long a database is waited for that somebody else has claimed.
const CLAIM_MAX: Duration = Duration::from_secs(1);

/// A database whose content is about to be replaced by an entry of the log.
pub(crate) struct LockedContent<'a> {
    _held: HeldWriters<'a>,
    _claim: Claim,
}

/// The database with all its writers kept out; ends when dropped.
pub(crate) struct HeldWriters<'a> {
    wal: Option<WalLock>,
    /// Nobody leaves WAL mode, or takes the file for itself, meanwhile.
    _main_lock: Option<HeldMainLock>,
    alone: Option<ExclusiveLock<'a>>,
}

impl HeldWriters<'_> {
    /// Whether it keeps out everybody who may write the database as it is open now.
    pub(super) fn covers(&self, state: &State) -> bool {
        let wal = state.open.wal();
        let writers_out = |locks| self.wal.as_ref().is_some_and(|held| held.belongs_to(locks));
        wal.is_none_or(|wal| writers_out(&wal.locks)) && (self.alone.is_some() || !state.is_open_rollback())
    }
}

impl Database {
    /// Keeps out the writers among the applications, waiting for the one at work. Never call with the lock held.
    pub(super) fn hold_writers(&self) -> Result<HeldWriters<'_>, DbError> {
        let fail = |source| self.io_error("waiting for writers", source);
        let state = self.lock();
        if let Some(wal) = state.open.wal() {
            let (locks, main_lock) = (wal.locks.clone(), wal.main_lock.clone());
            drop(state);
            // Without the state's lock: the writer at work may be waiting for its capture.
            let writers_out = locks.take(lock_bytes::WAL_WRITE).map_err(fail)?;
            let held = main_lock.try_hold().map_err(fail)?;
            if held.is_none() && self.access() == Access::Write {
                return Err(self.conflict("an application holds it exclusively (locking_mode=EXCLUSIVE)"));
            }
            return Ok(HeldWriters { wal: Some(writers_out), _main_lock: held, alone: None });
        }
        drop(state);
        let (state, alone) = self.wait_for_writing()?;
        drop(state);
        Ok(HeldWriters { wal: None, _main_lock: None, alone })
    }

    /// The same, for as long as `deadline` allows.
    ///
    /// # Errors
    /// `Conflict` where an application is in the middle of a transaction until then.
    pub(super) fn hold_writers_until(&self, deadline: Instant) -> Result<HeldWriters<'_>, DbError> {
        let fail = |source| self.io_error("waiting for writers", source);
        loop {
            let locks = self.lock().open.wal().map(|wal| wal.locks.clone());
            let conflict = match locks {
                Some(locks) => match locks.try_take(lock_bytes::WAL_WRITE).map_err(fail)? {
                    Some(writers_out) => match self.try_main_lock() {
                        Ok(held) if held.is_some() || self.access() != Access::Write => {
                            return Ok(HeldWriters { wal: Some(writers_out), _main_lock: held, alone: None });
                        }
                        Ok(_) => {
                            self.conflict("an application holds it exclusively (locking_mode=EXCLUSIVE)")
                        }
                        Err(error @ DbError::Conflict { .. }) => error,
                        Err(error) => return Err(error),
                    },
                    None => self.conflict("an application is writing it; try again"),
                },
                None => match self.lock_for_writing() {
                    Ok((state, alone)) => {
                        drop(state);
                        return Ok(HeldWriters { wal: None, _main_lock: None, alone });
                    }
                    Err(error @ DbError::Conflict { .. }) => error,
                    Err(error) => return Err(error),
                },
            };
            if Instant::now() >= deadline {
                return Err(conflict);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// [`lock_for_writing`](Self::lock_for_writing) for who may wait for applications.
    pub(super) fn wait_for_writing(&self) -> Result<(StateLock<'_>, Option<ExclusiveLock<'_>>), DbError> {
        loop {
            match self.lock_for_writing() {
                Err(DbError::Conflict { .. }) => self.check_not_ending()?,
                outcome => return outcome,
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Claims the database for an operation longer than the lock: captures and opens wait until
    /// [`end_exclusive`](Self::end_exclusive).
    pub(super) fn begin_exclusive(&self) -> StateLock<'_> {
        let mut state = self.lock();
        while state.exclusive || state.in_flight.is_some() {
            state = state.wait(&self.changed);
        }
        state.exclusive = true;
        state
    }

    /// Lets the others go on.
    pub(super) fn end_exclusive(self: &Arc<Self>) {
        let mut state = self.lock();
        state.exclusive = false;
        let queued = std::mem::take(&mut state.queued);
        drop(state);
        self.changed.notify_all();
        if !queued.is_empty() {
            self.capture_wal(Some(all_of(queued)));
        }
    }

    /// Makes a change of our own part of history, then of the database: `build` encodes it on the position that
    /// is current once all writers are out; `None` means there is nothing to change. Blocking.
    ///
    /// # Errors
    /// What `build` says; `Unavailable` or `NotPrimary` where the log does not take it.
    pub(super) fn commit_own(
        self: &Arc<Self>,
        build: impl FnOnce(&mut State) -> Result<Option<Batch>, DbError>,
    ) -> Result<(), DbError> {
        let (held, mut state) = loop {
            let held = self.hold_writers()?;
            // Writers are out, so what they published is all there is to capture before our own change.
            self.capture_and_wait()?;
            let state = self.begin_exclusive();
            if held.covers(&state) {
                break (held, state);
            }
            drop(state);
            // Opened in between.
            self.end_exclusive();
        };
        let built = build(&mut state);
        drop(state);
        let result = built.and_then(|batch| match batch {
            Some(batch) => self.commit_built(batch),
            None => Ok(()),
        });
        drop(held);
        self.end_exclusive();
        result
    }

    pub(super) fn commit_built(self: &Arc<Self>, batch: Batch) -> Result<(), DbError> {
        let sink = self.shared.sink().ok_or_else(|| self.unavailable("the log is not open yet"))?;
        let (sender, receiver) = mpsc::channel();
        let change = batch.change.clone();
        // The log's thread only passes the word; what may wait for applications is done here.
        sink.commit(vec![change.clone()], Box::new(move |fate| drop(sender.send(fate))));
        let fate = receiver.recv().unwrap_or_else(|_| Err(CommitError::Unknown("the log was closed".into())));
        let index = fate.map_err(|error| self.unavailable(error.to_string()))?;
        // Captures and opens wait until the caller ends the exclusive time, so nobody has come in meanwhile.
        let mut state = self.lock();
        let mut incoming = self.check_incoming(&state, &change)?;
        incoming.beside_mount = true;
        self.write_incoming(&mut state, incoming, index)?;
        let moved = self.moved(&state, batch.timestamp_ms);
        drop(state);
        (self.shared.observer)(self, moved);
        Ok(())
    }

    pub(super) fn capture_and_wait(self: &Arc<Self>) -> Result<(), DbError> {
        let (sender, receiver) = mpsc::channel();
        self.capture_wal(Some(Box::new(move |answer| drop(sender.send(answer)))));
        receiver.recv().unwrap_or_else(|_| Err(self.unavailable("the log was closed")))
    }

    /// Brings the database to the position of `change` with the pages in an LTX file, whatever it held before.
    /// Blocking; waits for readers of an open rollback database.
    ///
    /// # Errors
    /// `Corrupt` where the pages do not lead to the checksum.
    pub(crate) fn install_pages(
        self: &Arc<Self>,
        change: ChangeSet,
        file: File,
        index: LogIndex,
    ) -> Result<(), DbError> {
        let (state, alone) = self.wait_for_writing()?;
        let mut state = self.wait_shared(state);
        self.keep_what_goes_back(&mut state, &change)?;
        self.install(state, change, file, index, State::write_path)?;
        drop(alone);
        Ok(())
    }

    /// The lock under which applications see a change of content as one transaction; `None` where it needs none.
    ///
    /// # Errors
    /// `Conflict` where an application is in the middle of a transaction that has to end first.
    pub(crate) fn lock_for_content(self: &Arc<Self>) -> Result<LockedContent<'_>, DbError> {
        let (state, alone) = self.lock_for_writing()?;
        drop(state);
        let claim = self.claim(Instant::now() + CLAIM_MAX)?;
        let held = HeldWriters { wal: None, _main_lock: None, alone };
        let covered =
            self.access() != Access::Write && (held.alone.is_some() || !self.lock().is_open_rollback());
        match covered {
            true => Ok(LockedContent { _held: held, _claim: claim }),
            false => Err(self.conflict("has just been opened")),
        }
    }

    /// [`install_pages`](Self::install_pages) for who has claimed the database and holds its writers.
    ///
    /// # Errors
    /// The same.
    pub(crate) fn install_claimed(
        self: &Arc<Self>,
        change: ChangeSet,
        file: File,
        index: LogIndex,
    ) -> Result<(), DbError> {
        // Beside the mount: the kernel keeps the file locked for the rename that this answers. Nobody reads it now.
        let beside = |state: &State| match state.write_path() {
            WritePath::OpenRollback => WritePath::Cold,
            path => path,
        };
        self.install(self.lock(), change, file, index, beside)
    }

    fn install(
        self: &Arc<Self>,
        mut state: StateLock<'_>,
        change: ChangeSet,
        file: File,
        index: LogIndex,
        path: fn(&State) -> WritePath,
    ) -> Result<(), DbError> {
        let undecided = self.clear_undecided(&mut state);
        let incoming: Incoming = self.check_source(&state, change, LtxSource::File(file), false)?;
        let timestamp_ms = incoming.batch.timestamp_ms;
        self.write_incoming_by(&mut state, incoming, index, path)?;
        state.service.repaired();
        self.finish_apply(state, timestamp_ms);
        if undecided { self.set_access() } else { Ok(()) }
    }
}

/// An I/O error about bad data.
pub(super) fn bad_data(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}
