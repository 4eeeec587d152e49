//! What tells one mount from another one that has the same number.
//!
//! The kernel gives the numbers of FUSE connections, which are the device numbers of their files, out again. A process that
//! has a file of device 0:42 open may be an application of this node's last mount, or of any other file system that got the
//! number later. So each mount numbers its files from a random place on, and notes that place together with the boot of the
//! machine: a file whose inode number is elsewhere is somebody else's.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;

use crate::io::boot_id;

/// How many files one mount may number.
const INODES: u64 = 1 << 32;

/// Numbers stay below 2^53: some programs keep them in floating-point numbers.
const PLACES: u64 = 1 << 20;

/// A boot of the machine, and the inode numbers of a mount's files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountMark {
    /// The kernel's random id of this boot; empty where it tells none.
    pub boot_id: String,
    /// The place drawn, 1 to 2^20 - 1.
    pub place: u64,
}

impl MountMark {
    /// A mark for a new mount.
    pub(super) fn draw() -> Self {
        let place = 1 + RandomState::new().build_hasher().finish() % (PLACES - 1);
        Self { boot_id: boot_id(), place }
    }

    /// The first inode number of the mount's files; the root's is always 1.
    pub(super) fn first_inode(&self) -> u64 {
        self.place * INODES
    }

    /// The inode numbers that files of the mount can have.
    pub(super) fn inodes(&self) -> Range<u64> {
        self.first_inode()..self.first_inode() + INODES
    }

    /// Whether the machine was started anew since: nothing of the mount lives then.
    pub(super) fn is_of_an_earlier_boot(&self) -> bool {
        !self.boot_id.is_empty() && self.boot_id != boot_id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_two_mounts_have_no_number_in_common() {
        let (a, b) = (MountMark::draw(), MountMark::draw());
        assert!(a.place != b.place, "one in a million");
        assert!(!b.inodes().contains(&a.first_inode()) && !a.inodes().contains(&b.first_inode()));
        assert!(a.inodes().end <= 1 << 53 && a.first_inode() > 1);
        assert!(!a.is_of_an_earlier_boot());
        assert!(MountMark { boot_id: "another".into(), place: 1 }.is_of_an_earlier_boot());
    }
}
