//! Opening and closing: when the daemon begins to take part in a database, and when it lets go of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Done;
use super::database::{Database, State};
use super::opened::{Opened, WalClients};
use super::roles::Wait;
use crate::types::{Access, JournalMode};

impl Database {
    /// An application opens the database file. Answer the open from `done`.
    ///
    /// On a node that applies the log the daemon attaches to a WAL database first, so that it is never alone with the
    /// file; on the primary when the wal-index is opened.
    pub fn app_opened(self: &Arc<Self>, done: Done) {
        if let Some(mut state) = self.try_lock()
            && !state.exclusive
            && self.may_open_at_once(&state)
        {
            state.handles += 1;
            drop(state);
            return done(Ok(()));
        }
        self.off_thread(done, |database, done| {
            if let Err(error) = database.wait_for_tail() {
                return done(Err(error));
            }
            let (mut state, answer) = database.attaching(|state| {
                database.may_serve(state).and_then(|()| match state.mode {
                    Some(JournalMode::Wal) if database.access() != Access::Write => database.attach(state),
                    _ => Ok(()),
                })
            });
            if answer.is_ok() {
                if !state.in_use_by_applications() {
                    database.complete_file(&mut state);
                }
                state.handles += 1;
                // The next writer would overrun what a dead one left.
                database.publish_for_dead_writer(&mut state);
            }
            let lacks_fence = answer.is_ok() && database.lacks_fence(&state);
            drop(state);
            if lacks_fence && let Err(error) = database.reserve(Wait::No) {
                tracing::warn!(%error, "cannot fence a database; its writers are refused instead of waiting");
            }
            done(answer);
        });
    }

    /// Whether an open has nothing to wait for.
    fn may_open_at_once(&self, state: &State) -> bool {
        let ready = match state.open.wal() {
            Some(wal) => wal.captured.unpublished.is_none() && state.in_use_by_applications(),
            None => state.mode != Some(JournalMode::Wal) || self.access() == Access::Write,
        };
        ready && self.may_serve(state).is_ok() && !self.wants_fence(state) && state.tail.is_none()
    }

    /// Nobody has the database open, and somebody is about to: perhaps a program that knows nothing of the WAL, such as
    /// `cp`. What the WAL still holds is moved into the file as far as possible.
    fn complete_file(&self, state: &mut State) {
        let moved = match self.access() {
            Access::Write => self.detach(state),
            _ => self.backfill(state),
        };
        if let Err(error) = moved {
            tracing::warn!(db = %self.name(), %error, "cannot move the WAL of a closed database into its file");
        }
    }

    /// A descriptor of a WAL database's file is being closed; answer close(2) from `done`, which hears of no error.
    ///
    /// Where it is the last one and its connection did not move the WAL into the file by itself (it was read-only, or
    /// found the daemon's lock in its way), that is done here, so that whoever copies the file next gets all of it.
    pub fn app_closes(self: &Arc<Self>, done: Done) {
        match self.try_lock() {
            Some(state) if !state.open.is_wal() || state.in_use_by_applications_beside_one() => {
                drop(state);
                return done(Ok(()));
            }
            _ => {}
        }
        let same = self.clone();
        let complete: Done = Box::new(move |_| {
            // The answer comes on the log's thread, which does no file work.
            same.off_thread(done, |database, done| {
                if let Err(error) = database.backfill(&mut database.lock()) {
                    tracing::debug!(db = %database.name(), %error, "the file is completed later");
                }
                done(Ok(()));
            });
        });
        self.off_thread(complete, |database, done| database.capture_committed(done));
    }

    /// An application's handle of the database file was released.
    pub fn app_closed(self: &Arc<Self>) {
        self.released(|state| state.handles = state.handles.saturating_sub(1));
    }

    /// A snapshot has ended.
    pub(super) fn snapshot_ended(self: &Arc<Self>) {
        self.released(|state| {
            state.handles = state.handles.saturating_sub(1);
            state.snapshots = state.snapshots.saturating_sub(1);
        });
    }

    fn released(self: &Arc<Self>, count: impl FnOnce(&mut State) + Send + 'static) {
        match self.try_lock() {
            Some(mut state) => {
                count(&mut state);
                self.last_released(&mut state);
            }
            None => self.off_thread(Box::new(|_| ()), move |database, done| {
                let mut state = database.lock();
                count(&mut state);
                database.last_released(&mut state);
                done(Ok(()));
            }),
        }
    }

    /// Waits until no application has the database file open, but not for longer than `limit`. The kernel tells of a
    /// close when close(2) has already returned; who then renames or removes the file must not find it in use.
    pub fn wait_until_closed(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.lock().in_use_by_applications() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn last_released(self: &Arc<Self>, state: &mut State) {
        if state.handles > 0 {
            return;
        }
        self.overlay.rest();
        self.passed_through.store(false, Ordering::SeqCst);
        self.unseen_journal.forget();
        self.log_users.forget();
        state.wal_clients = WalClients::None;
        if let Opened::Rollback(rollback) = &mut state.open {
            rollback.cached = None;
        }
        let Some(watcher) = self.shared.watcher() else { return };
        let left_open = matches!(state.open, Opened::Wal(_) | Opened::LastClosing);
        if self.access() != Access::Write || !left_open {
            return watcher.closed(self);
        }
        // The last application was killed, or another connection was in the way of its checkpoint.
        let again = self.clone();
        let done: Done = Box::new(move |answer| {
            if let (Err(_), Some(watcher)) = (answer, again.shared.watcher()) {
                watcher.closed(&again);
            }
        });
        self.off_thread(done, |database, done| done(database.try_detach()));
    }

    /// An application opens `-wal`, to write where `writes` says so. On a node that applies the log the daemon attaches first.
    ///
    /// A connection that has the database file for itself by then keeps its wal-index in its own memory, see
    /// `exclusive_client`.
    pub fn wal_opened(self: &Arc<Self>, writes: bool, done: Done) {
        self.off_thread(done, move |database, done| {
            let (state, attached) = database.attaching(|state| match state.mode {
                Some(JournalMode::Wal) if database.access() != Access::Write => database.attach(state),
                _ => Ok(()),
            });
            drop(state);
            done(attached.and_then(|()| if writes { database.admit_exclusive_client() } else { Ok(()) }));
        });
    }

    /// An application opens or creates `-shm`: it is about to take part in the WAL, and the daemon does so before it.
    pub fn shm_opened(self: &Arc<Self>, done: Done) {
        self.off_thread(done, |database, done| {
            let (mut state, answer) = database.attaching(|state| match state.mode {
                Some(JournalMode::Wal) => database.attach(state),
                _ => Ok(()),
            });
            let held = state.open.wal_mut().map_or(Ok(()), |wal| wal.hold_dms());
            state.wal_clients = WalClients::Shared;
            drop(state);
            done(answer.and(held.map_err(|source| database.io_error("holding the wal-index", source))));
            database.pass_dms_on_soon();
        });
    }
}

impl State {
    /// Counts a snapshot in.
    pub fn begin_snapshot(&mut self) {
        self.handles += 1;
        self.snapshots += 1;
    }

    /// The same for another handle than the one that is being closed.
    pub fn in_use_by_applications_beside_one(&self) -> bool {
        self.handles > self.snapshots + 1
    }

    /// Whether applications have the database file open.
    pub fn in_use_by_applications(&self) -> bool {
        self.handles > self.snapshots
    }
}
