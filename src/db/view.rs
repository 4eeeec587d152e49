//! The lock of a database's state, and what may be read of that state without it.
//!
//! Whoever holds the lock may be waiting for a file of the mount, and so for an application or for a quorum. The async
//! runtime, Raft's thread and the thread that raises the fence must not wait for that, so what they need to know is
//! copied to a [`View`] each time the lock is let go.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};

use super::database::State;
use crate::io::watchdog::own_tid;
use crate::types::{JournalMode, LogIndex, PageCount, PageSize, Pos};

/// A database's state as it was when its lock was last let go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct View {
    /// Where it stands.
    pub pos: Pos,
    /// The log entry that brought it there.
    pub index: LogIndex,
    /// The mode its header names; `None` while it is empty.
    pub mode: Option<JournalMode>,
    /// Its page size.
    pub page_size: PageSize,
    /// Its size in pages.
    pub pages: PageCount,
    /// Whether applications have it open.
    pub attached: bool,
    /// Why it is not served, if so.
    pub failed: Option<String>,
}

impl View {
    /// What is to be seen of `state`.
    pub fn of(state: &State) -> Self {
        Self { failed: state.service.failure().map(str::to_owned), ..Self::without_failure(state) }
    }

    fn without_failure(state: &State) -> Self {
        Self {
            pos: state.pos,
            index: state.index,
            mode: state.mode,
            page_size: state.page_size,
            pages: state.pages,
            attached: state.is_open(),
            failed: None,
        }
    }

    /// Takes over what `state` is now; copies the text of a failure only where there is a new one.
    fn update(&mut self, state: &State) {
        let (failed, now) = (self.failed.take(), state.service.failure());
        *self = Self::without_failure(state);
        self.failed = if failed.as_deref() == now { failed } else { now.map(str::to_owned) };
    }
}

/// The lock of a database's state; brings its view up to date when dropped.
pub(super) struct StateLock<'a> {
    state: Option<MutexGuard<'a, State>>,
    view: &'a Mutex<View>,
    holder: &'a AtomicI32,
}

impl<'a> StateLock<'a> {
    /// Around a lock that was just taken; `holder` is told by which thread.
    pub fn new(state: MutexGuard<'a, State>, view: &'a Mutex<View>, holder: &'a AtomicI32) -> Self {
        holder.store(own_tid(), Ordering::Relaxed);
        Self { state: Some(state), view, holder }
    }

    /// Lets the lock go until `changed` is signalled, and takes it again. May wake up without a signal.
    pub fn wait(mut self, changed: &Condvar) -> Self {
        self.publish();
        self.holder.store(0, Ordering::Relaxed);
        self.state = self
            .state
            .take()
            .map(|state| changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner()));
        self.holder.store(own_tid(), Ordering::Relaxed);
        self
    }

    fn publish(&self) {
        if let Some(state) = &self.state {
            self.view.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).update(state);
        }
    }
}

impl Deref for StateLock<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        self.state.as_ref().expect("it is taken out only while this value is being moved or dropped")
    }
}

impl DerefMut for StateLock<'_> {
    fn deref_mut(&mut self) -> &mut State {
        self.state.as_mut().expect("it is taken out only while this value is being moved or dropped")
    }
}

impl Drop for StateLock<'_> {
    fn drop(&mut self) {
        self.publish();
        self.holder.store(0, Ordering::Relaxed);
    }
}
