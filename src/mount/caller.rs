//! Whether a request comes from this very program, which opens files through its own mount.

use std::fs::File;
use std::io;

use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};

/// Knows the threads of this process.
///
/// The kernel names the thread, not the process, that made a request. Thread numbers are reused after a thread has
/// ended, so nothing is remembered: a request is judged while its thread waits for the answer and so exists. What
/// follows an `open` is judged by the handle.
#[derive(Debug)]
pub(super) struct Callers {
    tasks: File,
}

impl Callers {
    /// Opens the list of this process's threads.
    pub fn new() -> io::Result<Self> {
        Ok(Self { tasks: File::open("/proc/self/task")? })
    }

    /// Whether the thread `tid` is one of this process; 0 is the kernel itself.
    pub fn is_own(&self, tid: u32) -> bool {
        tid != 0
            && faccessat(&self.tasks, tid.to_string().as_str(), AccessFlags::F_OK, AtFlags::empty()).is_ok()
    }
}

/// The process of a thread; the thread itself where that is not known, as for one of another PID namespace.
pub(super) fn process_of(tid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
    process.unwrap_or(tid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_this_process_are_own_and_others_are_not() {
        let callers = Callers::new().unwrap();
        let own = nix::unistd::gettid().as_raw() as u32;
        assert!(callers.is_own(own));
        assert!(std::thread::scope(|scope| {
            scope.spawn(|| callers.is_own(nix::unistd::gettid().as_raw() as u32)).join().unwrap()
        }));
        assert!(!callers.is_own(0));
        assert!(!callers.is_own(nix::unistd::getppid().as_raw() as u32));
        let thread = std::thread::scope(|scope| {
            scope.spawn(|| process_of(nix::unistd::gettid().as_raw() as u32)).join().unwrap()
        });
        assert_eq!(thread, std::process::id());
    }
}
