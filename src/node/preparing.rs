//! `exec.before`: what is done once for each release of the application, on the primary, before it starts anywhere.
//!
//! Nothing of it is on disk: a node that has started its application of a release knows that this was done, and whoever is
//! primary is asked. So it is done again where all nodes of a release have ended, and must bear that.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Settings;
use crate::store::{ClusterControl, Preparation};
use crate::types::{NodeName, Role};

/// What is known of it on this node.
#[derive(Clone)]
pub(super) struct Preparing {
    state: Arc<Mutex<State>>,
    /// This node, where it can become primary.
    voter: Option<NodeName>,
}

struct State {
    known: Preparation,
    running: bool,
}

/// It is being done here until this is dropped: the primary does not move meanwhile, as far as anybody can choose.
pub(super) struct UnderWay(Preparing);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.lock().running = false;
    }
}

impl Preparing {
    /// Nothing is done yet, unless there is nothing to do.
    pub(super) fn of(settings: &Settings) -> Self {
        let exec = &settings.exec;
        let known = Preparation { release: exec.release.clone(), done: exec.before.is_empty() };
        let voter = (settings.role == Role::Voter).then(|| settings.name.clone());
        Self { state: Arc::new(Mutex::new(State { known, running: false })), voter }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this node knows.
    pub(super) fn now(&self) -> Preparation {
        self.lock().known.clone()
    }

    /// It has been done, here or elsewhere.
    pub(super) fn done(&self) {
        self.lock().known.done = true;
    }

    /// It begins here.
    pub(super) fn begin(&self) -> UnderWay {
        self.lock().running = true;
        UnderWay(self.clone())
    }

    /// The release it is being done for here.
    pub(super) fn under_way(&self) -> Option<String> {
        let state = self.lock();
        state.running.then(|| state.known.release.clone())
    }

    /// Asks the primary whether it has been done for this node's release. A voter whose primary is of another release
    /// becomes primary itself, so that it can do it.
    ///
    /// # Errors
    /// What is waited for.
    pub(super) async fn ask(&self, control: Option<Arc<dyn ClusterControl>>) -> Result<(), String> {
        let control = control.ok_or("the cluster is not known yet")?;
        let theirs = control.preparation().await.map_err(|error| error.to_string())?;
        let ours = self.now().release;
        if theirs.release == ours {
            return match theirs.done {
                true => {
                    self.done();
                    Ok(())
                }
                false => Err(format!("the primary has not ended exec.before of release {ours:?}")),
            };
        }
        let other = format!("the primary is of release {:?} and this node of {ours:?}", theirs.release);
        let Some(own) = self.voter.clone() else {
            return Err(format!("{other}: a voter of this release has to become primary"));
        };
        tracing::info!("{other}: taking over, to run exec.before");
        let moved = control.hand_off(Some(own)).await;
        moved.map_err(|error| format!("{other}, and cannot take over: {error}"))?;
        Err("this node is about to be primary".into())
    }
}
