//! Undecided: change sets whose fate the log could not tell. Unknown is never success and never silently failure.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::DbError;
use super::commit::{InFlight, Source};
use super::database::{Database, State};
use crate::ltx::ChangeSet;
use crate::types::{Access, LogIndex};

impl Database {
    /// Where entry `index` is the change set of unknown fate: it is history after all. Returns whether it was.
    ///
    /// # Errors
    /// Where the position cannot be moved.
    pub(super) fn commit_undecided(
        self: &Arc<Self>,
        state: &mut State,
        index: LogIndex,
        change: &ChangeSet,
    ) -> Result<bool, DbError> {
        let Some(in_flight) = state.undecided.take() else { return Ok(false) };
        if in_flight.batch.change.range != change.range || in_flight.batch.change.post != change.post {
            // Another entry took its place in history, so it never will be part of it. Published frames of it
            // are cut off when the database is resynced, which the mismatch of this entry brings about.
            self.clear_undecided(state);
            tracing::warn!(db = %self.name(), txid = %in_flight.batch.change.range.max(), "a transaction of unknown fate was not committed");
            return Ok(false);
        }
        match in_flight.source {
            Source::Wal { end, published: true } => {
                self.clear_undecided(state);
                self.adopt(state, &in_flight.batch, index)?;
                self.advance_capture(state, end);
                Ok(true)
            }
            // Its writer was told that it failed, and has taken it back or is about to: apply it like a foreign
            // entry, but not here, because the writer's locks are waited for.
            Source::Wal { published: false, .. } | Source::Journal => {
                state.exclusive = true;
                let change = change.clone();
                // Until then applications wait, as they have since its fate became unknown.
                self.off_thread(Box::new(|_| ()), move |database, done| {
                    done(database.apply_late(index, &change));
                });
                Ok(true)
            }
        }
    }

    fn apply_late(self: &Arc<Self>, index: LogIndex, change: &ChangeSet) -> Result<(), DbError> {
        let held = self.outlast_exclusive_writer();
        let mut state = self.lock();
        let applied = held.as_ref().map_err(DbError::duplicate).map(|_| ()).and_then(|()| {
            let incoming = self.check_incoming(&state, change)?;
            self.write_incoming(&mut state, incoming, index)
        });
        if let Err(error) = &applied {
            state.service.fail(error.to_string());
            tracing::error!(%error, "cannot apply a transaction that turned out to be committed; the database is not served");
        }
        self.clear_undecided(&mut state);
        drop(state);
        drop(held);
        self.end_exclusive();
        applied.and_then(|()| self.set_access())
    }

    /// The log of a new leader has decided, and is applied: what is still undecided is no part of history. Blocking.
    ///
    /// # Errors
    /// Those of [`set_access`](Self::set_access).
    pub fn resolve_undecided(self: &Arc<Self>) -> Result<(), DbError> {
        if !self.has_undecided.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut state = self.lock();
        // A large one is still on its way to being undecided.
        while state.in_flight.is_some()
            && state.undecided.is_none()
            && self.has_undecided.load(Ordering::SeqCst)
        {
            state = state.wait(&self.changed);
        }
        if let Some(in_flight) = &state.undecided {
            tracing::warn!(db = %self.name(), txid = %in_flight.batch.change.range.max(), "a transaction of unknown fate was not committed");
        }
        self.clear_undecided(&mut state);
        drop(state);
        self.set_access()
    }

    /// Raises the fence over a database with an undecided transaction.
    pub(super) fn keep_writers_waiting(self: &Arc<Self>) -> Result<(), DbError> {
        self.set_access().inspect_err(|error| {
            tracing::warn!(db = %self.name(), %error, "cannot fence a database with an undecided transaction; its writers fail instead of waiting");
        })
    }

    /// Whether applications may begin to write: this node is primary, and knows what the last transaction came to.
    pub(super) fn writable(&self) -> bool {
        self.access() == Access::Write
            && !self.shared.is_handing_over()
            && !self.has_undecided.load(Ordering::SeqCst)
    }

    /// Nothing of the database is undecided any more; returns whether something was. The caller sees to the fence.
    pub(super) fn clear_undecided(&self, state: &mut State) -> bool {
        state.undecided = None;
        self.has_undecided.swap(false, Ordering::SeqCst)
    }

    /// Notes a change set as undecided: until the log tells its fate, nothing else of the database is captured, and writers
    /// wait as soon as the one at work is done.
    pub(super) fn set_undecided(&self, state: &mut State, in_flight: InFlight) {
        tracing::warn!(db = %self.name(), txid = %in_flight.batch.change.range.max(), "the fate of a transaction is unknown");
        state.undecided = Some(in_flight);
        self.has_undecided.store(true, Ordering::SeqCst);
    }
}
