//! Threads for what must not hold up a FUSE thread.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

type Job = Box<dyn FnOnce() + Send>;

/// Runs jobs on threads named `skein-fs-N`; more of them while all are waiting for something.
///
/// Holds: a job starts at once unless [`THREADS_MAX`] jobs are running. A fixed few would be a trap: a job may wait
/// for a lock whose holder waits for another job.
#[derive(Clone)]
pub(super) struct Workers(Arc<Shared>);

/// More jobs than this at once wait for a thread.
const THREADS_MAX: usize = 256;

/// A thread that has had nothing to do for so long ends.
const IDLE_MAX: Duration = Duration::from_secs(10);

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    next: u64,
}

impl Workers {
    /// No threads yet.
    pub fn new() -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), wake: Condvar::new() }))
    }

    /// Runs `job` on another thread. Where no thread can be had at all, it waits for one that is busy.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.0.lock();
        state.jobs.push_back(Box::new(job));
        if state.idle >= state.jobs.len() {
            self.0.wake.notify_one();
        } else if state.threads < THREADS_MAX {
            state.threads += 1;
            state.next += 1;
            let name = format!("skein-fs-{}", state.next);
            drop(state);
            let shared = self.0.clone();
            if let Err(error) = std::thread::Builder::new().name(name).spawn(move || shared.work()) {
                tracing::error!(
                    "cannot start a thread for file operations: {error}; raise the limit of processes"
                );
                self.0.lock().threads -= 1;
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn work(&self) {
        let _leave = Leave(self);
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let (woken, timeout) =
                self.wake.wait_timeout(state, IDLE_MAX).unwrap_or_else(|poisoned| poisoned.into_inner());
            state = woken;
            state.idle -= 1;
            if timeout.timed_out() && state.jobs.is_empty() {
                return;
            }
        }
    }
}

/// Counts a thread out also when its job panicked.
struct Leave<'a>(&'a Shared);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.lock().threads -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_job_that_waits_for_later_jobs_does_not_hold_them_up() {
        let workers = Workers::new();
        let (done, all_done) = mpsc::channel();
        let mut senders = Vec::new();
        for _ in 0..20 {
            let (sender, receiver) = mpsc::channel::<()>();
            senders.push(sender);
            let done = done.clone();
            workers.run(move || {
                let _ = receiver.recv();
                done.send(()).unwrap();
            });
        }
        let release = move || drop(senders);
        workers.run(release);
        for _ in 0..20 {
            all_done.recv_timeout(Duration::from_secs(10)).unwrap();
        }
    }

    #[test]
    fn a_job_that_panics_takes_no_thread_away() {
        let workers = Workers::new();
        let (sender, receiver) = mpsc::channel();
        workers.run(|| panic!("on purpose"));
        workers.run(move || sender.send(()).unwrap());
        receiver.recv_timeout(Duration::from_secs(10)).unwrap();
    }
}
