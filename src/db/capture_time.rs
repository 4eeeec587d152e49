//! How long the capture took of the change set that a thread proposes next.
//!
//! Capture and proposal follow one another on one thread, with nothing of another commit in between; so the times need
//! not travel through everything between the two.

use std::cell::Cell;
use std::time::Instant;

/// When a change set was captured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CaptureTime {
    /// The look at the log or the journal began.
    pub begun: Instant,
    /// The change set was complete.
    pub ended: Instant,
}

thread_local! {
    static BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
    static CAPTURED: Cell<Option<CaptureTime>> = const { Cell::new(None) };
}

/// A look for something to capture begins on this thread.
pub(super) fn begin() {
    BEGUN.set(Some(Instant::now()));
}

/// What was begun is captured, and proposed next.
pub(super) fn end() {
    CAPTURED.set(BEGUN.take().map(|begun| CaptureTime { begun, ended: Instant::now() }));
}

/// The times of what this thread proposes now; `None` where it was not captured from a transaction.
pub fn take_capture_time() -> Option<CaptureTime> {
    CAPTURED.take()
}
