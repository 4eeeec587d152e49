//! Attributes as the kernel wants them, from those of the backing files.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

use super::names::Target;
use crate::db::FileKind;

/// How long the kernel may believe what only a notification or the kernel itself changes.
pub(super) const FOREVER: Duration = Duration::from_secs(3600);

/// For what changes behind the kernel's back.
pub(super) const NEVER: Duration = Duration::ZERO;

/// How long the kernel may believe that a name belongs to the file it found there.
///
/// The daemon makes `-wal` and `-shm` of a closed database, and removes them when the next connection opens the database
/// file, while the kernel hears of it a moment later. An open of a file that is gone is answered with ESTALE, and so is a
/// creation (it keeps the directory locked, see `PendingOpen::must_come_again`); the kernel tries again once only (`fs/namei.c`,
/// do_filp_open), and SQLite then opens the file read-only without a word (`os_unix.c`, unixOpen). So these names are asked for at
/// each open; control files, because they come and go with the role.
pub(super) fn entry_ttl(target: &Target) -> Duration {
    match target {
        Target::File(_, FileKind::Wal | FileKind::Shm) => NEVER,
        Target::Pos(_)
        | Target::Lock(_)
        | Target::Primary
        | Target::Lag
        | Target::History(_)
        | Target::Point(_) => NEVER,
        _ => FOREVER,
    }
}

/// Attributes of a backing file under the inode number `ino`.
pub(super) fn of_metadata(ino: u64, metadata: &Metadata) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: metadata.len(),
        blocks: metadata.blocks(),
        atime: metadata.accessed().unwrap_or(UNIX_EPOCH),
        mtime: metadata.modified().unwrap_or(UNIX_EPOCH),
        ctime: time(metadata.ctime(), metadata.ctime_nsec()),
        crtime: metadata.created().unwrap_or(UNIX_EPOCH),
        kind: FileType::RegularFile,
        perm: (metadata.mode() & 0o7777) as u16,
        nlink: 1,
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// Attributes of a directory under the inode number `ino`; `times` are those of the directory that backs it.
pub(super) fn of_directory(ino: u64, changed: SystemTime, times: Option<&Metadata>) -> FileAttr {
    let modified = times.and_then(|metadata| metadata.modified().ok()).unwrap_or(changed).max(changed);
    FileAttr {
        size: 4096,
        blocks: 8,
        atime: modified,
        mtime: modified,
        ctime: modified,
        crtime: changed,
        kind: FileType::Directory,
        nlink: 2,
        ..of_control_file(ino, 0, changed)
    }
}

/// Attributes of a control file of `size` bytes that was last changed at `time`: readable by all, writable by none.
pub(super) fn of_control_file(ino: u64, size: u64, time: SystemTime) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: 1,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: FileType::RegularFile,
        perm: 0o444,
        nlink: 1,
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// The attributes of "there is no such file", which the kernel remembers: inode number 0.
pub(super) fn of_nothing() -> FileAttr {
    of_control_file(0, 0, UNIX_EPOCH)
}

/// Milliseconds since 1970 as a time; 0 where unknown.
pub(super) fn of_ms(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

fn time(seconds: i64, nanoseconds: i64) -> SystemTime {
    let nanoseconds = u32::try_from(nanoseconds).unwrap_or(0);
    match u64::try_from(seconds) {
        Ok(seconds) => UNIX_EPOCH + Duration::new(seconds, nanoseconds),
        Err(_) => UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + Duration::new(0, nanoseconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_mode_and_number_come_through() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(12345).unwrap();
        let attr = of_metadata(7, &file.as_file().metadata().unwrap());
        assert_eq!((attr.ino.0, attr.size, attr.perm, attr.kind), (7, 12345, 0o600, FileType::RegularFile));
    }

    #[test]
    fn times_before_1970_do_not_overflow() {
        assert_eq!(time(-1, 500_000_000), UNIX_EPOCH - Duration::from_millis(500));
        assert_eq!(time(1, 5), UNIX_EPOCH + Duration::new(1, 5));
    }
}
