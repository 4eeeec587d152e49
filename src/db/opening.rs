//! Files of the own mount are opened on a thread of their own.
//!
//! The kernel keeps a directory locked for as long as a removal, a rename or a creation in it waits for this daemon, and
//! that may wait for the very lock with which somebody here opens a file of the directory. So the opening is given up after
//! a while; the thread that hangs in it ends when the directory is free.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

/// The thread that opens files of one database; there is never more than one, whatever is tried meanwhile.
#[derive(Debug, Default)]
pub(super) struct Opening {
    /// Disconnected when the thread of an opening that was given up has ended.
    given_up: Mutex<Option<mpsc::Receiver<()>>>,
}

/// Tells an opening that nobody waits for it any more.
#[derive(Debug, Clone, Default)]
pub(super) struct GivenUp(Arc<AtomicBool>);

impl GivenUp {
    /// # Errors
    /// Where nobody waits.
    pub fn check(&self) -> io::Result<()> {
        match self.0.load(Ordering::SeqCst) {
            true => Err(io::Error::other("nobody waits for it any more")),
            false => Ok(()),
        }
    }
}

impl Opening {
    /// What `open` gives, on a thread of its own; `None` where that takes longer than `limit`, the end of an opening that
    /// was given up before included. What a thread opens that was given up is closed: it may be of a file that is gone.
    pub fn within<T: Send + 'static>(
        &self,
        limit: Duration,
        open: impl FnOnce(&GivenUp) -> io::Result<T> + Send + 'static,
    ) -> Option<io::Result<T>> {
        let deadline = Instant::now() + limit;
        let mut given_up = self.given_up.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(before) = &*given_up
            && before.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout)
        {
            return None;
        }
        *given_up = None;
        let (sender, receiver) = mpsc::channel();
        let (alive, ended) = mpsc::channel();
        let waited_for = GivenUp::default();
        let told = waited_for.clone();
        let work = move || {
            // Nobody may wait any more.
            let _ = sender.send(open(&told));
            drop(alive);
        };
        if let Err(error) = std::thread::Builder::new().name("skein-open".into()).spawn(work) {
            return Some(Err(error));
        }
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(opened) => Some(opened),
            Err(mpsc::RecvTimeoutError::Disconnected) => Some(Err(io::Error::other("its thread ended"))),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                waited_for.0.store(true, Ordering::SeqCst);
                *given_up = Some(ended);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn one_thread_at_a_time_opens_and_what_was_given_up_is_never_handed_out() {
        let opening = Opening::default();
        let begun = Arc::new(AtomicUsize::new(0));
        let (free, locked) = mpsc::channel::<()>();
        let first = begun.clone();
        let hangs = move |_: &GivenUp| {
            first.fetch_add(1, Ordering::SeqCst);
            let _ = locked.recv();
            Ok("of before")
        };
        assert!(opening.within(Duration::from_millis(20), hangs).is_none());
        for _ in 0..20 {
            let again = begun.clone();
            let more = move |_: &GivenUp| {
                again.fetch_add(1, Ordering::SeqCst);
                Ok("too early")
            };
            assert!(opening.within(Duration::from_millis(1), more).is_none());
        }
        assert_eq!(begun.load(Ordering::SeqCst), 1, "a thread for each that tries");
        drop(free);
        let opened = opening.within(Duration::from_secs(20), |_| Ok("of now"));
        assert_eq!(opened.unwrap().unwrap(), "of now");
        let told = opening.within(Duration::from_secs(20), |given_up: &GivenUp| given_up.check());
        assert!(told.unwrap().is_ok());
    }
}
