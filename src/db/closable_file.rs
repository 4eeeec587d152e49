//! Files that stay open only while there are few of them: a node has more databases than descriptors.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use nix::sys::resource::{Resource, getrlimit};

/// Files of this kind take at most this part of the descriptors,
const PART: u64 = 4;
/// and no more than this many.
const OPEN_MAX: u64 = 4096;

/// A file that is closed when many others were used later, and opened again when it is used.
///
/// What was written before it was closed is not lost, nor is an error of writing it back: the kernel tells that to the
/// next descriptor that syncs the file (errseq in Documentation/core-api of Linux).
#[derive(Debug)]
pub(super) struct ClosableFile {
    slot: Arc<Slot>,
}

#[derive(Debug)]
struct Slot {
    path: PathBuf,
    /// Device and inode: another file in its place is not taken for it.
    inode: (u64, u64),
    file: Mutex<Option<Arc<File>>>,
    /// When it was last used, by the count of all uses.
    used: AtomicU64,
}

static USES: AtomicU64 = AtomicU64::new(0);
static OPEN: Mutex<Vec<Weak<Slot>>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// How many may be open at a time.
fn open_max() -> usize {
    static MAX: OnceLock<usize> = OnceLock::new();
    *MAX.get_or_init(|| {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(OPEN_MAX, |(soft, _)| soft / PART);
        usize::try_from(limit.clamp(8, OPEN_MAX)).expect("a few thousand")
    })
}

impl ClosableFile {
    /// Opens the file, creating it where it is missing.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file =
            with_room(|| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path))?;
        let inode = inode_of(&file)?;
        let file = Mutex::new(Some(Arc::new(file)));
        let slot = Arc::new(Slot { path: path.to_owned(), inode, file, used: AtomicU64::default() });
        slot.use_now();
        remember(&slot);
        Ok(Self { slot })
    }

    /// The file, opened again where it was closed.
    ///
    /// # Errors
    /// Where it cannot be opened, or is not there any more.
    pub(super) fn get(&self) -> io::Result<Arc<File>> {
        self.slot.use_now();
        let mut open = lock(&self.slot.file);
        if let Some(file) = &*open {
            return Ok(file.clone());
        }
        let path = &self.slot.path;
        let file = with_room(|| OpenOptions::new().read(true).write(true).open(path))?;
        if inode_of(&file)? != self.slot.inode {
            let text = format!("{} was replaced by another file", path.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        let file = Arc::new(file);
        *open = Some(file.clone());
        drop(open);
        remember(&self.slot);
        Ok(file)
    }
}

impl Slot {
    fn use_now(&self) {
        self.used.store(USES.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }
}

fn inode_of(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Opens a file; where no descriptor is left, once more after all that can be closed are.
fn with_room(open: impl Fn() -> io::Result<File>) -> io::Result<File> {
    match open() {
        Err(error) if error.raw_os_error() == Some(nix::libc::EMFILE) => {
            close_least_used(&mut lock(&OPEN), 0);
            open()
        }
        opened => opened,
    }
}

fn remember(slot: &Arc<Slot>) {
    let mut open = lock(&OPEN);
    open.push(Arc::downgrade(slot));
    let max = open_max();
    if open.len() > max {
        // Several at once, so that the search for them is not repeated with every file.
        close_least_used(&mut open, max - max / 4);
    }
}

/// Closes files until `left` of them are open.
fn close_least_used(open: &mut Vec<Weak<Slot>>, left: usize) {
    let mut slots: Vec<Arc<Slot>> = open.iter().filter_map(Weak::upgrade).collect();
    slots.sort_by_key(|slot| slot.used.load(Ordering::Relaxed));
    let close = slots.len().saturating_sub(left);
    let mut kept = Vec::with_capacity(slots.len());
    for (number, slot) in slots.iter().enumerate() {
        // One that is being opened at this moment keeps its place: its lock must not be waited for.
        let closed = number < close && slot.file.try_lock().map(|mut file| *file = None).is_ok();
        if !closed {
            kept.push(Arc::downgrade(slot));
        }
    }
    *open = kept;
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_file_that_was_closed_is_opened_again_and_keeps_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pages");
        let file = ClosableFile::open(&path).unwrap();
        file.get().unwrap().write_all_at(b"kept", 3).unwrap();
        *lock(&file.slot.file) = None;
        let mut read = [0; 4];
        file.get().unwrap().read_exact_at(&mut read, 3).unwrap();
        assert_eq!(&read, b"kept");
        *lock(&file.slot.file) = None;
        std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        assert_eq!(file.get().unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&path, "of another database").unwrap();
        assert!(file.get().unwrap_err().to_string().contains("another file"));
    }

    #[test]
    fn those_used_last_stay_open() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<_> =
            (0..8).map(|n| ClosableFile::open(&dir.path().join(n.to_string())).unwrap()).collect();
        files[0].get().unwrap();
        let mut open = files.iter().map(|file| Arc::downgrade(&file.slot)).collect();
        close_least_used(&mut open, 3);
        let is_open = |n: usize| lock(&files[n].slot.file).is_some();
        assert_eq!((0..8).filter(|n| is_open(*n)).collect::<Vec<_>>(), [0, 6, 7]);
        assert_eq!(open.len(), 3);
    }
}
