//! A connection that has the database file for itself (`locking_mode=EXCLUSIVE`, set while the WAL was in use).
//!
//! It heeds no lock of the wal-index, so the fence of a node that is no longer primary does not stop it: with
//! `synchronous=NORMAL` it would go on committing where no other node ever sees it. What it does heed is the version in
//! the wal-index's header, which it reads at the begin of each transaction. With one that SQLite does not know, the
//! transaction fails with SQLITE_CANTOPEN. The header is put right as soon as the connection has let go of the file.
//! Source: `wal.c`, walIndexReadHdr() and sqlite3WalExclusiveMode().

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::DbError;
use super::attach::WalAttachment;
use super::database::Database;
use super::main_lock::HeldMainLock;
use super::replace::HeldWriters;
use crate::types::Access;

/// Between two looks at a connection that may be committing: its commit writes the header as it should be.
const LOOK_EVERY: Duration = Duration::from_micros(200);
/// The same once it has been refused for a while.
const LOOK_LATER: Duration = Duration::from_millis(20);
/// How long it is looked at often.
const OFTEN: Duration = Duration::from_millis(20);

impl Database {
    /// Where this node applies the log and an application has the database file for itself: refuses that application,
    /// and takes part again when it has gone. Returns at once; the waiting is done on another thread.
    pub(super) fn outlast_exclusive(self: &Arc<Self>) {
        if !self.lock().open.wal().is_some_and(|wal| self.must_wait_for_main_lock(wal)) {
            return;
        }
        tracing::warn!(db = %self.name(), "an application holds the database exclusively (locking_mode=EXCLUSIVE) while this node is no longer primary; its transactions fail, and the database is not updated here until it is closed");
        self.off_thread(Box::new(|_| ()), |database, done| done(database.wait_for_main_lock().map(drop)));
    }

    /// Whether an application has the file for itself while this node applies the log.
    pub(super) fn must_wait_for_main_lock(&self, wal: &WalAttachment) -> bool {
        self.access() != Access::Write && wal.follows.is_none()
    }

    /// Waits until no application has the file for itself. Blocking; never with the lock held.
    ///
    /// # Errors
    /// `Unavailable` where the node ends first.
    pub(super) fn wait_for_main_lock(&self) -> Result<Option<HeldMainLock>, DbError> {
        let began = Instant::now();
        loop {
            match self.try_main_lock() {
                Err(DbError::Conflict { .. }) => self.check_not_ending()?,
                outcome => return outcome,
            }
            std::thread::sleep(if began.elapsed() < OFTEN { LOOK_EVERY } else { LOOK_LATER });
        }
    }

    /// The same without waiting: an application that has the file for itself is refused its next transaction.
    ///
    /// # Errors
    /// `Conflict` where an application has it.
    pub(super) fn try_main_lock(&self) -> Result<Option<HeldMainLock>, DbError> {
        let fail = |source| self.io_error("waiting for an exclusive connection", source);
        let mut state = self.lock();
        let Some(wal) = state.open.wal_mut() else { return Ok(None) };
        let held = wal.main_lock.try_hold().map_err(fail)?;
        if held.is_some() || self.access() == Access::Write {
            wal.index.admit_readers();
            if wal.follows.is_none() && self.access() != Access::Write {
                wal.follows = wal.main_lock.try_hold().map_err(fail)?;
            }
            return Ok(held);
        }
        wal.index.refuse_readers();
        drop(state);
        Err(self.conflict("an application holds it exclusively (locking_mode=EXCLUSIVE)"))
    }

    /// Keeps writers out on any node, and waits until no application has the file for itself. One that has is refused
    /// meanwhile: what it waits for must not wait for this. Blocking; never with the lock held.
    ///
    /// # Errors
    /// `Unavailable` where the node ends first; those of [`hold_writers`](Self::hold_writers).
    pub(super) fn outlast_exclusive_writer(self: &Arc<Self>) -> Result<HeldWriters<'_>, DbError> {
        let began = Instant::now();
        loop {
            let held = self.hold_writers();
            let mut state = self.lock();
            state.outlasting = matches!(held, Err(DbError::Conflict { .. }));
            let outlasting = state.outlasting;
            if let Some(wal) = state.open.wal_mut() {
                match outlasting {
                    true => wal.index.refuse_readers(),
                    false => wal.index.admit_readers(),
                }
            }
            if !outlasting {
                return held;
            }
            let refused = std::mem::take(&mut state.queued);
            drop(state);
            refused.into_iter().for_each(|done| done(Err(self.outlasting())));
            self.check_not_ending()?;
            std::thread::sleep(if began.elapsed() < OFTEN { LOOK_EVERY } else { LOOK_LATER });
        }
    }

    /// The answer to a connection that is waited for to be closed.
    pub(super) fn outlasting(&self) -> DbError {
        self.unavailable(
            "an entry of the log waits until the connection that holds it exclusively is closed (locking_mode=EXCLUSIVE)",
        )
    }

    /// Before the primary is moved as planned: no application has the file for itself from here on.
    ///
    /// # Errors
    /// `Unavailable` where one still has at `deadline`.
    pub(super) fn keep_main_lock(&self, deadline: Instant) -> Result<(), DbError> {
        let fail = |source| self.io_error("waiting for an exclusive connection", source);
        loop {
            {
                let mut state = self.lock();
                let Some(wal) = state.open.wal_mut().filter(|wal| wal.follows.is_none()) else {
                    return Ok(());
                };
                wal.follows = wal.main_lock.try_hold().map_err(fail)?;
                if wal.follows.is_some() {
                    return Ok(());
                }
            }
            if Instant::now() >= deadline {
                return Err(self.unavailable(
                    "an application holds it exclusively (locking_mode=EXCLUSIVE); close it first",
                ));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}
