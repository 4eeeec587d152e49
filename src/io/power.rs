//! What a power cut would take from a directory, for tests: each write since the last sync, with what it wrote over.
//!
//! Knows only directories that were [`plug`]ged on the same thread; others pay one look into an empty map.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::read_up_to;

/// A write that no sync has followed yet.
#[derive(Clone, Debug)]
pub struct Unsynced {
    /// The file.
    pub path: PathBuf,
    /// Where it wrote.
    pub offset: u64,
    /// What was there before.
    pub before: Vec<u8>,
}

/// One directory's disk.
#[derive(Default)]
struct Disk {
    unsynced: Vec<Unsynced>,
    fails: bool,
    /// How long the next syncs take.
    stall: Option<Box<dyn FnMut() -> Duration>>,
}

thread_local! {
    static DISKS: RefCell<BTreeMap<PathBuf, Disk>> = const { RefCell::new(BTreeMap::new()) };
}

fn with<T>(dir: &Path, work: impl FnOnce(&mut Disk) -> T) -> Option<T> {
    DISKS.with_borrow_mut(|disks| disks.get_mut(dir).map(work))
}

/// Remembers from now on what is not synced in directory `dir`; each put-off sync of a log there takes as long as
/// `stall` says.
pub fn plug(dir: &Path, stall: impl FnMut() -> Duration + 'static) {
    let disk = Disk { stall: Some(Box::new(stall)), ..Disk::default() };
    DISKS.with_borrow_mut(|disks| disks.insert(dir.to_path_buf(), disk));
}

/// Forgets directory `dir`; returns what of it was not synced, in the order it was written.
pub fn unplug(dir: &Path) -> Vec<Unsynced> {
    DISKS.with_borrow_mut(|disks| disks.remove(dir)).map(|disk| disk.unsynced).unwrap_or_default()
}

/// Whether nothing of the file at `path` would be lost.
pub fn is_synced(path: &Path) -> bool {
    with(dir_of(path), |disk| disk.unsynced.iter().all(|write| write.path != path)).unwrap_or(true)
}

/// Lets every sync in `dir` fail.
pub fn break_disk(dir: &Path) {
    with(dir, |disk| disk.fails = true);
}

/// Before `length` bytes are written at `offset` of the file at `path`.
pub fn before_write(path: &Path, file: &File, offset: u64, length: usize) {
    with(dir_of(path), |disk| {
        let mut before = vec![0; length];
        // What cannot be read is the writer's affair.
        let _ = read_up_to(file, &mut before, offset);
        disk.unsynced.push(Unsynced { path: path.to_path_buf(), offset, before });
    });
}

/// Of a new file of `length` bytes at `path` nothing is synced.
pub fn written_anew(path: &Path, length: u64) {
    let before = vec![0; length as usize];
    with(dir_of(path), |disk| disk.unsynced.push(Unsynced { path: path.to_path_buf(), offset: 0, before }));
}

/// The file at `path` was synced.
pub fn sync(path: &Path) -> io::Result<()> {
    let outcome = with(dir_of(path), |disk| match disk.fails {
        true => Err(io::Error::from_raw_os_error(nix::libc::EIO)),
        false => {
            disk.unsynced.retain(|write| write.path != path);
            Ok(())
        }
    });
    outcome.unwrap_or(Ok(()))
}

/// Takes the time that a sync of the log in `dir` takes.
pub async fn work(dir: &Path) {
    let takes = with(dir, |disk| disk.stall.as_mut().map(|stall| stall())).flatten().unwrap_or_default();
    if !takes.is_zero() {
        tokio::time::sleep(takes).await;
    }
}

fn dir_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}
