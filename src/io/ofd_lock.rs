//! Open-file-description locks: byte-range locks that belong to one open file, not to the process.
//!
//! They conflict with the POSIX locks of applications, which is how the daemon takes part in SQLite's locking,
//! and closing another descriptor of the same file does not drop them. Source: fcntl(2), `F_OFD_SETLK`.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Kind of a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockKind {
    /// Others may hold it shared too.
    Shared,
    /// Nobody else holds it.
    Exclusive,
}

impl LockKind {
    fn of_fcntl(self) -> i32 {
        match self {
            Self::Shared => libc::F_RDLCK,
            Self::Exclusive => libc::F_WRLCK,
        }
    }
}

/// Takes, upgrades or downgrades a lock on bytes `start..start + len` at once.
///
/// Returns `false` where somebody else holds a conflicting lock; what was held before then stays.
///
/// # Errors
/// Where the file system cannot lock.
pub fn try_lock(file: &File, kind: LockKind, start: u64, len: u64) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&request(kind.of_fcntl(), start, len))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Releases whatever this open file holds of the bytes `start..start + len`.
///
/// # Errors
/// Where the file system cannot unlock.
pub fn unlock(file: &File, start: u64, len: u64) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&request(libc::F_UNLCK, start, len)))?;
    Ok(())
}

/// Whether somebody else holds what [`try_lock`] would be refused for; takes nothing, so nobody is refused meanwhile.
///
/// # Errors
/// Where the file system cannot lock.
pub fn is_taken(file: &File, kind: LockKind, start: u64, len: u64) -> io::Result<bool> {
    let mut asked = request(kind.of_fcntl(), start, len);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut asked))?;
    Ok(i32::from(asked.l_type) != libc::F_UNLCK)
}

/// Waits for a lock; ends when the holder lets go.
///
/// # Errors
/// Where the file system cannot lock, or a signal ends the wait.
pub fn lock(file: &File, kind: LockKind, start: u64, len: u64) -> io::Result<()> {
    loop {
        match fcntl(file, FcntlArg::F_OFD_SETLKW(&request(kind.of_fcntl(), start, len))) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn request(lock_type: i32, start: u64, len: u64) -> libc::flock {
    libc::flock {
        l_type: lock_type as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start as i64,
        l_len: len as i64,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_open_files_exclude_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"").unwrap();
        let open = || std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (one, two) = (open(), open());
        assert!(try_lock(&one, LockKind::Shared, 120, 1).unwrap());
        assert!(try_lock(&two, LockKind::Shared, 120, 1).unwrap());
        assert!(!try_lock(&one, LockKind::Exclusive, 120, 1).unwrap());
        assert!(is_taken(&one, LockKind::Exclusive, 120, 1).unwrap());
        assert!(!is_taken(&one, LockKind::Shared, 120, 1).unwrap());
        unlock(&two, 120, 1).unwrap();
        assert!(try_lock(&one, LockKind::Exclusive, 120, 1).unwrap());
        assert!(!try_lock(&two, LockKind::Shared, 120, 1).unwrap());
    }
}
