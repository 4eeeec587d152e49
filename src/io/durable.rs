//! Changes of the directory tree that survive a power cut.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::fault;

/// What the name of a file begins with until its content is complete and it gets its real name.
const TEMPORARY: &str = ".tmp";
/// Random letters and digits behind it.
const TEMPORARY_RANDOM: usize = 6;

/// A file in `dir` of a name that [`remove_temporaries`] knows; vanishes unless it is renamed.
///
/// # Errors
/// Where no file can be made.
pub fn temporary_in(dir: &Path) -> io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new().prefix(TEMPORARY).rand_bytes(TEMPORARY_RANDOM).tempfile_in(dir)
}

/// Whether a file of this name is one that was being written when its writer died.
pub fn is_temporary(name: &str) -> bool {
    let random = name.strip_prefix(TEMPORARY);
    random.is_some_and(|random| {
        random.len() == TEMPORARY_RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// Removes the files in `dir` that were being written when their writers died; nothing refers to them. A directory
/// that does not exist has none.
///
/// # Errors
/// Where the directory cannot be read, or a file not be removed.
pub fn remove_temporaries(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if is_temporary(&entry.file_name().to_string_lossy()) && entry.file_type()?.is_file() {
            fault::point("remove_temporary")?;
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

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

/// Puts a copy of a file in its place, so that whoever has it open keeps what was there, and gives its size in bytes. The
/// copy shares the disk space with it where the file system can do that (copy_file_range(2)). `tmp` is a directory of the
/// same file system that is emptied at a start. A power cut leaves the file or the copy.
///
/// # Errors
/// Where the copy cannot be written; the file then stays.
pub fn renew_inode(path: &Path, tmp: &Path) -> io::Result<u64> {
    let mut from = File::open(path)?;
    let mut copy = temporary_in(tmp)?;
    fault::point("renew_inode")?;
    let bytes = io::copy(&mut from, copy.as_file_mut())?;
    copy.as_file().set_permissions(from.metadata()?.permissions())?;
    copy.as_file().sync_all()?;
    copy.persist(path).map_err(|failed| failed.error)?;
    sync_dir(parent(path))?;
    Ok(bytes)
}

/// Replaces a small file as a whole: a power cut leaves the old or the new content, never a mixture.
///
/// # Errors
/// Where any of write, sync and rename fails; the old content then stays.
pub fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = temporary_in(parent(path))?;
    fault::point("write_atomic")?;
    temporary.write_all(content)?;
    temporary.as_file().sync_all()?;
    fault::point("write_atomic_rename")?;
    temporary.persist(path).map_err(|failed| failed.error)?;
    sync_dir(parent(path))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_were_being_written_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let half_written = temporary_in(dir.path()).unwrap().into_temp_path().keep().unwrap();
        fs::write(at(".tmpABCDE9"), "half").unwrap();
        fs::create_dir(at(".tmpABCDEF")).unwrap();
        for kept in [".tmp", ".tmpABCDE", ".tmpABCDEFG", ".tmpABC-EF", "node.toml"] {
            fs::write(at(kept), "kept").unwrap();
        }
        remove_temporaries(dir.path()).unwrap();
        assert!(!half_written.exists() && !at(".tmpABCDE9").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 6);
        remove_temporaries(&at("missing")).unwrap();
    }
}
