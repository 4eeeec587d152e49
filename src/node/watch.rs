//! What the process that guards a mount does: see `guard`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, send};
use nix::unistd::{Pid, setsid};

use super::NodeError;
use crate::io::SharedDeadline;
use crate::io::ofd_lock::{LockKind, try_lock};
use crate::mount::{abort_dead_mount, is_used, note_fenced};
use crate::sqlite::lock_bytes;

/// What the daemon says, 9 bytes: a kind and a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Word {
    /// The lock of the data directory comes with it.
    Lock,
    /// The device of the mount comes with it: as long as this process holds it, requests of applications wait after the
    /// daemon's death.
    Device,
    /// The note of what applications have open comes with it.
    Record,
    /// The open file of a fence comes with it.
    Fence(u64),
    /// A file of which the kernel's cache is to be emptied comes with it.
    Cached(u64),
    /// That file is not needed any more.
    GiveUp(u64),
    /// The memory of the deadline that ends the writing of applications comes with it.
    Deadline,
    /// What tells that there is a deadline comes with it.
    DeadlineSet,
    /// The daemon ends in order.
    Leave,
}

impl Word {
    /// Its bytes.
    pub(super) fn encode(self) -> [u8; 9] {
        let (kind, number) = match self {
            Word::Lock => (b'L', 0),
            Word::Device => (b'D', 0),
            Word::Record => (b'R', 0),
            Word::Fence(number) => (b'F', number),
            Word::Cached(number) => (b'C', number),
            Word::GiveUp(number) => (b'G', number),
            Word::Deadline => (b'T', 0),
            Word::DeadlineSet => (b'S', 0),
            Word::Leave => (b'E', 0),
        };
        let mut bytes = [kind; 9];
        bytes[1..].copy_from_slice(&number.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let number = u64::from_be_bytes(bytes.get(1..9)?.try_into().ok()?);
        match bytes[0] {
            b'L' => Some(Word::Lock),
            b'D' => Some(Word::Device),
            b'R' => Some(Word::Record),
            b'F' => Some(Word::Fence(number)),
            b'C' => Some(Word::Cached(number)),
            b'G' => Some(Word::GiveUp(number)),
            b'T' => Some(Word::Deadline),
            b'S' => Some(Word::DeadlineSet),
            b'E' => Some(Word::Leave),
            _ => None,
        }
    }
}

/// Between two looks whether applications still use the mount: nothing tells.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two tries to fence a database whose writer is at work.
const TRY_EVERY: Duration = Duration::from_millis(2);

/// Everything the process holds for the daemon.
#[derive(Default)]
struct Held {
    lock: Option<File>,
    device: Option<File>,
    record: Option<File>,
    fences: HashMap<u64, File>,
    cached: HashMap<u64, File>,
    deadline_memory: Option<File>,
    /// Until when the daemon may let applications write.
    deadline: Option<SharedDeadline>,
}

/// How the daemon ended.
#[derive(PartialEq, Eq)]
enum End {
    Died,
    InOrder,
}

/// Waits until the process `parent` has died or ended, then fences its databases for as long as applications use them.
/// Of a dead one it empties the kernel's cache of what was not committed, and aborts the connection, in this order: until
/// then requests of applications wait. Runs on a process of one thread.
///
/// # Errors
/// Where the kernel refuses to tell of the death, or to abort.
pub fn guard_mount(parent: i32, connection: u64, mount_point: &Path) -> Result<(), NodeError> {
    let failed = |error: nix::errno::Errno| NodeError::System(format!("guarding the mount: {error}"));
    // What it does is due at once, and little.
    crate::io::priority::prefer_this_thread();
    // A group of its own: Ctrl-C on a terminal is for the daemon.
    setsid().map_err(failed)?;
    let told = SigSet::from_iter([Signal::SIGUSR1]);
    let blocked = SigSet::from_iter([Signal::SIGUSR1, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    blocked.thread_block().map_err(failed)?;
    let death = SignalFd::with_flags(&told, SfdFlags::SFD_CLOEXEC).map_err(failed)?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGUSR1).map_err(failed)?;
    let mut held = Held::default();
    // The parent may have died before the request was in place.
    let end = match Pid::parent() == Pid::from_raw(parent) {
        true => held.listen(&death).map_err(failed)?,
        false => End::Died,
    };
    held.fence();
    match end {
        End::Died => {
            held.empty_caches();
            let aborted = abort_dead_mount(mount_point, connection);
            aborted
                .map_err(|error| NodeError::Mount { path: mount_point.to_owned(), why: error.to_string() })?;
        }
        // What is unmounted must not be held.
        End::InOrder => {
            held.device = None;
            held.cached.clear();
            let_go_of_root().map_err(failed)?;
            // The daemon may have lost its patience.
            let _ = send(io::stdin().as_raw_fd(), b"E", MsgFlags::MSG_NOSIGNAL);
        }
    }
    (held.lock, held.device) = (None, None);
    held.stay(connection);
    Ok(())
}

fn let_go_of_root() -> Result<(), nix::errno::Errno> {
    let nothing = File::options()
        .write(true)
        .open("/dev/null")
        .map_err(|error| nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO)))?;
    nix::unistd::dup2_stdout(nothing)
}

impl Held {
    /// Does what the daemon says until it dies or ends.
    fn listen(&mut self, death: &SignalFd) -> Result<End, nix::errno::Errno> {
        let socket = io::stdin();
        loop {
            let pause = self.watch_deadline();
            let mut waited = vec![
                PollFd::new(socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(death.as_fd(), PollFlags::POLLIN),
            ];
            waited.extend(self.deadline.iter().map(|known| PollFd::new(known.when_set(), PollFlags::POLLIN)));
            match poll(&mut waited, pause) {
                Err(nix::errno::Errno::EINTR) => continue,
                polled => polled?,
            };
            let died = waited[1].revents().is_some_and(|events| !events.is_empty());
            let hung_up = waited[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP));
            drop(waited);
            self.deadline.iter().for_each(SharedDeadline::heard);
            while let Some(word) = self.hear(socket.as_fd().as_raw_fd())? {
                if word == Word::Leave {
                    return Ok(End::InOrder);
                }
            }
            if died || hung_up {
                return Ok(End::Died);
            }
        }
    }

    /// Takes the next word, `None` where there is none now.
    fn hear(&mut self, socket: RawFd) -> Result<Option<Word>, nix::errno::Errno> {
        let mut bytes = [0; 9];
        let mut space = nix::cmsg_space!(RawFd);
        let (length, file) = {
            let mut buffers = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
            let received = match recvmsg::<()>(socket, &mut buffers, Some(&mut space), flags) {
                Err(nix::errno::Errno::EAGAIN) => return Ok(None),
                received => received?,
            };
            let mut file = None;
            // Where this process may open no more files the kernel leaves the file out (MSG_CTRUNC): it guards the others.
            for message in received.cmsgs().into_iter().flatten() {
                if let ControlMessageOwned::ScmRights(descriptors) = message {
                    // SAFETY: the kernel has made these descriptors for this message, and nobody else knows of them.
                    let mut owned = descriptors.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
                    file = owned.next().map(File::from);
                }
            }
            (received.bytes, file)
        };
        let Some(word) = Word::decode(&bytes[..length]) else { return Ok(None) };
        match (word, file) {
            (Word::Lock, file) => self.lock = file,
            (Word::Device, file) => self.device = file,
            (Word::Record, file) => self.record = file,
            (Word::Deadline, file) => self.deadline_memory = file,
            (Word::DeadlineSet, Some(file)) => {
                // Where it cannot be mapped this process guards against the daemon's death only.
                self.deadline =
                    self.deadline_memory.take().and_then(|memory| SharedDeadline::open(memory, file).ok());
            }
            (Word::Fence(number), Some(file)) => drop(self.fences.insert(number, file)),
            (Word::Cached(number), Some(file)) => drop(self.cached.insert(number, file)),
            (Word::GiveUp(number), _) => drop((self.fences.remove(&number), self.cached.remove(&number))),
            (Word::Fence(_) | Word::Cached(_) | Word::DeadlineSet | Word::Leave, _) => {}
        }
        Ok(Some(word))
    }

    /// Takes the write locks that can be had now; says whether it has all.
    fn fence(&self) -> bool {
        let take = |work: &File| try_lock(work, LockKind::Exclusive, lock_bytes::WAL_WRITE, 1);
        // What cannot be locked at all is on no mount any more.
        self.fences.values().filter(|work| !take(work).unwrap_or(true)).count() == 0
    }

    /// Raises the fence where the daemon's time is over and it has not said that it has done so itself; says when to look
    /// again. What is locked belongs to the open files that the daemon has, too: once it goes on it is the daemon's.
    fn watch_deadline(&self) -> PollTimeout {
        let Some(deadline) = &self.deadline else { return PollTimeout::NONE };
        if !deadline.take() {
            // Rounded up, so that it has passed then.
            let left = deadline.left().map(|left| left + Duration::from_millis(1));
            return left.map_or(PollTimeout::NONE, |left| left.try_into().unwrap_or(PollTimeout::MAX));
        }
        // Also where it is up everywhere: a thread of the daemon that was in the middle of something may let go of a lock when
        // it goes on, before the daemon has noticed.
        deadline.act(|| {
            self.fence();
        });
        TRY_EVERY.try_into().unwrap_or(PollTimeout::MAX)
    }

    /// Empties the kernel's cache of files that a transaction may have written through it.
    fn empty_caches(&mut self) {
        for file in self.cached.values() {
            // Pages that are being written stay, and count for nothing when the write has failed. Where the kernel
            // refuses there is nothing else to be done.
            let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
        self.cached.clear();
    }

    /// Keeps the fences until nobody is left who could write; notes when all of them are up.
    fn stay(&mut self, connection: u64) {
        if self.fences.is_empty() {
            self.note_fenced();
        }
        while !self.fences.is_empty() && is_used(connection) {
            let all = self.fence();
            if all {
                self.note_fenced();
            }
            std::thread::sleep(if all { LOOK_EVERY } else { TRY_EVERY });
        }
    }

    /// Where that cannot be written the next start waits for all applications.
    fn note_fenced(&mut self) {
        if let Some(record) = self.record.take() {
            let _ = note_fenced(&record, self.fences.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use nix::sys::socket::{AddressFamily, ControlMessage, SockFlag, SockType, sendmsg, socketpair};

    use super::*;

    #[test]
    fn a_file_that_does_not_arrive_ends_no_listening() {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let say = |word: Word, files: &[RawFd]| {
            let rights = [ControlMessage::ScmRights(files)];
            sendmsg::<()>(
                ours.as_raw_fd(),
                &[IoSlice::new(&word.encode())],
                &rights,
                MsgFlags::empty(),
                None,
            )
            .unwrap();
        };
        let one = File::open("/dev/null").unwrap();
        // More than one message has room for: the kernel cuts them off, as at the limit of open files.
        say(Word::Fence(1), &[one.as_raw_fd(); 9]);
        say(Word::Fence(2), &[one.as_raw_fd()]);
        let mut held = Held::default();
        assert_eq!(held.hear(theirs.as_raw_fd()), Ok(Some(Word::Fence(1))));
        assert_eq!(held.hear(theirs.as_raw_fd()), Ok(Some(Word::Fence(2))));
        assert_eq!(held.fences.keys().collect::<Vec<_>>(), [&2]);
    }

    #[test]
    fn words_survive_the_socket_and_nonsense_is_none() {
        let words = [
            Word::Lock,
            Word::Device,
            Word::Record,
            Word::Fence(7),
            Word::Cached(8),
            Word::GiveUp(u64::MAX),
            Word::Deadline,
            Word::DeadlineSet,
            Word::Leave,
        ];
        for word in words {
            assert_eq!(Word::decode(&word.encode()), Some(word));
        }
        assert_eq!(Word::decode(b"F123"), None);
        assert_eq!(Word::decode(b"?12345678"), None);
        assert_eq!(Word::decode(b""), None);
    }
}
