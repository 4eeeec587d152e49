//! Disk space taken before it is written, so that a full disk is found out while a change can still be refused.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::fault;

/// Takes disk space for the file at `path` to grow to `size` bytes; its size and content stay as they are, and what is
/// there already costs nothing. A file that does not exist needs none yet, and a file system without `fallocate` is not
/// asked.
///
/// # Errors
/// `StorageFull` where the space is not there; nothing has changed then.
pub fn reserve_growth(path: &Path, size: u64) -> io::Result<()> {
    let file = match File::options().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    if size <= length {
        return Ok(());
    }
    fault::point("reserve_growth")?;
    let (from, more) = (length.cast_signed(), (size - length).cast_signed());
    match fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, from, more) {
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn space_is_taken_and_size_and_content_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"content").unwrap();
        let before = path.metadata().unwrap();
        reserve_growth(&path, 1 << 20).unwrap();
        let after = path.metadata().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"content");
        assert_eq!(before.len(), after.len());
        let taken = after.blocks() * 512;
        // Where the file system of the temporary directory cannot reserve, nothing is taken.
        assert!(taken >= 1 << 20 || taken == before.blocks() * 512, "{taken} bytes");
        reserve_growth(&path, 3).unwrap();
        reserve_growth(&dir.path().join("not there"), 1 << 20).unwrap();
    }

    #[test]
    fn more_than_the_disk_has_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"content").unwrap();
        let supported = fallocate(
            File::options().write(true).open(&path).unwrap(),
            FallocateFlags::FALLOC_FL_KEEP_SIZE,
            0,
            4096,
        );
        if supported.is_ok() {
            let error = reserve_growth(&path, 1 << 43).unwrap_err();
            let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge);
            assert!(full || error.raw_os_error() == Some(nix::libc::EFBIG), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), b"content");
        }
    }
}
