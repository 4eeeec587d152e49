//! A file system of a few megabytes.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A tmpfs; unmounted when dropped. Needs root.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of `mib` megabytes at `path`, which is made.
    pub fn mount(path: &Path, mib: u64) -> Self {
        std::fs::create_dir(path).unwrap();
        let size = format!("size={mib}m");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(size.as_str())).unwrap();
        Self(path.to_owned())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file until there is no space left.
    pub fn fill(&self, ballast: &Path) {
        let mut file = File::create(ballast).unwrap();
        let block = vec![7; 64 << 10];
        while file.write_all(&block).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        super::unmount(&self.0);
    }
}
