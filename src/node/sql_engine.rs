//! The process that executes SQL for this node.

use std::io;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::process::Command;
use tokio::sync::Mutex;

use super::child::Supervised;
use crate::sql::engine::{ENGINE_COMMAND, EngineOptions};

/// How long it has to end once nobody is connected to it.
const END_MAX: Duration = Duration::from_secs(1);
/// This program, also where its file has been replaced meanwhile.
const PROGRAM: &str = "/proc/self/exe";

/// The process, started when it is needed.
pub(super) struct SqlEngine {
    options: EngineOptions,
    state: Mutex<State>,
}

enum State {
    /// Not yet, or it has ended.
    Running(Option<Box<Supervised>>),
    /// The node ends: none is started any more.
    Stopped,
}

impl SqlEngine {
    /// Not started yet.
    pub(super) fn new(options: EngineOptions) -> Self {
        Self { options, state: Mutex::new(State::Running(None)) }
    }

    /// Starts it, and gives this end of its connection; one that is there before is ended.
    ///
    /// # Errors
    /// Where it cannot be started, or the node ends.
    pub(super) async fn start(&self) -> io::Result<UnixStream> {
        let mut state = self.state.lock().await;
        let State::Running(current) = &mut *state else {
            return Err(io::Error::other("this node is ending"));
        };
        if let Some(mut old) = current.take() {
            old.signal(Signal::SIGKILL);
            // It is gone either way.
            let _code = old.wait().await;
        }
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let options = serde_json::to_string(&self.options).map_err(io::Error::other)?;
        let mut command = Command::new(PROGRAM);
        // It needs none of the node's secrets.
        command.args([ENGINE_COMMAND, &options]).env_clear().current_dir("/");
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs))).kill_on_drop(true);
        let started = Supervised::start(command, PROGRAM, None).await;
        *current = Some(Box::new(started.map_err(io::Error::other)?));
        Ok(ours)
    }

    /// Ends it, once nobody is connected to it.
    pub(super) async fn stop(&self) {
        let before = std::mem::replace(&mut *self.state.lock().await, State::Stopped);
        let State::Running(Some(mut child)) = before else { return };
        if tokio::time::timeout(END_MAX, child.wait()).await.is_err() {
            child.signal(Signal::SIGKILL);
            // It is gone either way.
            let _code = child.wait().await;
        }
    }
}
