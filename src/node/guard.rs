//! A second process that lets go of the mount of a daemon that was killed.
//!
//! A killed daemon may have a request to its own mount under way (opening a database's files, writing an applied
//! page). Once its FUSE threads have taken such a request and died, the kernel waits for an answer that cannot come,
//! and the dying thread itself keeps the device open that would end the wait: the process never goes, and holds its
//! data directory. Aborting the connection from outside ends it. Source: fs/fuse/dev.c, `request_wait_answer`.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, gettid, setsid};

use super::NodeError;
use crate::mount::abort_dead_mount;

/// Name of the hidden command the second process runs.
pub const GUARD_COMMAND: &str = "guard-mount";

/// The second process; ended when dropped, which must come before unmounting.
#[derive(Debug)]
pub(super) struct Guard(Child);

impl Guard {
    /// Starts the process. It shares `lock`, the lock of the data directory, so that nobody can mount anew while it
    /// is at work, and `root`, the mount's directory, so that the dead mount stays in its place: without it
    /// applications would write into the empty directory below. Call on the main thread: the kernel tells of a
    /// parent's death when the thread that started the child ends.
    ///
    /// # Errors
    /// Where this program cannot be started again.
    pub(super) fn start(
        lock: File,
        root: File,
        mount_point: &Path,
        connection: u64,
    ) -> Result<Self, NodeError> {
        let failed =
            |why: String| NodeError::System(format!("starting the process that guards the mount: {why}"));
        if gettid() != Pid::this() {
            return Err(failed("not on the main thread".into()));
        }
        let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
        let arguments: [OsString; 4] = [
            GUARD_COMMAND.into(),
            std::process::id().to_string().into(),
            connection.to_string().into(),
            mount_point.into(),
        ];
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::from(lock))
            .stdout(Stdio::from(root))
            .current_dir("/")
            .spawn();
        child.map(Self).map_err(|error| failed(error.to_string()))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Where it has ended already there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the second process does: waits until the process `parent` has died, then aborts the connection its mount has
/// left behind. Runs on a process of one thread.
///
/// # Errors
/// Where the kernel refuses to tell of the death, or to abort.
pub fn guard_mount(parent: i32, connection: u64, mount_point: &Path) -> Result<(), NodeError> {
    let failed = |error: nix::errno::Errno| NodeError::System(format!("guarding the mount: {error}"));
    // A group of its own: Ctrl-C on a terminal is for the daemon.
    setsid().map_err(failed)?;
    let told = SigSet::from_iter([Signal::SIGUSR1]);
    let blocked = SigSet::from_iter([Signal::SIGUSR1, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    blocked.thread_block().map_err(failed)?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGUSR1).map_err(failed)?;
    // The parent may have died before the request was in place.
    if Pid::parent() == Pid::from_raw(parent) {
        told.wait().map_err(failed)?;
    }
    let aborted = abort_dead_mount(mount_point, connection);
    aborted.map_err(|error| NodeError::Mount { path: mount_point.to_owned(), why: error.to_string() })
}
