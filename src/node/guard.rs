//! A second process that watches over the mount of a daemon that dies, and over its applications.
//!
//! A killed daemon may have a request to its own mount under way (opening a database's files, writing an applied
//! page). Once its FUSE threads have taken such a request and died, the kernel waits for an answer that cannot come,
//! and the dying thread itself keeps the device open that would end the wait: the process never goes, and holds its
//! data directory. Aborting the connection from outside ends it. Source: fs/fuse/dev.c, `request_wait_answer`.
//!
//! Passed-through files outlive the daemon, and with its process the fences go: applications would write what no log
//! captures. So the second process has a duplicate of each fence's open file, takes the write locks when the daemon
//! dies, and keeps them until no application uses the mount any more. And what a transaction under a rollback journal
//! has written stays in the kernel's cache, while its journal cannot be found any more: the second process empties the
//! cache. It holds the mount's device, so that applications hear of the death after that.
//!
//! A daemon that is stopped (SIGSTOP, a debugger) does not fence itself when its lease ends. The second process knows the end
//! of the lease, and raises the fence then.
//!
//! Should the second process itself end, whoever ended it, another one is started, and told everything again.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use nix::unistd::Pid;

use super::NodeError;
use super::watch::Word;
use crate::db::{AfterDeath, MountGuard};
use crate::io::{SharedDeadline, fault};
use crate::mount::{GUARD_COMMAND, Mount};

/// The second process. Dropped it ends at once; see [`Guard::leave`].
pub(super) struct Guard {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What a second process is started with.
struct Parts {
    /// The lock of the data directory, so that nobody can mount anew while the process is at work.
    lock: File,
    /// The mount's device, so that it hears of a death before applications do.
    device: File,
    /// Where it notes when everything is fenced.
    record: Option<File>,
    /// Until when the daemon may let applications write: the process raises the fence then, where the daemon does not.
    deadline: Arc<SharedDeadline>,
    mount_point: PathBuf,
    connection: u64,
}

struct Shared {
    parts: Parts,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    process: Option<Process>,
    /// What it keeps, for the next one.
    kept: HashMap<u64, (AfterDeath, File)>,
    /// The daemon ends: no other one is started.
    over: bool,
}

struct Process {
    socket: OwnedFd,
    pid: Pid,
}

/// Between two attempts to start the process: at first, and at most.
const START_PAUSE: Duration = Duration::from_millis(100);
const START_PAUSE_MAX: Duration = Duration::from_secs(5);
/// A process that lived for so long was not ended by what it was started with.
const LIVED: Duration = Duration::from_secs(10);

impl Guard {
    /// Starts the process. It shares `lock`, the lock of the data directory, and the mount's directory, so that the dead mount
    /// stays in its place: without it applications would write into the empty directory below.
    ///
    /// # Errors
    /// Where this program cannot be started again.
    pub(super) fn start(lock: File, mount: &Mount) -> Result<Self, NodeError> {
        let failed = |error: io::Error| {
            NodeError::System(format!("starting the process that guards the mount: {error}"))
        };
        let parts = Parts {
            lock,
            device: mount.device().map_err(failed)?,
            record: mount.record().map(File::try_clone).transpose().map_err(failed)?,
            deadline: Arc::new(SharedDeadline::create().map_err(failed)?),
            mount_point: mount.mount_point().to_owned(),
            connection: mount.connection(),
        };
        let shared = Arc::new(Shared { parts, state: Mutex::default(), changed: Condvar::new() });
        let (started, first) = mpsc::channel();
        let watching = shared.clone();
        // The kernel tells the process of this one's death when the thread that started it ends, so that thread lives on.
        let thread = std::thread::Builder::new()
            .name("skein-guard".into())
            .spawn(move || watching.keep_running(&started))
            .map_err(failed)?;
        first.recv().unwrap_or_else(|_| Err(io::Error::other("its thread has ended"))).map_err(failed)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The deadline that the process watches.
    pub(super) fn deadline(&self) -> &Arc<SharedDeadline> {
        &self.shared.parts.deadline
    }

    /// The node ends in order: the process goes on only where applications are still to be fenced, and lets go of
    /// everything else.
    pub(super) fn leave(&self) {
        let process = {
            let mut state = self.shared.state();
            state.over = true;
            state.process.take()
        };
        self.shared.changed.notify_all();
        // Whoever ends this process takes care of the other.
        match process.map(|process| say(&process.socket, Word::Leave, None).map(|()| process)) {
            Some(Ok(process)) => wait_for_answer(&process),
            Some(Err(error)) => tracing::warn!(%error, "the process that guards the mount is gone"),
            None => tracing::warn!("no process guards the mount"),
        }
        // What is unmounted must not be held.
        self.shared.state().kept.clear();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Starts the process, and another one whenever it ends; tells `started` how the first attempt went.
    fn keep_running(&self, started: &mpsc::Sender<io::Result<()>>) {
        let mut pause = START_PAUSE;
        let mut first = true;
        loop {
            let begun = Instant::now();
            match self.start() {
                Ok(mut child) => {
                    if std::mem::take(&mut first) {
                        let _ = started.send(Ok(()));
                    }
                    let ended = child.wait();
                    self.parts.deadline.other_is_gone();
                    if self.state().over {
                        return;
                    }
                    tracing::warn!(
                        ?ended,
                        "the process that guards the mount has ended; starting another one"
                    );
                    self.state().process = None;
                }
                Err(error) if first => {
                    let _ = started.send(Err(error));
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "nobody fences databases should this process die; trying again");
                }
            }
            if begun.elapsed() > LIVED {
                pause = START_PAUSE;
            }
            let waited = self.changed.wait_timeout_while(self.state(), pause, |state| !state.over);
            if waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0.over {
                return;
            }
            pause = START_PAUSE_MAX.min(pause * 2);
        }
    }

    /// Starts the process, and tells it everything.
    fn start(&self) -> io::Result<Child> {
        fault::point("guard_start")?;
        let Parts { lock, device, record, deadline, mount_point, connection } = &self.parts;
        let [memory, set] = deadline.files();
        let arguments: [OsString; 4] = [
            GUARD_COMMAND.into(),
            std::process::id().to_string().into(),
            connection.to_string().into(),
            mount_point.into(),
        ];
        let (socket, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let root = Mount::root_at(mount_point)?;
        // The very program that runs, also where its file has been replaced.
        let mut child = Command::new("/proc/self/exe")
            .args(arguments)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(root))
            .current_dir("/")
            .spawn()?;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        let mut state = self.state();
        let told = say(&socket, Word::Lock, Some(lock))
            .and_then(|()| say(&socket, Word::Device, Some(device)))
            .and_then(|()| record.as_ref().map_or(Ok(()), |record| say(&socket, Word::Record, Some(record))))
            .and_then(|()| say(&socket, Word::Deadline, Some(memory)))
            .and_then(|()| say(&socket, Word::DeadlineSet, Some(set)))
            .and_then(|()| {
                state.kept.iter().try_for_each(|(number, (what, file))| keep(&socket, *number, *what, file))
            });
        if let (Err(_), _) | (_, true) = (&told, state.over) {
            let _ = child.kill();
            let _ = child.wait();
            return told.and(Err(io::Error::other("the node ends")));
        }
        state.process = Some(Process { socket, pid });
        Ok(child)
    }
}

fn say(socket: &OwnedFd, word: Word, file: Option<&File>) -> io::Result<()> {
    let bytes = word.encode();
    let descriptors: Vec<_> = file.iter().map(|file| file.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let control: &[ControlMessage<'_>] = if descriptors.is_empty() { &[] } else { &rights };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

fn keep(socket: &OwnedFd, number: u64, what: AfterDeath, file: &File) -> io::Result<()> {
    let word = match what {
        AfterDeath::Fence => Word::Fence(number),
        AfterDeath::Cached => Word::Cached(number),
    };
    say(socket, word, Some(file))
}

/// Waits a little until the process has let go of the mount's root, so that it can be unmounted.
fn wait_for_answer(process: &Process) {
    let mut waited = [PollFd::new(process.socket.as_fd(), PollFlags::POLLIN)];
    if !matches!(poll(&mut waited, ANSWER_MAX_MS), Ok(1..)) {
        tracing::warn!("the process that guards the mount does not answer");
    }
}

/// How long the process has to let go, in milliseconds.
const ANSWER_MAX_MS: u16 = 2000;

impl MountGuard for Guard {
    fn keep(&self, number: u64, legacy: AfterDeath, file: &File) -> io::Result<()> {
        let mut state = self.shared.state();
        state.kept.insert(number, (legacy, file.try_clone()?));
        // One that has just ended is followed by another, which is told.
        if let Some(process) = &state.process
            && let Err(error) = keep(&process.socket, number, legacy, file)
        {
            tracing::debug!(%error, "the process that guards the mount is gone");
        }
        Ok(())
    }

    fn give_up(&self, number: u64) {
        let mut state = self.shared.state();
        state.kept.remove(&number);
        if let Some(process) = &state.process
            && let Err(error) = say(&process.socket, Word::GiveUp(number), None)
        {
            tracing::debug!(%error, "the process that guards the mount is gone");
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let process = {
            let mut state = self.shared.state();
            // `leave` has been called: the process goes on by itself.
            if std::mem::replace(&mut state.over, true) {
                return;
            }
            state.process.take()
        };
        self.shared.changed.notify_all();
        if let Some(process) = process {
            // Where it has ended already there is nothing to end.
            let _ = kill(process.pid, Signal::SIGKILL);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
