//! Capture of rollback-mode transactions whose end no request tells of, see [`UnseenJournal`](super::unseen_journal).
//!
//! Their end is looked for when the database is written next, before anything of the next transaction is staged, and by
//! the watcher of logs a moment after the journal was written.

use std::sync::{Arc, mpsc};

use super::capture_wal::Found;
use super::database::{Database, State};
use super::journal_end::JournalEnd;
use super::{DbError, FileKind};
use crate::io::ofd_lock::{LockKind, is_taken};
use crate::sqlite::lock_bytes;

impl Database {
    /// An application has opened the journal past the daemon, to write it.
    pub fn journal_passed_through(&self) {
        self.unseen_journal.set_passed_through();
    }

    /// Remembers the journal of a transaction that is about to stage its first write, where nothing will tell of its end.
    pub(super) fn begin_unseen_journal(self: &Arc<Self>) {
        let watched = self.unseen_journal.begin(&self.files().path(FileKind::Journal));
        if let Some(watcher) = self.shared.watcher().filter(|_| watched) {
            watcher.watch_journal(self);
        }
    }

    /// Whether the transaction that is staged has ended, as far as its journal tells.
    pub(super) fn journal_has_ended(&self) -> bool {
        let ended = self.unseen_journal.has_ended(&self.files().path(FileKind::Journal));
        ended.unwrap_or_else(|| !self.journal_in_force())
    }

    /// Whether what is staged is a transaction that has ended without a request.
    pub(super) fn has_ended_unseen(&self) -> bool {
        let ended = || self.unseen_journal.has_ended(&self.files().path(FileKind::Journal));
        self.overlay.size().is_some() && ended() == Some(true)
    }

    /// Captures such a transaction before the next one is staged on top of it. Blocking; never with the lock held.
    pub(super) fn finish_unseen_journal(self: &Arc<Self>) -> Result<(), DbError> {
        while self.has_ended_unseen() {
            let (sender, receiver) = mpsc::channel();
            self.capture_unseen_journal(move |answer| {
                // Whoever waits for it is there until it is told.
                let _ = sender.send(answer);
            });
            receiver.recv().unwrap_or_else(|_| Err(self.unavailable("a transaction was not captured")))?;
        }
        Ok(())
    }

    fn capture_unseen_journal(self: &Arc<Self>, told: impl FnOnce(Result<(), DbError>) + Send + 'static) {
        let database = self.clone();
        let done = Box::new(move |answer: Result<(), DbError>| {
            if let Err(error) = &answer {
                tracing::warn!(%error, "a transaction with synchronous=OFF was not committed after it had returned");
                database.unseen_journal_is_lost();
            }
            told(answer);
        });
        self.journal_ends(JournalEnd::Written, done);
    }

    /// What is staged is gone. A connection that keeps the database locked goes on with what it has in its cache, and
    /// would write on top of what never became history.
    fn unseen_journal_is_lost(&self) {
        let state = self.lock();
        let (first, size) = (lock_bytes::SHARED_FIRST, lock_bytes::SHARED_SIZE);
        let mounted = state.open.rollback().and_then(|open| open.mounted.as_ref());
        let exclusive =
            mounted.is_none_or(|file| is_taken(file, LockKind::Shared, first, size).unwrap_or(true));
        self.unseen_journal.set_lost(exclusive);
    }

    /// Refuses the writes of a connection whose last transaction is lost.
    pub(super) fn check_not_lost(&self) -> Result<(), DbError> {
        match self.unseen_journal.is_lost() {
            true => Err(self.unavailable(
                "a transaction that a connection in EXCLUSIVE mode made with synchronous=OFF was not committed; close the connection",
            )),
            false => Ok(()),
        }
    }

    /// The watcher's look at a journal that nobody syncs.
    pub(super) fn capture_journal_tail(self: &Arc<Self>) -> Found {
        let ended = self.unseen_journal.has_ended(&self.files().path(FileKind::Journal));
        match ended.filter(|_| self.overlay.size().is_some()) {
            None => return Found::Nothing,
            Some(false) => return Found::Unpublished,
            Some(true) => {}
        }
        let idle = |state: &State| state.in_flight.is_none() && !state.exclusive;
        if !self.try_lock().is_some_and(|state| idle(&state)) {
            return Found::Busy;
        }
        self.capture_unseen_journal(|_told_in_the_log| ());
        Found::Captured
    }
}
