use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Ends a statement that takes too long, or that nobody waits for any more.
///
/// SQLite asks every few thousand steps, and between two attempts to get a lock.
#[derive(Debug, Default)]
pub(super) struct Interrupt {
    abandoned: AtomicBool,
    until: Mutex<Option<Instant>>,
}

/// Why a statement is ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reason {
    /// Its client has gone.
    Abandoned,
    /// Its time is over.
    Late,
}

impl Interrupt {
    /// Gives what comes next this much time.
    pub fn arm(&self, limit: Duration) {
        *self.until() = Some(Instant::now() + limit);
    }

    /// Whether the client has gone.
    pub fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// The client has gone.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    /// Whether it is time to end.
    pub fn due(&self) -> Option<Reason> {
        if self.is_abandoned() {
            return Some(Reason::Abandoned);
        }
        self.until().is_some_and(|until| until <= Instant::now()).then_some(Reason::Late)
    }

    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.until.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Abandons what is under way when it is dropped, as a request's future is when its client goes.
pub(super) struct AbandonOnDrop(Option<Arc<Interrupt>>);

impl AbandonOnDrop {
    /// For what this interrupt ends.
    pub fn new(interrupt: Arc<Interrupt>) -> Self {
        Self(Some(interrupt))
    }

    /// It has ended by itself.
    pub fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for AbandonOnDrop {
    fn drop(&mut self) {
        if let Some(interrupt) = &self.0 {
            interrupt.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_and_the_client_end_a_statement() {
        let interrupt = Arc::new(Interrupt::default());
        assert_eq!(interrupt.due(), None);
        interrupt.arm(Duration::ZERO);
        assert_eq!(interrupt.due(), Some(Reason::Late));
        interrupt.arm(Duration::from_secs(60));
        assert_eq!(interrupt.due(), None);
        AbandonOnDrop::new(interrupt.clone()).done();
        assert_eq!(interrupt.due(), None);
        drop(AbandonOnDrop::new(interrupt.clone()));
        assert_eq!(interrupt.due(), Some(Reason::Abandoned));
    }
}
