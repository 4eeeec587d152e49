//! Large change sets as files named by their digest: `blobs/<digest>-<size>`, both as 16 hex digits.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{durable, fault};

/// Name of a blob: LTX file checksum and size in bytes.
pub type BlobKey = (u64, u64);

/// What names of files being written begin with.
const TEMPORARY: &str = ".new-";

/// The blob directory.
#[derive(Debug)]
pub struct BlobStore {
    dir: PathBuf,
    durable: bool,
    /// Blobs whose proposals were refused: who keeps the log removes them.
    refused: Mutex<Refused>,
}

/// Blobs that no entry will ever name.
#[derive(Default, Debug)]
pub struct Refused {
    /// Their proposals were this node's: it has the other voters remove their copies.
    pub own: BTreeSet<BlobKey>,
    /// Copies of what another node proposed. Nobody is told of them: each voter would tell all others, for ever.
    pub copies: BTreeSet<BlobKey>,
}

/// A blob being written; vanishes unless kept.
pub struct BlobWriter {
    file: tempfile::NamedTempFile,
    buffer: Vec<u8>,
    written: i64,
    /// The last bytes so far: an LTX file ends with its checksum.
    tail: [u8; 8],
}

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 256 * 1024;

impl BlobStore {
    /// Opens the directory, creating it where missing, and removes files of writers that died.
    ///
    /// # Errors
    /// Where the directory cannot be made or read.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { dir, durable: true, refused: Mutex::default() })
    }

    /// The same for a node that can fetch blobs again: nothing is synced, and what an earlier run left, which a power
    /// cut may have damaged, is removed.
    ///
    /// # Errors
    /// Where the directory cannot be made, read or emptied.
    pub fn open_unsynced(dir: PathBuf) -> io::Result<Self> {
        let store = Self { durable: false, ..Self::open(dir)? };
        store.list()?.into_iter().try_for_each(|key| store.remove(key))?;
        Ok(store)
    }

    /// Starts a blob of yet unknown name.
    ///
    /// # Errors
    /// Where no file can be made.
    pub fn create(&self) -> io::Result<BlobWriter> {
        fault::point("blob_create")?;
        let file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(&self.dir)?;
        Ok(BlobWriter { file, buffer: Vec::with_capacity(BUFFER_BYTES), written: 0, tail: [0; 8] })
    }

    /// Makes the blob durable under its name.
    ///
    /// # Errors
    /// `InvalidData` where what was written is not what the name says; where writing, syncing or renaming fails. The
    /// blob is gone then.
    pub fn keep(&self, mut writer: BlobWriter, key: BlobKey) -> io::Result<()> {
        writer.flush()?;
        let (digest, bytes) = (u64::from_be_bytes(writer.tail), writer.written as u64);
        if (digest, bytes) != key {
            let text =
                format!("blob {:016x}-{:016x} has another size ({bytes} bytes) or checksum", key.0, key.1);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        fault::point("blob_sync")?;
        let path = self.path(key);
        #[cfg(test)]
        super::power::written_anew(&path, bytes);
        if self.durable {
            writer.file.as_file().sync_data()?;
            #[cfg(test)]
            super::power::sync(&path)?;
        }
        writer.file.persist(&path).map_err(|failed| failed.error)?;
        if self.durable { durable::sync_dir(&self.dir) } else { Ok(()) }
    }

    /// Whether the blob is here.
    pub fn contains(&self, key: BlobKey) -> bool {
        fs::metadata(self.path(key)).is_ok_and(|metadata| metadata.len() == key.1)
    }

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// Where it is not here; the text names it.
    pub fn open_blob(&self, key: BlobKey) -> io::Result<File> {
        let path = self.path(key);
        File::open(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("blob {}: {error}", path.display())))
    }

    /// Gives a blob another name on the same file system, under which it stays when it is removed here.
    ///
    /// # Errors
    /// Where it is not here, or something has the name.
    pub fn link(&self, key: BlobKey, path: &Path) -> io::Result<()> {
        fs::hard_link(self.path(key), path)
    }

    /// Removes a blob no entry refers to any more; a missing one is no error.
    ///
    /// # Errors
    /// Where it is here and cannot be removed.
    pub fn remove(&self, key: BlobKey) -> io::Result<()> {
        fault::point("blob_remove")?;
        match fs::remove_file(self.path(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The blobs here.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn list(&self) -> io::Result<Vec<BlobKey>> {
        let mut keys = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            keys.extend(parse(&entry?.file_name().to_string_lossy()));
        }
        Ok(keys)
    }

    /// What the blobs here take, in bytes.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn bytes(&self) -> io::Result<u64> {
        Ok(self.list()?.into_iter().map(|(_, size)| size).sum())
    }

    /// Notes that no entry will ever name these blobs, because what named them was proposed here and refused.
    pub fn refuse(&self, keys: impl IntoIterator<Item = BlobKey>) {
        self.refused().own.extend(keys);
    }

    /// Notes the same of a copy of what another node proposed.
    pub fn refuse_copy(&self, key: BlobKey) {
        self.refused().copies.insert(key);
    }

    /// Takes what was noted to be refused.
    pub fn take_refused(&self) -> Refused {
        std::mem::take(&mut *self.refused())
    }

    fn refused(&self) -> MutexGuard<'_, Refused> {
        self.refused.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Removes blobs written longer than `age` ago that are not `named`; says how many.
    ///
    /// # Errors
    /// Where the directory cannot be read, or a blob not be removed.
    pub fn sweep(&self, named: &HashSet<BlobKey>, age: Duration) -> io::Result<usize> {
        let mut removed = 0;
        for key in self.list()?.into_iter().filter(|key| !named.contains(key)) {
            let written = fs::metadata(self.path(key)).and_then(|metadata| metadata.modified());
            // Gone meanwhile, or from the future: not this time.
            let old = written.is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed >= age));
            if old {
                self.remove(key)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn path(&self, key: BlobKey) -> PathBuf {
        self.dir.join(format!("{:016x}-{:016x}", key.0, key.1))
    }
}

fn parse(name: &str) -> Option<BlobKey> {
    let (digest, size) = name.split_once('-')?;
    if digest.len() != 16 || size.len() != 16 {
        return None;
    }
    Some((u64::from_str_radix(digest, 16).ok()?, u64::from_str_radix(size, 16).ok()?))
}

impl Write for BlobWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + data.len() > BUFFER_BYTES {
            self.flush()?;
        }
        if data.len() >= BUFFER_BYTES {
            self.write_through(data)?;
        } else {
            self.buffer.extend_from_slice(data);
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        self.write_through(&buffer)?;
        self.buffer = buffer;
        self.buffer.clear();
        Ok(())
    }
}

impl BlobWriter {
    /// Writes, and has the system begin to bring it to the disk: the sync at the end then waits for little.
    fn write_through(&mut self, data: &[u8]) -> io::Result<()> {
        fault::point("blob_write")?;
        self.file.write_all(data)?;
        let length = i64::try_from(data.len()).unwrap_or(i64::MAX);
        // Starts the writing and drops nothing that is not written (mm/fadvise.c); it is no more than a wish.
        let _ = posix_fadvise(&self.file, self.written, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        self.written += length;
        keep_tail(&mut self.tail, data);
        Ok(())
    }
}

/// The last 8 bytes of everything seen.
fn keep_tail(tail: &mut [u8; 8], chunk: &[u8]) {
    let last = &chunk[chunk.len().saturating_sub(8)..];
    tail.rotate_left(last.len());
    tail[8 - last.len()..].copy_from_slice(last);
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn kept_blobs_stay_and_others_leave_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path().to_path_buf()).unwrap();
        let mut dropped = store.create().unwrap();
        dropped.write_all(b"gone").unwrap();
        drop(dropped);
        let mut kept = store.create().unwrap();
        kept.write_all(b"here\0\0\0\0\0\0\0\x01").unwrap();
        store.keep(kept, (1, 12)).unwrap();
        let mut other = store.create().unwrap();
        other.write_all(b"here\0\0\0\0\0\0\0\x02").unwrap();
        assert_eq!(store.keep(other, (1, 12)).unwrap_err().kind(), io::ErrorKind::InvalidData);
        fs::write(dir.path().join(".new-dead"), b"x").unwrap();
        let store = BlobStore::open(dir.path().to_path_buf()).unwrap();
        assert_eq!(store.list().unwrap(), [(1, 12)]);
        let mut text = String::new();
        store.open_blob((1, 12)).unwrap().read_to_string(&mut text).unwrap();
        assert!(text.starts_with("here") && store.contains((1, 12)) && !store.contains((1, 13)));
        store.remove((1, 12)).unwrap();
        store.remove((1, 12)).unwrap();
        assert!(store.open_blob((1, 12)).unwrap_err().to_string().contains("0000000000000001-"));
    }

    #[test]
    fn only_old_blobs_that_nobody_names_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path().to_path_buf()).unwrap();
        for digest in 1..=3u8 {
            let mut blob = store.create().unwrap();
            blob.write_all(&[0, 0, 0, 0, 0, 0, 0, digest]).unwrap();
            store.keep(blob, (digest.into(), 8)).unwrap();
        }
        assert_eq!(store.bytes().unwrap(), 24);
        let named = HashSet::from([(1, 8)]);
        assert_eq!(store.sweep(&named, Duration::from_secs(60)).unwrap(), 0, "they are new");
        let hours_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
        for digest in [1, 2] {
            let file = File::options().append(true).open(store.path((digest, 8))).unwrap();
            file.set_modified(hours_ago).unwrap();
        }
        assert_eq!(store.sweep(&named, Duration::from_secs(3600)).unwrap(), 1);
        assert!(store.contains((1, 8)) && !store.contains((2, 8)) && store.contains((3, 8)));
        let unsynced = BlobStore::open_unsynced(dir.path().to_path_buf()).unwrap();
        assert_eq!(unsynced.list().unwrap(), []);
    }

    #[test]
    fn what_another_node_has_refused_is_told_apart_from_what_was_refused_here() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path().to_path_buf()).unwrap();
        store.refuse([(1, 8), (1, 8)]);
        store.refuse_copy((2, 8));
        store.refuse_copy((2, 8));
        let refused = store.take_refused();
        assert_eq!((refused.own, refused.copies), (BTreeSet::from([(1, 8)]), BTreeSet::from([(2, 8)])));
        assert!(store.take_refused().own.is_empty() && store.take_refused().copies.is_empty());
    }

    #[test]
    fn the_tail_is_the_same_however_the_bytes_are_cut() {
        let data: Vec<u8> = (0..40).collect();
        for cut in 1..=40 {
            let mut tail = [0; 8];
            data.chunks(cut).for_each(|chunk| keep_tail(&mut tail, chunk));
            assert_eq!(tail, data[32..], "chunks of {cut}");
        }
    }
}
