//! Databases that applications still have open through a mount of an earlier run.
//!
//! Such an application sees the files as they were when its daemon died: its locks are on inodes that nobody else uses, and
//! what it opens by name from then on belongs to the next mount. A database is safe from it once three things hold: its
//! write lock is held by the process that guarded the old mount, its file is another one than the application has, and the
//! application can open or remove nothing of it by name. This module finds out which databases that concerns, and whether
//! the first holds; `store` sees to the second and the mount to the third.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::mark::MountMark;
use super::processes;
use super::record::EarlierMount;
use super::stale::stale_mount;
use crate::types::DbName;

/// The mounts of earlier runs that may still be in use, by their notes in a directory.
#[derive(Debug)]
pub struct EarlierMounts {
    mounts: Vec<(PathBuf, EarlierMount)>,
}

/// Who uses the mounts of earlier runs, and what of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// All processes.
    pub pids: BTreeSet<i32>,
    /// The databases that processes have open, by the name they opened.
    pub databases: BTreeMap<DbName, BTreeSet<i32>>,
    /// The inodes that the files of those databases have in the data directory.
    pub files: BTreeSet<u64>,
    /// Why databases could still be written through one of the mounts; `None` where they cannot.
    pub unfenced: Option<String>,
}

impl EarlierMounts {
    /// Reads the notes in `dir`. One that was cut short before anything was mounted is removed; others that cannot be
    /// understood are left alone.
    ///
    /// # Errors
    /// Where the directory or a note cannot be read.
    pub fn read(dir: &Path) -> io::Result<Self> {
        let mut mounts = Vec::new();
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self { mounts }),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            match EarlierMount::read(&path)? {
                Some(mount) => mounts.push((path, mount)),
                None if fs::read(&path)?.contains(&0) => {
                    tracing::debug!(path = %path.display(), "no note of a mount that this version knows");
                }
                None => fs::remove_file(&path)?,
            }
        }
        Ok(Self { mounts })
    }

    /// Whether there is a note of this mount.
    pub fn knows(&self, mark: &MountMark) -> bool {
        self.mounts.iter().any(|(_, mount)| mount.mark == *mark)
    }

    /// Looks who uses them now. What nobody uses any more is forgotten, and a dead mount without users removed.
    pub fn look(&mut self) -> Held {
        let mut held = Held::default();
        self.mounts.retain(|(path, mount)| {
            // The guard writes to it when it is done.
            let mount = EarlierMount::read(path).ok().flatten().unwrap_or_else(|| mount.clone());
            let Some(stale) = stale_mount(mount.connection, &mount.mount_point, Some(&mount.mark)) else {
                if let Err(error) = fs::remove_file(path) {
                    tracing::debug!(path = %path.display(), %error, "the note of a mount stays");
                }
                return false;
            };
            held.add(&mount, &stale.pids);
            true
        });
        held
    }
}

impl Held {
    fn add(&mut self, mount: &EarlierMount, pids: &[i32]) {
        self.pids.extend(pids);
        let minor = u32::try_from(mount.connection).unwrap_or(u32::MAX);
        for (inode, users) in processes::using_each(minor, &mount.mark.inodes()) {
            for (backing, db) in mount.databases.get(&inode).into_iter().flatten() {
                self.databases.entry(db.clone()).or_default().extend(&users);
                self.files.insert(*backing);
            }
        }
        let guarded = || !processes::guards_of(mount.connection).is_empty();
        let unfenced = match mount.fenced {
            None if guarded() => {
                Some("a transaction that was under way when the last run ended has not ended yet")
            }
            None => Some("the process that guarded the mount of the last run did not survive it"),
            Some(1..) if !guarded() => Some("the process that guarded the mount of the last run is gone"),
            Some(_) => None,
        };
        self.unfenced = self.unfenced.take().or(unfenced.map(ToOwned::to_owned));
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{MountRecord, note_fenced};
    use super::*;

    #[test]
    fn a_note_of_a_mount_that_nobody_uses_is_removed_and_others_are_left() {
        let dir = tempfile::tempdir().unwrap();
        let mark = MountMark::draw();
        let record =
            MountRecord::create(dir.path(), &mark, 999_999_999, Path::new("/no/such/mount")).unwrap();
        note_fenced(&record.share().unwrap(), 0).unwrap();
        fs::write(dir.path().join("other"), "mount 2 of a later version\0").unwrap();
        fs::write(dir.path().join("77"), "mount 1 5").unwrap();
        let mut mounts = EarlierMounts::read(dir.path()).unwrap();
        assert!(mounts.knows(&mark));
        assert_eq!(mounts.look(), Held::default());
        assert!(!mounts.knows(&mark));
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["other"]);
    }

    #[test]
    fn whose_file_a_process_has_open_is_told_by_inode_and_whether_it_is_fenced() {
        // A FUSE mount cannot be had in a unit test; a file of /proc has a device without a major number, too.
        use std::os::unix::fs::MetadataExt;
        let minor = processes::minor_of(Path::new("/proc/version")).unwrap();
        let (file, inode) =
            (fs::File::open("/proc/version").unwrap(), fs::metadata("/proc/version").unwrap().ino());
        let mut child = std::process::Command::new("sleep").arg("60").stdin(file).spawn().unwrap();
        let (pid, db) = (i32::try_from(child.id()).unwrap(), DbName::new("a.db").unwrap());
        // The inodes of a mark's mount are a range; that of the file is in the one that begins below it.
        let place = inode >> 32;
        let mount = |fenced| EarlierMount {
            connection: u64::from(minor),
            mark: MountMark { boot_id: String::new(), place },
            mount_point: "/mnt".into(),
            databases: [(inode, BTreeSet::from([(70, db.clone())]))].into(),
            fenced,
        };
        let look = |fenced| {
            let mut held = Held::default();
            held.add(&mount(fenced), &[pid]);
            held
        };
        let (idle, unknown, gone) = (look(Some(0)), look(None), look(Some(1)));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(idle.databases[&db].contains(&pid) && idle.files == [70].into(), "{idle:?}");
        assert_eq!(idle.unfenced, None, "there was nothing to fence");
        assert!(unknown.unfenced.unwrap().contains("did not survive"));
        assert!(gone.unfenced.unwrap().contains("gone"));
    }
}
