//! The way of a captured change set through the log, and what its landing changes here.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use super::attach::Captured;
use super::batch::Batch;
use super::database::{Database, State};
use super::landing::{Effects, Fate};
use super::shared::Moved;
use super::traits::CommitError;
use super::{DbError, Done};
use crate::types::{Access, LogIndex, PageCount};

/// A change set between proposal and its landing.
pub(super) struct InFlight {
    /// What was proposed.
    pub batch: Batch,
    /// Who waits for it.
    pub waiters: Vec<Done>,
    /// What it was captured from.
    pub source: Source,
}

/// Where a change set was captured.
pub(super) enum Source {
    /// The WAL, up to here.
    Wal {
        /// The end of the captured part once it lands.
        end: Captured,
        /// The last commit frame and whether the wal-index already published it.
        published: bool,
    },
    /// The pages written under the rollback journal.
    Journal,
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}

impl Database {
    /// Proposes what was captured. The in_flight is in `state` before the log hears of it; call without the lock.
    pub(super) fn propose(self: &Arc<Self>, change: crate::ltx::ChangeSet) {
        let database = self.clone();
        match self.shared.sink() {
            Some(sink) => sink.commit(vec![change], Box::new(move |fate| database.landed(fate))),
            None => self.landed(Err(CommitError::Refused("the log is not open yet".into()))),
        }
    }

    /// Brings the fate of the change set in flight into the state and the files, and says what is to be done without the
    /// lock. Writes a few bytes to files of the data directory and syncs nothing, so Raft's thread may do it.
    pub(super) fn conclude(&self, state: &mut State, fate: Fate) -> Effects {
        let Some(InFlight { batch, waiters, source }) = state.in_flight.take() else {
            return Effects { answer: None, moved: None, undecided: false, queued: Vec::new() };
        };
        let timestamp_ms = batch.timestamp_ms;
        let answer = match continues(state, &batch, fate) {
            Ok(index) => self.finalize(state, batch, source, index),
            Err(error) => Err(self.give_up(state, batch, source, error)),
        };
        let queued = std::mem::take(&mut state.queued);
        let moved = answer.is_ok().then(|| self.moved(state, timestamp_ms));
        Effects { answer: Some((waiters, answer)), moved, undecided: state.undecided.is_some(), queued }
    }

    pub(super) fn moved(&self, state: &State, timestamp_ms: i64) -> Moved {
        self.timestamp_ms.store(timestamp_ms, Ordering::Relaxed);
        Moved {
            pos: state.pos,
            index: state.index,
            pages: state.pages,
            page_size: state.page_size,
            timestamp_ms,
        }
    }

    /// Makes a change set that is in the log the database's position.
    fn finalize(
        &self,
        state: &mut State,
        batch: Batch,
        source: Source,
        index: LogIndex,
    ) -> Result<(), DbError> {
        if let Err(error) = self.settle(state, batch, source, index) {
            // It is history, and the files here lack it: redo at the next start brings it.
            tracing::error!(%error, "a committed transaction cannot be written; the database is not served until the node is started again");
            state.service.fail(format!(
                "a committed transaction could not be written ({error}); start the node again"
            ));
            return Err(error);
        }
        Ok(())
    }

    fn settle(
        &self,
        state: &mut State,
        batch: Batch,
        source: Source,
        index: LogIndex,
    ) -> Result<(), DbError> {
        self.adopt(state, &batch, index)?;
        match source {
            Source::Wal { end, published } => {
                self.advance_capture(state, end);
                if let Some(wal) = state.open.wal_mut() {
                    wal.unpublished_change = (!published).then_some(batch.change);
                }
                Ok(())
            }
            Source::Journal => self.install_overlay(state),
        }
    }

    /// Writes the new checksums and moves the position.
    pub(super) fn adopt(&self, state: &mut State, batch: &Batch, index: LogIndex) -> Result<(), DbError> {
        let change = &batch.change;
        let fail = |source| self.io_error("writing page checksums", source);
        state.checksums.set_pending(index).map_err(fail)?;
        if batch.reset {
            state.checksums.truncate(PageCount::ZERO).map_err(fail)?;
        }
        state.checksums.set(&batch.checksums).map_err(fail)?;
        state.checksums.truncate(change.commit).map_err(fail)?;
        state.pos = change.pos();
        state.index = index;
        state.pages = change.commit;
        state.page_size = change.page_size;
        state.mode = batch.mode.or(state.mode);
        state.touched_by(index);
        if let Some(point) = batch.wal_end {
            state.captured = Some(point);
        }
        Ok(())
    }

    pub(super) fn advance_capture(&self, state: &mut State, end: Captured) {
        let Some(wal) = state.open.wal_mut() else { return };
        wal.captured = end;
        wal.synced |= end.unpublished.is_some();
        if end.unpublished.is_some()
            && let Err(error) = wal.pin.hold(&wal.index)
        {
            tracing::warn!(db = %self.name(), %error, "cannot take a read slot");
        }
    }

    /// Takes back what will not be history, as far as it is not yet visible to anyone.
    fn give_up(&self, state: &mut State, batch: Batch, source: Source, error: CommitError) -> DbError {
        let db = self.name().clone();
        match &source {
            Source::Wal { end, published: false } => {
                if let Some(wal) = state.open.wal_mut()
                    && let Err(error) = wal.invalidate_frame(end.frame, batch.change.page_size)
                {
                    state.service.fail(format!("a commit of unknown fate cannot be taken back: {error}"));
                    tracing::error!(db = %self.name(), %error, "cannot invalidate the frame of a failed commit");
                }
            }
            // Published frames stay where they are: captured again later, or set aside when the node steps down.
            Source::Wal { published: true, .. } | Source::Journal => {}
        }
        tracing::warn!(%db, txid = %batch.change.range.max(), %error, "a transaction was not committed");
        if matches!(error, CommitError::Unknown(_)) {
            self.set_undecided(state, InFlight { batch, waiters: Vec::new(), source });
        }
        match error {
            CommitError::Refused(_) if self.access() != Access::Write => DbError::NotPrimary(db),
            CommitError::Refused(why) | CommitError::Unknown(why) => DbError::Unavailable { db, why },
        }
    }
}

/// The fate of a change set, given what the database has become since: where another entry came first (an import, say),
/// nobody applies this one, here or elsewhere.
fn continues(state: &State, batch: &Batch, fate: Fate) -> Fate {
    let index = fate?;
    match batch.change.pre == state.pos.checksum && batch.change.range.min() == state.pos.next_txid() {
        true => Ok(index),
        false => Err(CommitError::Refused(format!("the database had moved to {}", state.pos))),
    }
}

/// One callback that answers many waiters alike.
pub(super) fn all_of(waiters: Vec<Done>) -> Done {
    Box::new(move |answer| answer_all(waiters, answer))
}

/// Gives every waiter the answer; errors are told to each in the same words.
pub(super) fn answer_all(waiters: Vec<Done>, answer: Result<(), DbError>) {
    match answer {
        Ok(()) => waiters.into_iter().for_each(|done| done(Ok(()))),
        Err(error) => waiters.into_iter().for_each(|done| done(Err(error.duplicate()))),
    }
}
