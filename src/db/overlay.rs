//! The overlay: what a transaction under a rollback journal has written, kept beside the database file until the log
//! has it.
//!
//! So the file never holds anything but committed pages: a crash leaves nothing to roll back, a snapshot can be read
//! at any time, and neither the journal nor the file needs an fsync. Whoever reads the database through the mount
//! sees the file with the overlay on top.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::io::{read_or_zero, read_up_to};
use crate::types::{PageSize, Pgno};

/// The spool is cut where a transaction has made it larger than this many bytes.
const SPOOL_KEEP_BYTES: u64 = 4 << 20;

/// `size` of an overlay that holds nothing.
const NONE: u64 = u64::MAX;

/// Holds: what lies in `extents` is at the same offsets in the spool.
#[derive(Debug)]
pub(super) struct Overlay {
    staged: RwLock<Staged>,
    /// Size of the database as its writer sees it, in bytes; [`NONE`] while nothing is staged.
    size: AtomicU64,
}

#[derive(Debug, Default)]
struct Staged {
    /// A nameless file; kept from one transaction to the next while applications have the database open.
    spool: Option<File>,
    /// Start to end of what was written, in bytes; neither overlapping nor touching.
    extents: BTreeMap<u64, u64>,
    /// How much of the spool was written, in bytes.
    spool_bytes: u64,
    /// The smallest size the transaction has given the database, in bytes: nothing of the file counts behind it.
    cut_at: Option<u64>,
}

impl Overlay {
    /// Nothing staged.
    pub fn new() -> Self {
        Self { staged: RwLock::default(), size: AtomicU64::new(NONE) }
    }

    /// Size of the database as its writer sees it; `None` where that is the file's own.
    pub fn size(&self) -> Option<u64> {
        Some(self.size.load(Ordering::Acquire)).filter(|size| *size != NONE)
    }

    /// Stages a write; `file` is the database file, `tmp` a directory for the spool.
    ///
    /// # Errors
    /// Where the spool cannot be written; the overlay is then as before.
    pub fn write(&self, file: &File, tmp: &Path, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut staged = self.write_lock();
        if staged.spool.is_none() {
            staged.spool = Some(tempfile::tempfile_in(tmp)?);
        }
        let spool = staged.spool.as_ref().expect("made where it was missing");
        spool.write_all_at(data, offset)?;
        let before = self.size_or_of(file)?;
        let end = offset + data.len() as u64;
        staged.insert(offset, end);
        staged.spool_bytes = staged.spool_bytes.max(end);
        self.size.store(before.max(end), Ordering::Release);
        Ok(())
    }

    /// Stages a truncation or an extension.
    pub fn truncate(&self, size: u64) {
        let mut staged = self.write_lock();
        staged.cut(size);
        staged.cut_at = Some(staged.cut_at.map_or(size, |at| at.min(size)));
        self.size.store(size, Ordering::Release);
    }

    /// Reads the database as its writer sees it, as far as it goes; returns how much that is.
    ///
    /// # Errors
    /// Where the file or the spool cannot be read.
    pub fn read(&self, file: &File, offset: u64, data: &mut [u8]) -> io::Result<usize> {
        let staged = self.read_lock();
        let Some(size) = self.size() else { return read_up_to(file, data, offset) };
        let length = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
        let data = &mut data[..length];
        let end = offset + length as u64;
        if !staged.covers(offset, end) {
            read_or_zero(file, offset, data)?;
        }
        staged.patch(offset, data)?;
        Ok(length)
    }

    /// Start and end of everything that may differ from the file, in bytes.
    pub fn extents(&self) -> Vec<(u64, u64)> {
        let staged = self.read_lock();
        let regrown = staged.cut_at.zip(self.size()).filter(|(from, until)| from < until);
        staged.extents.iter().map(|(start, end)| (*start, *end)).chain(regrown).collect()
    }

    /// Pages of which any byte may differ from the file.
    pub fn touched_pages(&self, page_size: PageSize) -> BTreeSet<Pgno> {
        let size = page_size.bytes();
        let numbers = self.extents().into_iter().flat_map(|(start, end)| start / size..end.div_ceil(size));
        numbers.filter_map(|number| u32::try_from(number + 1).ok().and_then(Pgno::new)).collect()
    }

    /// Whether nothing of the file shows between `start` and `end`.
    pub fn covers(&self, start: u64, end: u64) -> bool {
        self.read_lock().covers(start, end)
    }

    /// Whether what is staged is anything else than what the file has.
    ///
    /// # Errors
    /// Where the file or the spool cannot be read.
    pub fn differs_from(&self, file: &File) -> io::Result<bool> {
        let length = file.metadata()?.len();
        if self.size().is_some_and(|size| size != length) {
            return Ok(true);
        }
        let (mut staged, mut present) = (vec![0; 256 * 1024], vec![0; 256 * 1024]);
        for (start, end) in self.extents() {
            let mut at = start;
            while at < end {
                let part = usize::try_from(end - at).unwrap_or(usize::MAX).min(staged.len());
                let got = self.read(file, at, &mut staged[..part])?;
                read_or_zero(file, at, &mut present[..part])?;
                if staged[..got] != present[..got] {
                    return Ok(true);
                }
                at += part as u64;
            }
        }
        Ok(false)
    }

    /// Puts what is staged over `data`, which is what lies below at `offset`.
    ///
    /// # Errors
    /// Where the spool cannot be read.
    pub fn patch(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.read_lock().patch(offset, data)
    }

    /// How much is staged, in bytes.
    pub fn staged_bytes(&self) -> u64 {
        self.read_lock().extents.iter().map(|(start, end)| end - start).sum()
    }

    /// Writes what is staged into `file`, which then has `size` bytes, and empties the overlay. `before` is told of
    /// each range before it is overwritten. Readers go on meanwhile.
    ///
    /// # Errors
    /// Where reading or writing fails; everything stays staged then.
    pub fn install(
        &self,
        file: &File,
        size: u64,
        mut before: impl FnMut(u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let staged = self.read_lock();
        let length = file.metadata()?.len();
        let cut = staged.cut_at.unwrap_or(size).min(size);
        if cut < length {
            before(cut, u64::MAX - cut)?;
            file.set_len(cut)?;
        }
        let mut buffer = Vec::new();
        if let Some(spool) = &staged.spool {
            for (from, until) in staged.within(0, size) {
                let mut at = from;
                while at < until {
                    let length = (until - at).min(256 * 1024);
                    buffer.resize(length as usize, 0);
                    spool.read_exact_at(&mut buffer, at)?;
                    before(at, length)?;
                    file.write_all_at(&buffer, at)?;
                    at += length;
                }
            }
        }
        if file.metadata()?.len() != size {
            file.set_len(size)?;
        }
        drop(staged);
        self.discard();
        Ok(())
    }

    /// Forgets what is staged; returns whether there was anything.
    pub fn discard(&self) -> bool {
        let mut staged = self.write_lock();
        staged.extents.clear();
        staged.cut_at = None;
        if staged.spool_bytes > SPOOL_KEEP_BYTES {
            // A new one is made where it is needed.
            (staged.spool, staged.spool_bytes) = (None, 0);
        }
        self.size.swap(NONE, Ordering::AcqRel) != NONE
    }

    /// Lets go of the spool where nothing is staged: nobody has the database open.
    pub fn rest(&self) {
        let mut staged = self.write_lock();
        if staged.extents.is_empty() {
            (staged.spool, staged.spool_bytes) = (None, 0);
        }
    }

    fn size_or_of(&self, file: &File) -> io::Result<u64> {
        self.size().map_or_else(|| Ok(file.metadata()?.len()), Ok)
    }

    fn read_lock(&self) -> RwLockReadGuard<'_, Staged> {
        self.staged.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write_lock(&self) -> RwLockWriteGuard<'_, Staged> {
        self.staged.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Staged {
    fn insert(&mut self, mut start: u64, mut end: u64) {
        // Every extent that overlaps or touches becomes part of the new one.
        while let Some((from, until)) = self.extents.range(..=end).next_back().map(|(a, b)| (*a, *b)) {
            if until < start {
                break;
            }
            (start, end) = (start.min(from), end.max(until));
            self.extents.remove(&from);
        }
        self.extents.insert(start, end);
    }

    fn cut(&mut self, size: u64) {
        let _behind = self.extents.split_off(&size);
        if let Some((_, end)) = self.extents.iter_mut().next_back() {
            *end = (*end).min(size);
        }
    }

    fn covers(&self, start: u64, end: u64) -> bool {
        let end = self.cut_at.map_or(end, |at| at.min(end));
        start >= end || self.extents.range(..=start).next_back().is_some_and(|(_, until)| *until >= end)
    }

    fn patch(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let end = offset + data.len() as u64;
        // What a truncation cut off and a later write grew over reads as zeros.
        let shown = self.cut_at.map_or(end, |at| at.clamp(offset, end));
        data[(shown - offset) as usize..].fill(0);
        let Some(spool) = &self.spool else { return Ok(()) };
        for (from, until) in self.within(offset, end) {
            spool.read_exact_at(&mut data[(from - offset) as usize..(until - offset) as usize], from)?;
        }
        Ok(())
    }

    /// The parts of `start..end` that were written.
    fn within(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
        let first = self.extents.range(..=start).next_back().map_or(start, |(from, _)| *from);
        self.extents
            .range(first..end.max(first))
            .map(move |(from, until)| ((*from).max(start), (*until).min(end)))
            .filter(|(from, until)| from < until)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        Truncate(u64),
        Install,
        Discard,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0..200u64, proptest::collection::vec(any::<u8>(), 1..60)).prop_map(|(at, data)| Step::Write(at, data)),
            2 => (0..250u64).prop_map(Step::Truncate),
            1 => Just(Step::Install),
            1 => Just(Step::Discard),
        ];
        proptest::collection::vec(step, 0..40)
    }

    fn content(overlay: &Overlay, file: &File) -> Vec<u8> {
        let mut data = vec![0xee; 400];
        let length = overlay.read(file, 0, &mut data).unwrap();
        data.truncate(length);
        data
    }

    proptest! {
        #[test]
        fn the_writer_sees_what_it_wrote_and_the_file_only_what_was_installed(steps in steps()) {
            let dir = tempfile::tempdir().unwrap();
            let file = tempfile::tempfile_in(dir.path()).unwrap();
            file.write_all_at(&[7; 100], 0).unwrap();
            let overlay = Overlay::new();
            let (mut committed, mut seen) = (vec![7; 100], vec![7; 100]);
            for step in steps {
                match step {
                    Step::Write(at, data) => {
                        overlay.write(&file, dir.path(), at, &data).unwrap();
                        let (at, end) = (at as usize, at as usize + data.len());
                        seen.resize(seen.len().max(end), 0);
                        seen[at..end].copy_from_slice(&data);
                    }
                    Step::Truncate(size) => {
                        overlay.truncate(size);
                        seen.resize(size as usize, 0);
                    }
                    Step::Install => {
                        let size = seen.len() as u64;
                        overlay.install(&file, size, |_, _| Ok(())).unwrap();
                        committed.clone_from(&seen);
                    }
                    Step::Discard => {
                        overlay.discard();
                        seen.clone_from(&committed);
                    }
                }
                prop_assert_eq!(&content(&overlay, &file), &seen);
                let mut part = vec![0; 30];
                let got = overlay.read(&file, 50, &mut part).unwrap();
                prop_assert_eq!(&part[..got], &seen[seen.len().min(50)..seen.len().min(80)]);
                let mut on_disk = vec![0; 400];
                let got = read_up_to(&file, &mut on_disk, 0).unwrap();
                prop_assert_eq!(&on_disk[..got], &committed[..]);
            }
        }
    }

    #[test]
    fn what_is_overwritten_is_told_before() {
        let dir = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile_in(dir.path()).unwrap();
        file.write_all_at(&[1; 64], 0).unwrap();
        let overlay = Overlay::new();
        overlay.write(&file, dir.path(), 16, &[2; 16]).unwrap();
        let mut told = Vec::new();
        let before = |at, length| {
            told.push((at, length));
            Ok(())
        };
        assert!(overlay.differs_from(&file).unwrap());
        overlay.install(&file, 48, before).unwrap();
        overlay.write(&file, dir.path(), 16, &[2; 16]).unwrap();
        assert!(!overlay.differs_from(&file).unwrap());
        overlay.discard();
        assert_eq!(told, [(48, u64::MAX - 48), (16, 16)]);
        assert_eq!(overlay.size(), None);
    }

    #[test]
    fn a_growth_over_a_cut_reads_as_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile_in(dir.path()).unwrap();
        file.write_all_at(&[1; 64], 0).unwrap();
        let overlay = Overlay::new();
        overlay.truncate(16);
        overlay.write(&file, dir.path(), 48, &[2; 16]).unwrap();
        let expected = [[1; 16], [0; 16], [0; 16], [2; 16]].concat();
        assert_eq!(content(&overlay, &file), expected);
    }
}
