//! Disk space taken before it is written, so that a full disk is found out while a change can still be refused.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::fstatvfs;

use super::fault;

/// Takes disk space for the file at `path` to grow to `size` bytes; its size and content stay as they are, and what is
/// there already costs nothing. A file that does not exist needs none yet, and a file system without `fallocate` is not
/// asked. Nobody else may write the file meanwhile.
///
/// # Errors
/// `StorageFull` where the space is not there; nothing is taken then.
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
    let disk = fstatvfs(&file)?;
    if disk.blocks_available().saturating_mul(disk.fragment_size()) < size - length {
        // A file system may take all that is left before it finds out.
        return Err(Errno::ENOSPC.into());
    }
    let (from, more) = (length.cast_signed(), (size - length).cast_signed());
    match fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, from, more) {
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
        Err(errno) => {
            // Gives back what was taken behind the end (fs/ext4/inode.c, ext4_setattr).
            file.set_len(length)?;
            Err(errno.into())
        }
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
    fn more_than_the_disk_has_is_an_error_and_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"content").unwrap();
        let before = path.metadata().unwrap().blocks();
        let error = reserve_growth(&path, 1 << 50).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(path.metadata().unwrap().blocks(), before);
        assert_eq!(std::fs::read(&path).unwrap(), b"content");
    }
}
