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

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use nix::unistd::{Pid, gettid};

use super::NodeError;
use super::watch::Word;
use crate::db::{AfterDeath, MountGuard};
use crate::mount::GUARD_COMMAND;

/// The second process. Dropped it ends at once; see [`Guard::leave`].
#[derive(Debug)]
pub(super) struct Guard {
    socket: OwnedFd,
    child: Mutex<Option<Child>>,
}

impl Guard {
    /// Starts the process. It shares `lock`, the lock of the data directory, so that nobody can mount anew while it
    /// is at work, and `root`, the mount's directory, so that the dead mount stays in its place: without it
    /// applications would write into the empty directory below, `device`, so that it hears of a death before they do, and
    /// `record`, where it notes when everything is fenced.
    /// Call on the main thread: the kernel tells of a
    /// parent's death when the thread that started the child ends.
    ///
    /// # Errors
    /// Where this program cannot be started again.
    pub(super) fn start(
        lock: File,
        root: File,
        device: &File,
        record: Option<&File>,
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
        let (socket, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|error| failed(error.to_string()))?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(root))
            .current_dir("/")
            .spawn();
        let child = child.map_err(|error| failed(error.to_string()))?;
        let guard = Self { socket, child: Mutex::new(Some(child)) };
        let held = guard.say(Word::Lock, Some(&lock)).and_then(|()| guard.say(Word::Device, Some(device)));
        let held = held.and_then(|()| record.map_or(Ok(()), |record| guard.say(Word::Record, Some(record))));
        held.map_err(|error| failed(error.to_string()))?;
        Ok(guard)
    }

    fn say(&self, word: Word, file: Option<&File>) -> io::Result<()> {
        let bytes = word.encode();
        let descriptors: Vec<_> = file.iter().map(|file| file.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let control: &[ControlMessage<'_>] = if descriptors.is_empty() { &[] } else { &rights };
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None)?;
        Ok(())
    }

    /// The node ends in order: the process goes on only where applications are still to be fenced, and lets go of
    /// everything else.
    pub(super) fn leave(&self) {
        match self.say(Word::Leave, None) {
            Ok(()) => {
                self.wait_for_answer();
                // Whoever ends this process takes care of the other.
                drop(self.child.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take());
            }
            Err(error) => tracing::warn!(%error, "the process that guards the mount is gone"),
        }
    }
}

impl Guard {
    /// Waits a little until the process has let go of the mount's root, so that it can be unmounted.
    fn wait_for_answer(&self) {
        let mut waited = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut waited, ANSWER_MAX_MS), Ok(1..)) {
            tracing::warn!("the process that guards the mount does not answer");
        }
    }
}

/// How long the process has to let go, in milliseconds.
const ANSWER_MAX_MS: u16 = 2000;

impl MountGuard for Guard {
    fn keep(&self, number: u64, legacy: AfterDeath, file: &File) -> io::Result<()> {
        let word = match legacy {
            AfterDeath::Fence => Word::Fence(number),
            AfterDeath::Cached => Word::Cached(number),
        };
        self.say(word, Some(file))
    }

    fn give_up(&self, number: u64) {
        if let Err(error) = self.say(Word::GiveUp(number), None) {
            tracing::debug!(%error, "the process that guards the mount is gone");
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let child = self.child.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(mut child) = child {
            // Where it has ended already there is nothing to end.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
