use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What tells that a file has changed: its inode, size and time of change.
pub(super) type Stamp = (u64, u64, i64, i64);

/// The stamp of a file, `None` where it is not there.
pub(super) fn stamp_of(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
}
