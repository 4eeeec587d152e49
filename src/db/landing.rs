//! The end of a change set's way through the log, on whatever thread its fate is told.
//!
//! Raft's thread and FUSE threads tell it, and neither may wait for a database's lock. Where that is taken, or much is to
//! be copied, the landing is passed on: small ones to one thread that goes round those it could not land yet.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use super::DbError;
use super::Done;
use super::batch::INLINE_BYTES_MAX;
use super::commit::{all_of, answer_all};
use super::database::Database;
use super::shared::Moved;
use super::traits::CommitError;
use super::view::StateLock;
use crate::io::watchdog;
use crate::types::LogIndex;

/// What became of a proposed change set.
pub(super) type Fate = Result<LogIndex, CommitError>;

/// What is to be done once a change set has landed and the lock is let go, in the order of these fields.
pub(super) struct Effects {
    /// Who is told what, first of all: these have waited long enough, the others have threads to wake.
    pub answer: Option<(Vec<Done>, Result<(), DbError>)>,
    /// The database has moved on.
    pub moved: Option<Moved>,
    /// The fate of the change set is unknown: writers must wait until it is known.
    pub undecided: bool,
    /// Who waits for the next capture.
    pub queued: Vec<Done>,
}

/// A change set that could not land at once.
pub(super) struct Parked {
    database: Arc<Database>,
    fate: Fate,
}

/// The thread that lands what could not land at once.
#[derive(Default)]
pub(super) struct Landings(OnceLock<mpsc::Sender<Parked>>);

/// How long a lock that was taken is left alone: its holder may be waiting for a file of the mount.
const RETRY: Duration = Duration::from_micros(500);

/// That a landing is under way elsewhere, for those who apply later entries and those who ask what the files lack.
#[derive(Debug, Default)]
pub(super) struct UnderWay(AtomicU64);

impl UnderWay {
    const NONE: u64 = 0;
    /// Of a change set that is in no log.
    const WITHOUT_INDEX: u64 = u64::MAX;

    fn begin(&self, fate: &Fate) {
        let index = fate.as_ref().map_or(Self::WITHOUT_INDEX, |index| index.get());
        self.0.store(index, Ordering::SeqCst);
    }

    fn end(&self) {
        self.0.store(Self::NONE, Ordering::SeqCst);
    }

    /// Whether there is one.
    pub fn is_some(&self) -> bool {
        self.0.load(Ordering::SeqCst) != Self::NONE
    }

    /// The entry that is landing.
    pub fn index(&self) -> Option<LogIndex> {
        let index = self.0.load(Ordering::SeqCst);
        (index != Self::NONE && index != Self::WITHOUT_INDEX).then(|| LogIndex::new(index))
    }
}

impl Landings {
    fn park(&self, parked: Parked) {
        let sender = self.0.get_or_init(|| {
            let (sender, receiver) = mpsc::channel();
            if let Err(error) = std::thread::Builder::new().name("skein-land".into()).spawn(|| run(receiver))
            {
                tracing::error!(%error, "no thread for commits whose database is busy");
            }
            sender
        });
        if let Err(mpsc::SendError(parked)) = sender.send(parked) {
            // No thread: whoever told the fate waits after all.
            let Parked { database, fate } = parked;
            let state = database.lock();
            database.land(state, fate);
        }
    }
}

fn run(parked: mpsc::Receiver<Parked>) {
    let mut waiting: Vec<Parked> = Vec::new();
    loop {
        let next = match waiting.is_empty() {
            true => parked.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
            false => parked.recv_timeout(RETRY),
        };
        match next {
            Ok(parked) => waiting.push(parked),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) if waiting.is_empty() => return,
            Err(mpsc::RecvTimeoutError::Disconnected) => std::thread::sleep(RETRY),
        }
        // Never waited for: what one of them waits for may be another one's answer.
        let mut still = Vec::new();
        let _call = watchdog::begin("landing commits");
        for Parked { database, fate } in waiting {
            let state = database.try_lock();
            match state {
                Some(state) => database.land(state, fate),
                None => still.push((database.clone(), fate)),
            }
        }
        waiting = still.into_iter().map(|(database, fate)| Parked { database, fate }).collect();
    }
}

impl Database {
    /// Hears the fate of the change set in flight; waits for nothing, so on any thread.
    pub(crate) fn landed(self: &Arc<Self>, fate: Fate) {
        let _call = watchdog::begin("landing a commit");
        // Raft's thread must not copy much.
        let large = self.overlay.staged_bytes() > INLINE_BYTES_MAX;
        if !large && let Some(state) = self.lock_at_once() {
            return self.land(state, fate);
        }
        // Whoever decides undecided change sets, applies later entries or asks how far the files are must wait for it.
        let undecided = matches!(fate, Err(CommitError::Unknown(_)));
        self.has_undecided.fetch_or(undecided, Ordering::SeqCst);
        self.landing.begin(&fate);
        if !large {
            return self.shared.landings.park(Parked { database: self.clone(), fate });
        }
        self.off_thread(Box::new(|_| ()), move |database, done| {
            let state = database.lock();
            database.land(state, fate);
            done(Ok(()));
        });
    }

    /// Lands it, and does what follows.
    fn land(self: &Arc<Self>, mut state: StateLock<'_>, fate: Fate) {
        let effects = self.conclude(&mut state, fate);
        // Told with the lock held: from here on the state speaks for itself.
        self.landing.end();
        drop(state);
        self.changed.notify_all();
        let Effects { answer, moved, undecided, queued } = effects;
        if let Some((waiters, answer)) = answer {
            answer_all(waiters, answer);
        }
        if let Some(moved) = moved {
            (self.shared.observer)(self, moved);
        }
        if undecided {
            self.off_thread(Box::new(|_| ()), |database, done| done(database.keep_writers_waiting()));
        }
        if !queued.is_empty() {
            // Reading and encoding is for neither of these threads.
            self.off_thread(all_of(queued), |database, done| database.capture_wal(Some(done)));
        }
    }

    /// Waits until no landing is under way on another thread.
    pub(super) fn wait_landed(&self) {
        if !self.landing.is_some() {
            return;
        }
        let mut state = self.lock();
        while self.landing.is_some() {
            state = state.wait(&self.changed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_landing_elsewhere_is_known_by_its_entry_until_it_is_over() {
        let under_way = UnderWay::default();
        assert!(!under_way.is_some());
        under_way.begin(&Ok(LogIndex::new(7)));
        assert_eq!((under_way.is_some(), under_way.index()), (true, Some(LogIndex::new(7))));
        under_way.begin(&Err(CommitError::Refused("no".into())));
        assert_eq!((under_way.is_some(), under_way.index()), (true, None));
        under_way.end();
        assert!(!under_way.is_some() && under_way.index().is_none());
    }
}
