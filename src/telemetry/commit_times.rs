use std::time::Instant;

use metrics::histogram;

use super::metrics::{CAPTURE_SECONDS, COMMIT_SECONDS, QUORUM_SECONDS};
use super::traces::{self, Part};
use crate::db::CaptureTime;
use crate::store::Change;
use crate::types::LogIndex;

/// When a commit of this node reached which point of its way.
#[derive(Clone, Copy, Debug)]
pub struct CommitTimes {
    capture: Option<CaptureTime>,
    proposed: Instant,
    submitted: Option<Instant>,
}

impl CommitTimes {
    /// It is proposed now.
    pub fn propose(capture: Option<CaptureTime>) -> Self {
        Self { capture, proposed: Instant::now(), submitted: None }
    }

    /// Raft has it now.
    pub fn submit(&mut self) {
        self.submitted = Some(Instant::now());
    }

    /// It is applied: a quorum had it at `decided`, this node's own log at `appended`, where that is known. Fills the
    /// distributions, and makes a trace of it where traces are wanted.
    pub fn record(&self, index: LogIndex, change: &Change, appended: Option<Instant>, decided: Instant) {
        let done = Instant::now();
        let begun = self.capture.map_or(self.proposed, |capture| capture.begun);
        if let Some(capture) = &self.capture {
            histogram!(CAPTURE_SECONDS).record((capture.ended - capture.begun).as_secs_f64());
        }
        histogram!(COMMIT_SECONDS).record((done - begun).as_secs_f64());
        let Some(submitted) = self.submitted else { return };
        histogram!(QUORUM_SECONDS).record((decided - submitted).as_secs_f64());
        if !traces::wanted() {
            return;
        }
        let parts = [
            self.capture.map(|capture| Part { name: "capture", begun: capture.begun, ended: capture.ended }),
            Some(Part { name: "propose", begun: self.proposed, ended: submitted }),
            appended.map(|appended| Part { name: "append", begun: submitted, ended: appended }),
            Some(Part { name: "quorum", begun: submitted, ended: decided }),
            Some(Part { name: "apply", begun: decided, ended: done }),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        traces::commit(index, change, Part { name: "commit", begun, ended: done }, &parts);
    }
}
