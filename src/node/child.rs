//! The supervised program: dies with the node, gets its signals, decides its exit code.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::mpsc as std_mpsc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid, setgid, setgroups, setuid};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use super::run_as::RunAs;
use super::{NodeError, systemd};

/// The program while it runs.
pub(super) struct Supervised {
    child: Child,
    /// Ends the thread that is the program's parent; see [`Supervised::spawn`].
    _parent: std_mpsc::Sender<()>,
}

impl Supervised {
    /// Starts the program; it is killed when this process dies, however it dies.
    ///
    /// The kernel sends the death signal when the *thread* that made the child ends, and the runtime's threads come
    /// and go. So a thread of its own makes the child and lives as long as this value.
    ///
    /// # Errors
    /// Where the program is not found or not executable.
    pub(super) async fn spawn(words: &[String], user: Option<&RunAs>) -> Result<Self, NodeError> {
        let Some((program, arguments)) = words.split_first() else {
            return Err(NodeError::Command { command: String::new(), why: "no program is named".into() });
        };
        let mut command = Command::new(program);
        command.args(arguments).kill_on_drop(true);
        systemd::hide_from(&mut command);
        if let Some(user) = user {
            command.env("HOME", &user.home).env("USER", &user.name).env("LOGNAME", &user.name);
        }
        Self::start(command, program, user).await
    }

    /// Starts what `command` says; `program` is its name in errors.
    ///
    /// # Errors
    /// Where it is not found or not executable.
    pub(super) async fn start(
        mut command: Command,
        program: &str,
        user: Option<&RunAs>,
    ) -> Result<Self, NodeError> {
        let failed = |why: String| NodeError::Command { command: program.to_owned(), why };
        die_with_parent(&mut command, user.cloned());
        let (parent, lives) = std_mpsc::channel();
        let (answer, spawned) = oneshot::channel();
        let runtime = tokio::runtime::Handle::current();
        let thread = std::thread::Builder::new().name("skein-child".into()).spawn(move || {
            let _in_runtime = runtime.enter();
            let spawned = command.spawn();
            // With it go this process's copies of the child's files: the other ends see when the child closes its own.
            drop(command);
            // Nobody there to hear it: the node ended meanwhile, and dropping the child kills it.
            let _ = answer.send(spawned);
            let _ended: Result<(), std_mpsc::RecvError> = lives.recv();
        });
        thread.map_err(|error| failed(error.to_string()))?;
        let child = match spawned.await {
            Ok(Ok(child)) => child,
            Ok(Err(error)) => return Err(failed(format!("cannot be run: {error}"))),
            Err(_) => return Err(failed("the thread that runs it ended".into())),
        };
        Ok(Self { child, _parent: parent })
    }

    /// Waits until the program has ended.
    pub(super) async fn wait(&mut self) -> Result<i32, NodeError> {
        let status = self.child.wait().await;
        status.map(exit_code).map_err(|e| NodeError::System(format!("waiting for the command: {e}")))
    }

    /// Sends a signal; none where the program has ended.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok())
            && let Err(errno) = kill(Pid::from_raw(pid), signal)
        {
            tracing::warn!(pid, "sending {signal} to the command: {errno}");
        }
    }
}

/// The exit code a shell would show: the program's, or 128 and the signal that killed it.
fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1)
}

/// Lets the kernel kill the program when its parent dies, and runs it as another user.
#[allow(unsafe_code)]
fn die_with_parent(command: &mut Command, user: Option<RunAs>) {
    let parent = Pid::this();
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure makes plain system calls
    // (setgroups, setgid, setuid, prctl and getppid), allocates nothing, takes no lock, and only reads what it captured;
    // its errors carry a number only.
    unsafe {
        command.pre_exec(move || {
            // The groups first: afterwards it may not. A process that is root already has the user's rights.
            if let Some(user) = user.as_ref().filter(|user| user.uid != geteuid()) {
                setgroups(&user.groups)?;
                setgid(user.gid)?;
                setuid(user.uid)?;
            }
            // A change of the user takes the request back (prctl(2)), so it comes last.
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before the request was in place.
            if Pid::parent() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(ToOwned::to_owned).into()
    }

    #[tokio::test]
    async fn the_exit_code_is_the_programs_or_names_its_signal() {
        assert_eq!(Supervised::spawn(&words("exit 7"), None).await.unwrap().wait().await.unwrap(), 7);
        assert_eq!(Supervised::spawn(&words("kill -9 $$"), None).await.unwrap().wait().await.unwrap(), 137);
        let missing =
            Supervised::spawn(&["/no/such/program".to_owned()], None).await.err().unwrap().to_string();
        assert!(missing.contains("/no/such/program"), "{missing}");
    }

    #[tokio::test]
    async fn signals_reach_the_program() {
        let mut child = Supervised::spawn(&words("exec sleep 60"), None).await.unwrap();
        child.signal(Signal::SIGTERM);
        assert_eq!(child.wait().await.unwrap(), 128 + 15);
    }
}
