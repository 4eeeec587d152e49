use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// Through which writes reach the application of this node: open while the node is primary and stays it.
///
/// A planned move of the primary closes it and waits for the writes inside, so that no application is in the middle of
/// one when the database is fenced.
#[derive(Clone, Debug, Default)]
pub struct WriteGate {
    state: Arc<watch::Sender<GateState>>,
}

/// What the gate knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GateState {
    /// Applications of this node may write.
    pub primary: bool,
    /// Planned moves that are under way.
    pub pauses: usize,
    /// Writes that the application has not begun to answer.
    pub inside: usize,
}

impl GateState {
    /// Whether writes are let in.
    pub fn is_open(&self) -> bool {
        self.primary && self.pauses == 0
    }
}

/// A write inside; it leaves when dropped.
#[derive(Debug)]
pub struct Passage(WriteGate);

/// The gate is closed until this is dropped.
#[derive(Debug)]
pub struct Pause(WriteGate);

impl WriteGate {
    /// Notes whether applications of this node may write.
    pub fn set_primary(&self, primary: bool) {
        self.state.send_if_modified(|state| std::mem::replace(&mut state.primary, primary) != primary);
    }

    /// Closes the gate, and waits until the writes inside have left, for at most `limit`.
    pub async fn pause(&self, limit: Duration) -> Pause {
        self.state.send_modify(|state| state.pauses += 1);
        let pause = Pause(self.clone());
        let mut states = self.state.subscribe();
        let empty = states.wait_for(|state| state.inside == 0);
        if tokio::time::timeout(limit, empty).await.is_err() {
            let inside = self.state.borrow().inside;
            tracing::warn!(
                inside,
                "requests that write do not end; the primary moves without waiting for them"
            );
        }
        pause
    }

    /// Lets a write in, where the gate is open.
    pub fn enter(&self) -> Option<Passage> {
        let mut entered = false;
        self.state.send_if_modified(|state| {
            entered = state.is_open();
            state.inside += usize::from(entered);
            false
        });
        entered.then(|| Passage(self.clone()))
    }

    /// The state as it changes.
    pub fn watch(&self) -> watch::Receiver<GateState> {
        self.state.subscribe()
    }

    /// The state now.
    pub fn now(&self) -> GateState {
        *self.state.borrow()
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.0.state.send_if_modified(|state| {
            state.inside -= 1;
            // Nobody else waits for writes to leave.
            state.pauses > 0
        });
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.pauses -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pause_waits_for_the_writes_inside_and_lets_none_in() {
        let gate = WriteGate::default();
        assert!(gate.enter().is_none(), "not primary");
        gate.set_primary(true);
        let inside = gate.enter().unwrap();
        let mut pausing = Box::pin(gate.pause(Duration::from_secs(60)));
        assert!(futures::poll!(&mut pausing).is_pending());
        assert!(gate.enter().is_none(), "paused");
        drop(inside);
        let pause = pausing.await;
        assert!(!gate.now().is_open());
        drop(pause);
        assert!(gate.now().is_open());
    }

    #[tokio::test]
    async fn a_write_that_does_not_end_does_not_hold_up_the_move_for_ever() {
        let gate = WriteGate::default();
        gate.set_primary(true);
        let _inside = gate.enter().unwrap();
        let _pause = gate.pause(Duration::from_millis(10)).await;
        assert_eq!(gate.now(), GateState { primary: true, pauses: 1, inside: 1 });
    }
}
