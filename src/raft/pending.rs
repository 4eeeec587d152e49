use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::db::{CommitDone, CommitError};
use crate::store::Origin;

/// Proposals of this run whose fate is not known yet.
///
/// Openraft keeps a proposal's responder for as long as it likes (trap 7), so the fate is told from here: applied,
/// refused, or unknown after a time.
#[derive(Default)]
pub(super) struct Pending {
    proposals: Mutex<HashMap<Origin, (CommitDone, Instant)>>,
}

impl Pending {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Origin, (CommitDone, Instant)>> {
        self.proposals.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Notes a proposal before it is made.
    pub fn insert(&self, origin: Origin, done: CommitDone) {
        self.lock().insert(origin, (done, Instant::now()));
    }

    /// Takes a proposal whose fate is about to be told.
    pub fn take(&self, origin: &Origin) -> Option<CommitDone> {
        self.lock().remove(origin).map(|(done, _)| done)
    }

    /// Tells the fate of a proposal, if nobody did before.
    pub fn fail(&self, origin: &Origin, error: CommitError) {
        if let Some(done) = self.take(origin) {
            done(Err(error));
        }
    }

    /// Gives up on proposals older than `age`.
    pub fn expire(&self, age: Duration) {
        let now = Instant::now();
        let old: Vec<Origin> =
            self.lock().iter().filter(|(_, (_, at))| now - *at >= age).map(|(origin, _)| *origin).collect();
        for origin in old {
            self.fail(
                &origin,
                CommitError::Unknown(format!("the log did not answer within {} s", age.as_secs_f32())),
            );
        }
    }

    /// Gives up on all.
    pub fn abandon(&self, why: &str) {
        let all: Vec<Origin> = self.lock().keys().copied().collect();
        all.iter().for_each(|origin| self.fail(origin, CommitError::Unknown(why.to_owned())));
    }
}
