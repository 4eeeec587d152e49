use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What tells that a file has changed: its inode, size and time of change.
pub(super) type FileChange = (u64, u64, i64, i64);

/// The change of a file, `None` where it is not there.
pub(super) fn file_change_of(path: &Path) -> Option<FileChange> {
    let file = fs::metadata(path).ok()?;
    Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
}
