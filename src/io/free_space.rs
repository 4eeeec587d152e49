//! How much of a file system is free, and how much of that is kept in reserve.

use std::io;
use std::path::Path;

use nix::sys::statvfs::statvfs;

/// Of a small disk not more than this part is kept in reserve.
const RESERVE_PART: u64 = 20;

/// Space of the file system a directory is on, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// What programs may still use.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

impl Space {
    /// The space left for a directory.
    ///
    /// # Errors
    /// Where the directory cannot be asked.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let asked = statvfs(dir)?;
        let unit = asked.fragment_size();
        Ok(Self { free: asked.blocks_available() * unit, total: asked.blocks() * unit })
    }

    /// The bytes kept in reserve of such a disk: what is configured, of a small disk less.
    pub fn reserve(self, configured: u64) -> u64 {
        configured.min(self.total / RESERVE_PART)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_a_small_part_of_a_small_disk() {
        let of = |total| Space { free: 0, total }.reserve(64 << 20);
        assert_eq!(of(1 << 40), 64 << 20);
        assert_eq!(of(100 << 20), 5 << 20);
        assert!(Space::of(Path::new("/")).unwrap().total > 0);
    }
}
