//! The write lease of an application: this node is primary, and is not moved as planned, for as long as it is held.
//!
//! It is a wish about planned moves only. Who may write is decided by Raft alone, so a hold that is lost, forgotten or in a
//! dead process costs nothing that was acknowledged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::telemetry::metrics::LEASES_HELD;
use crate::types::DbName;

/// What applications of this node hold, and whether the primary is being moved.
#[derive(Clone)]
pub(super) struct Holds {
    state: Arc<Mutex<State>>,
    /// How long a hold counts.
    lasts: Duration,
}

#[derive(Default)]
struct State {
    /// The database, and until when it counts, by a number.
    held: BTreeMap<u64, (DbName, Instant)>,
    next: u64,
    /// Planned moves under way: nobody gets a hold.
    moves: usize,
    /// The node ends.
    ended: bool,
}

/// A planned move is under way until this is dropped.
pub(super) struct Moving(Holds);

/// One hold.
pub(super) struct Held(Holds, u64);

impl Drop for Moving {
    fn drop(&mut self) {
        self.0.lock().moves -= 1;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.lock().held.remove(&self.1);
        metrics::gauge!(LEASES_HELD).decrement(1.0);
    }
}

impl Holds {
    /// Nothing is held; each hold will count for `lasts`.
    pub(super) fn new(lasts: Duration) -> Self {
        Self { state: Arc::default(), lasts }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a planned move of the primary.
    ///
    /// # Errors
    /// Where an application holds it: for which database, and for how long it still counts.
    pub(super) fn begin_move(&self) -> Result<Moving, (DbName, Duration)> {
        let (mut state, now) = (self.lock(), Instant::now());
        let counts = state.held.values().filter(|(_, until)| *until > now).max_by_key(|(_, until)| *until);
        if let Some((db, until)) = counts.filter(|_| !state.ended) {
            return Err((db.clone(), until.duration_since(now)));
        }
        state.moves += 1;
        Ok(Moving(self.clone()))
    }

    /// The node ends: nothing holds the primary here any more.
    pub(super) fn end(&self) {
        self.lock().ended = true;
    }

    /// The databases whose lease is held.
    pub(super) fn databases(&self) -> Vec<DbName> {
        let mut databases: Vec<_> = self.lock().held.values().map(|(db, _)| db.clone()).collect();
        databases.sort_unstable();
        databases.dedup();
        databases
    }

    /// One more hold, unless the primary is being moved.
    pub(super) fn enter(&self, db: &DbName) -> Option<Held> {
        let mut state = self.lock();
        if state.moves > 0 || state.ended {
            return None;
        }
        let number = state.next;
        state.next += 1;
        state.held.insert(number, (db.clone(), Instant::now() + self.lasts));
        metrics::gauge!(LEASES_HELD).increment(1.0);
        Some(Held(self.clone(), number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn db() -> DbName {
        DbName::new("app.db").unwrap()
    }

    #[test]
    fn the_primary_does_not_move_while_it_is_held_and_is_not_held_while_it_moves() {
        let holds = Holds::new(Duration::from_secs(60));
        let (one, other) = (holds.enter(&db()).unwrap(), holds.enter(&db()).unwrap());
        assert_eq!(holds.databases(), [db()]);
        drop(one);
        assert_eq!(holds.begin_move().err().unwrap().0, db());
        drop(other);
        let moving = holds.begin_move().ok().unwrap();
        assert!(holds.enter(&db()).is_none());
        drop(moving);
        assert!(holds.enter(&db()).is_some());
    }

    #[test]
    fn a_hold_whose_time_is_over_and_those_of_a_node_that_ends_do_not_count() {
        let holds = Holds::new(Duration::ZERO);
        let _late = holds.enter(&db()).unwrap();
        assert!(holds.begin_move().is_ok());
        let holds = Holds::new(Duration::from_secs(60));
        let _held = holds.enter(&db()).unwrap();
        assert!(holds.begin_move().is_err());
        holds.end();
        assert!(holds.begin_move().is_ok() && holds.enter(&db()).is_none());
    }
}
