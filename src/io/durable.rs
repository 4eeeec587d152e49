//! Changes of the directory tree that survive a power cut.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::fault;

/// Makes the entries of a directory durable.
///
/// # Errors
/// Where the directory cannot be opened or synced.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    fault::point("sync_dir")?;
    File::open(dir)?.sync_all()
}

/// Renames a file durably: afterwards a power cut leaves the new name.
///
/// # Errors
/// Where the rename or the sync of the target's directory fails.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fault::point("rename")?;
    fs::rename(from, to)?;
    sync_dir(parent(to))
}

/// Replaces a small file as a whole: a power cut leaves the old or the new content, never a mixture.
///
/// # Errors
/// Where any of write, sync and rename fails; the old content then stays.
pub fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = tempfile::NamedTempFile::new_in(parent(path))?;
    fault::point("write_atomic")?;
    temporary.write_all(content)?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|failed| failed.error)?;
    sync_dir(parent(path))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
