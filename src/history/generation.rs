//! An unbroken chain of a database's transactions: a base, and the change sets behind it.

use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::HistoryError;
use super::merge::merge;
use super::meta::{Base, End, Meta};
use super::segment::{Segment, SetAt, parse_single, read_index, read_sets};
use crate::io::blobs::BlobStore;
use crate::io::{durable, fault};
use crate::ltx::{self, BlobRef, Body, ChangeSet, Decoder};
use crate::types::{Checksum, LogIndex, PageCount, PageSize, Pos, Timestamp, TxidRange};

/// Change sets that lie in one file, in bytes,
const SEGMENT_BYTES: u64 = 4 << 20;
/// and in time.
const SEGMENT_AGE: Duration = Duration::from_secs(30);
/// Name of the file with the pages of the oldest point.
pub(super) const BASE: &str = "base";

/// One generation: what is known of its files.
pub(super) struct Generation {
    /// Its directory.
    pub dir: PathBuf,
    /// What its file says.
    pub meta: Meta,
    /// The change sets, in order; only the last may not be merged.
    pub segments: Vec<Segment>,
    /// Whoever reads a point holds a copy: the files stay as they are meanwhile.
    pub pin: Arc<()>,
    /// Size of the base in bytes.
    pub base_bytes: u64,
    /// Change sets that are not in the last segment's file yet.
    buffer: Vec<u8>,
}

impl Generation {
    /// Begins one whose base, of so many bytes, is in `dir` already; without one where it begins with the first transaction.
    ///
    /// # Errors
    /// Where its file cannot be written.
    pub fn begin(
        dir: PathBuf,
        page_size: PageSize,
        base: Base,
        base_bytes: u64,
    ) -> Result<Self, HistoryError> {
        fs::create_dir_all(&dir).map_err(HistoryError::io("making", &dir))?;
        let (first, named) = (base.pos.txid_or_zero(), index_of(&dir));
        let meta = Meta { page_size, base, first, named, ended: None };
        meta.write(&dir)?;
        Ok(Self { dir, meta, segments: Vec::new(), pin: Arc::default(), base_bytes, buffer: Vec::new() })
    }

    /// Where the base was.
    pub fn empty_base(time: Timestamp) -> Base {
        Base { pos: Pos::ZERO, pages: PageCount::ZERO, time }
    }

    /// The log entry it begins with.
    pub fn index(&self) -> LogIndex {
        index_of(&self.dir)
    }

    /// The position after its last transaction.
    pub fn tip(&self) -> Pos {
        self.segments.last().map_or(self.meta.base.pos, |last| Pos::new(last.range.max(), last.post))
    }

    /// When that was committed.
    pub fn tip_time(&self) -> Timestamp {
        self.segments.last().map_or(self.meta.base.time, |last| last.last_time.max(self.meta.base.time))
    }

    /// Whether somebody reads one of its points.
    pub fn is_pinned(&self) -> bool {
        Arc::strong_count(&self.pin) > 1
    }

    /// What its files take, in bytes.
    pub fn bytes(&self) -> u64 {
        self.base_bytes + self.segments.iter().map(Segment::bytes).sum::<u64>()
    }

    /// Whether a change set is the next one.
    pub fn is_continued_by(&self, set: &ChangeSet) -> bool {
        let tip = self.tip();
        set.range.min() == tip.next_txid()
            && set.pre == tip.checksum
            && set.page_size == self.meta.page_size
            && set.commit > PageCount::ZERO
    }

    /// Adds the next change set; a small one is in its file after [`flush`](Self::flush) only.
    ///
    /// # Errors
    /// Where a large one cannot be kept.
    pub fn append(&mut self, set: &ChangeSet, blobs: &BlobStore) -> Result<(), HistoryError> {
        let ltx = match &set.body {
            Body::Blob(blob) => return self.append_blob(set, *blob, blobs),
            Body::Inline(ltx) => ltx,
        };
        let header = Decoder::new(&ltx[..]).map_err(|error| HistoryError::ltx(&self.dir, error))?;
        let time = Timestamp::from_ms(header.header().timestamp_ms);
        let full = |last: &Segment| {
            let age = time.ms().saturating_sub(last.first_time.ms());
            let bytes = last.single.unwrap_or(0) + self.buffer.len() as u64 + ltx.len() as u64;
            bytes > SEGMENT_BYTES || age.unsigned_abs() > SEGMENT_AGE.as_millis() as u64
        };
        if self.segments.last().is_none_or(|last| last.merged || full(last)) {
            self.close()?;
            self.segments.push(Segment {
                range: set.range,
                post: set.post,
                commit: set.commit,
                first_time: time,
                last_time: time,
                merged: false,
                single: Some(0),
                merged_bytes: 0,
            });
        }
        self.buffer.extend_from_slice(ltx);
        let last = self.segments.last_mut().expect("one was pushed where there was none");
        last.range = TxidRange::new(last.range.min(), set.range.max()).unwrap_or(last.range);
        (last.post, last.commit, last.last_time) = (set.post, set.commit, last.last_time.max(time));
        Ok(())
    }

    /// A large change set has a file already, which gets another name here.
    fn append_blob(&mut self, set: &ChangeSet, blob: BlobRef, blobs: &BlobStore) -> Result<(), HistoryError> {
        self.close()?;
        let path = self.dir.join(ltx::file_name(set.range));
        fault::point("history_link")
            .and_then(|()| {
                // Left by a crash: it is the same one, or of a history that never was.
                let _absent = fs::remove_file(&path);
                blobs.link((blob.digest, blob.size_bytes), &path)
            })
            .map_err(HistoryError::io("linking", &path))?;
        self.segments.push(merged_segment(&read_index(&path)?));
        Ok(())
    }

    /// Writes what was added.
    ///
    /// # Errors
    /// Where that fails; what was added since the last time is not part of the generation then.
    pub fn flush(&mut self) -> Result<(), HistoryError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let Some(last) = self.segments.last_mut() else { return Ok(()) };
        let (path, size) = (last.single_path(&self.dir), last.single.unwrap_or(0));
        let write = || {
            fault::point("history_append")?;
            let mut file = File::options().append(true).create(true).open(&path)?;
            file.set_len(size)?;
            file.write_all(&self.buffer)
        };
        match write() {
            Ok(()) => {
                last.single = Some(size + self.buffer.len() as u64);
                self.buffer.clear();
                Ok(())
            }
            Err(error) => {
                self.buffer.clear();
                self.take_back_unwritten(&path, size)?;
                Err(HistoryError::io("writing", &path)(error))
            }
        }
    }

    /// Makes the last segment what its file has.
    fn take_back_unwritten(&mut self, path: &Path, size: u64) -> Result<(), HistoryError> {
        let cut = File::options().write(true).open(path).and_then(|file| file.set_len(size));
        let last = self.segments.pop();
        match (cut, last) {
            (Ok(()), Some(_)) if size > 0 => {
                let (_, sets) = read_sets(path)?;
                self.segments.extend(single_segment(&sets));
            }
            _ => {}
        }
        Ok(())
    }

    /// Merges the last segment, so that the next change set begins another one.
    ///
    /// # Errors
    /// Where that cannot be written.
    pub fn close(&mut self) -> Result<(), HistoryError> {
        self.flush()?;
        let Some(last) = self.segments.last_mut().filter(|last| !last.merged) else { return Ok(()) };
        let (single, merged) = (last.single_path(&self.dir), last.merged_path(&self.dir));
        let (bytes, sets) = read_sets(&single)?;
        if sets.last().is_none_or(|set| set.header.range.max() != last.range.max()) {
            return Err(HistoryError::Corrupt(format!(
                "{} has not what was written to it",
                single.display()
            )));
        }
        if sets.len() == 1 {
            let synced = File::open(&single).and_then(|file| file.sync_data());
            synced
                .and_then(|()| fs::rename(&single, &merged))
                .map_err(HistoryError::io("closing", &single))?;
            (last.single, last.merged_bytes) = (None, bytes.len() as u64);
        } else {
            let slices =
                sets.iter().map(|set| &bytes[set.offset as usize..(set.offset + set.size_bytes) as usize]);
            let in_dir = HistoryError::io("writing into", &self.dir);
            let temporary = durable::temporary_in(&self.dir).map_err(in_dir)?;
            merge(slices.collect(), temporary.as_file())
                .map_err(|error| HistoryError::ltx(&merged, error))?;
            let failed = HistoryError::io("writing", &merged);
            let synced = temporary.as_file().sync_data().and_then(|()| temporary.as_file().metadata());
            last.merged_bytes = synced.map_err(failed)?.len();
            temporary.persist(&merged).map_err(|error| HistoryError::io("writing", &merged)(error.error))?;
        }
        last.merged = true;
        Ok(())
    }

    /// Merges the last segment where its first change set is old enough.
    ///
    /// # Errors
    /// As [`close`](Self::close).
    pub fn close_if_old(&mut self, now: Timestamp) -> Result<(), HistoryError> {
        let old =
            |last: &Segment| now.ms().saturating_sub(last.first_time.ms()) > SEGMENT_AGE.as_millis() as i64;
        if self.segments.last().is_some_and(|last| !last.merged && old(last)) {
            return self.close();
        }
        Ok(())
    }

    /// Puts the oldest segment into the base: points inside it are no more. Nobody may read the generation.
    ///
    /// # Errors
    /// Where that cannot be written; it is done again then, also after a crash.
    pub fn fold(&mut self) -> Result<(), HistoryError> {
        let Some(segment) = self.segments.first().filter(|segment| segment.merged).cloned() else {
            return Ok(());
        };
        let path = segment.merged_path(&self.dir);
        // From here on the base is none of an earlier point.
        self.meta.first = segment.range.max().get();
        self.meta.write(&self.dir)?;
        let base_path = self.dir.join(BASE);
        let opened = File::options().read(true).write(true).create(true).truncate(false).open(&base_path);
        let base = opened.map_err(HistoryError::io("opening", &base_path))?;
        put_into(&path, &base, self.meta.page_size)?;
        // A page that is cut off comes back as zeros, see `ltx::compact`.
        let cut = base.set_len(segment.commit.bytes(self.meta.page_size));
        cut.map_err(HistoryError::io("cutting", &base_path))?;
        let synced =
            fault::point("history_fold").and_then(|()| base.sync_data()).and_then(|()| base.metadata());
        self.base_bytes = synced.map_err(HistoryError::io("writing", &base_path))?.len();
        let pos = Pos::new(segment.range.max(), segment.post);
        self.meta.base =
            Base { pos, pages: segment.commit, time: segment.last_time.max(self.meta.base.time) };
        self.meta.write(&self.dir)?;
        self.segments.remove(0);
        remove_files(&segment, &self.dir)
    }

    /// Gives up the points inside the segment of this number.
    ///
    /// # Errors
    /// Where its file cannot be removed.
    pub fn drop_single(&mut self, number: usize) -> Result<(), HistoryError> {
        let Some(segment) = self.segments.get_mut(number).filter(|segment| segment.merged) else {
            return Ok(());
        };
        if segment.single.take().is_some() {
            let path = segment.single_path(&self.dir);
            fs::remove_file(&path).map_err(HistoryError::io("removing", &path))?;
        }
        Ok(())
    }

    /// Nothing follows any more; `why` is empty where the database was dropped.
    ///
    /// # Errors
    /// Where that cannot be noted; it has ended for this run.
    pub fn end(&mut self, time: Timestamp, why: String) -> Result<(), HistoryError> {
        self.buffer.clear();
        self.meta.ended = Some(End { time, why });
        self.meta.write(&self.dir)
    }

    /// Reads what is in a directory. What does not continue the base, or was not written to its end, is left out.
    ///
    /// # Errors
    /// Where its file is not there or damaged: then it is no generation.
    pub fn load(dir: PathBuf) -> Result<Self, HistoryError> {
        let meta = Meta::read(&dir)?;
        let _left = durable::remove_temporaries(&dir);
        let base_bytes = fs::metadata(dir.join(BASE)).map_or(0, |base| base.len());
        let mut generation =
            Self { dir, meta, segments: Vec::new(), pin: Arc::default(), base_bytes, buffer: Vec::new() };
        for segment in found(&generation.dir)? {
            let tip = generation.tip();
            if Some(segment.0.range.max()) <= generation.meta.base.pos.txid {
                remove_files(&segment.0, &generation.dir)?;
            } else if segment.0.range.min() == tip.next_txid()
                && segment.1.unwrap_or(Checksum::EMPTY) == tip.checksum
            {
                generation.segments.push(segment.0);
            } else {
                break;
            }
        }
        // What is not the last has to be merged; a fold that a crash broke off is done again.
        if generation.meta.first > generation.meta.base.pos.txid_or_zero() {
            generation.fold()?;
        }
        Ok(generation)
    }
}

/// The log entry that the generation in a directory begins with.
fn index_of(dir: &Path) -> LogIndex {
    let name = dir.file_name().and_then(|name| name.to_str());
    LogIndex::new(name.and_then(|name| u64::from_str_radix(name, 16).ok()).unwrap_or(0))
}

/// Puts the pages of a merged file into the base.
fn put_into(path: &Path, base: &File, page_size: PageSize) -> Result<(), HistoryError> {
    let file = File::open(path).map_err(HistoryError::io("opening", path))?;
    let of = |error| HistoryError::ltx(path, error);
    let mut decoder = Decoder::new(BufReader::with_capacity(1 << 16, file)).map_err(of)?;
    let mut page = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page).map_err(of)? {
        base.write_all_at(&page, pgno.offset(page_size))
            .map_err(HistoryError::io("writing the base with", path))?;
    }
    decoder.finish().map_err(of)?;
    Ok(())
}

fn remove_files(segment: &Segment, dir: &Path) -> Result<(), HistoryError> {
    for path in [segment.single_path(dir), segment.merged_path(dir)] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(HistoryError::io("removing", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The segments in a directory, in order, with the checksum before each.
fn found(dir: &Path) -> Result<Vec<(Segment, Option<Checksum>)>, HistoryError> {
    let (mut segments, mut singles) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir).map_err(HistoryError::io("reading", dir))? {
        let path = entry.map_err(HistoryError::io("reading", dir))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if let Some(first) = parse_single(name) {
            singles.push((first, path));
        } else if ltx::parse_file_name(name).is_some() {
            match read_index(&path) {
                Ok(set) => segments.push((merged_segment(&set), set.header.pre_apply)),
                Err(HistoryError::Corrupt(why)) => tracing::warn!("left out of the history: {why}"),
                Err(error) => return Err(error),
            }
        }
    }
    for (first, path) in singles {
        let merged = segments.iter_mut().find(|(segment, _)| segment.range.min() == first);
        let size = fs::metadata(&path).map_err(HistoryError::io("reading", &path))?.len();
        match merged {
            Some((segment, _)) => {
                segment.single = Some(size);
                segment.first_time = time_at_begin(&path).unwrap_or(segment.first_time);
            }
            None => {
                let (_, sets) = read_sets(&path)?;
                let pre = sets.first().and_then(|set| set.header.pre_apply);
                segments.extend(single_segment(&sets).map(|segment| (segment, pre)));
            }
        }
    }
    segments.sort_by_key(|(segment, _)| segment.range.min());
    Ok(segments)
}

/// When the first change set of a file was committed.
fn time_at_begin(path: &Path) -> Option<Timestamp> {
    let decoder = Decoder::new(File::open(path).ok()?).ok()?;
    Some(Timestamp::from_ms(decoder.header().timestamp_ms))
}

fn merged_segment(set: &SetAt) -> Segment {
    let time = Timestamp::from_ms(set.header.timestamp_ms);
    Segment {
        range: set.header.range,
        post: set.post,
        commit: set.header.commit,
        first_time: time,
        last_time: time,
        merged: true,
        single: None,
        merged_bytes: set.size_bytes,
    }
}

/// The segment of a file of single change sets, as far as they continue each other.
fn single_segment(sets: &[SetAt]) -> Option<Segment> {
    let first = sets.first()?;
    let mut segment = Segment { merged: false, merged_bytes: 0, ..merged_segment(first) };
    let mut end = first.size_bytes;
    for set in &sets[1..] {
        let follows = segment.range.max().checked_add(1) == Some(set.header.range.min())
            && set.header.pre_apply == Some(segment.post);
        if !follows {
            break;
        }
        end = set.offset + set.size_bytes;
        segment.range = TxidRange::new(segment.range.min(), set.header.range.max())?;
        segment.last_time = segment.last_time.max(Timestamp::from_ms(set.header.timestamp_ms));
        (segment.post, segment.commit) = (set.post, set.header.commit);
    }
    segment.single = Some(end);
    Some(segment)
}
