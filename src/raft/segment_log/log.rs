use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock, RwLockWriteGuard};

use bytes::Bytes;

use super::error::LogError;
use super::reader::{LogReader, Shared};
use super::record::{self, RECORD_HEADER_BYTES, Record};
use super::recovery;
use super::segment::{HEADER_BYTES, Segment};
use super::spare::Spares;
use crate::io::blobs::BlobKey;
use crate::io::{durable, fault};

/// Where the log is, and how large its segments are.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// The directory.
    pub dir: PathBuf,
    /// Size of a segment in bytes; a larger record gets one of its own.
    pub segment_bytes: u64,
    /// The blobs that the payload of an entry names.
    pub names: fn(&Bytes) -> Vec<BlobKey>,
}

/// What the log remembers besides entries.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The last vote written.
    pub vote: Option<Bytes>,
    /// The last committed mark written.
    pub committed: Option<Bytes>,
    /// The last purge: index and log id.
    pub purged: Option<(u64, Bytes)>,
}

/// The writer of the log.
#[derive(Debug)]
pub struct SegmentLog {
    options: LogOptions,
    spares: Spares,
    shared: Arc<RwLock<Shared>>,
    current: Segment,
    /// Size of the current segment's file.
    size: u64,
    offset: u64,
    synced: u64,
    kept: Recovered,
    poisoned: Option<LogError>,
    /// Less than a quarter of the segment is left.
    low: Arc<AtomicBool>,
    buffer: Vec<u8>,
}

impl SegmentLog {
    /// Opens or creates the log.
    ///
    /// # Errors
    /// `Corrupt` where durable records are damaged: nothing is changed then. `Foreign` where the directory holds
    /// other files, `Version` where a newer program wrote it.
    pub fn open(options: LogOptions) -> Result<(Self, Recovered), LogError> {
        std::fs::create_dir_all(&options.dir).map_err(LogError::io("creating", &options.dir))?;
        durable::remove_temporaries(&options.dir)
            .map_err(LogError::io("removing half-written files of", &options.dir))?;
        let segments = recovery::segments(&options.dir)?;
        let (mut shared, mut kept) = (Shared::default(), Recovered::default());
        let end = recovery::replay(&segments, options.names, &mut shared, &mut kept)?;
        let spares = Spares::open(&options.dir, options.segment_bytes)?;
        let epoch = end.as_ref().map_or(1, |end| end.segment.epoch + 1);
        // Always a new segment: behind the old one's end may be records of a write that a crash tore, of the same
        // epoch as what would be written over them.
        if let Some(end) = &end {
            mark_end(end)?;
            end.give_back_rest()?;
        }
        let (path, file) = spares.take_first(options.segment_bytes)?;
        let current = Segment::begin(&options.dir, &path, file, epoch)?;
        let size = current.size_bytes()?;
        shared.segments.insert(epoch, current.clone());
        let shared = Arc::new(RwLock::new(shared));
        let recovered = kept.clone();
        let mut log = Self {
            options,
            spares,
            shared,
            current,
            size,
            offset: HEADER_BYTES,
            synced: HEADER_BYTES,
            kept,
            poisoned: None,
            low: Arc::default(),
            buffer: Vec::new(),
        };
        log.carry_over()?;
        log.recycle()?;
        Ok((log, recovered))
    }

    /// Reads what this log holds.
    pub fn reader(&self) -> LogReader {
        LogReader::new(self.shared.clone())
    }

    fn lock(&self) -> RwLockWriteGuard<'_, Shared> {
        self.shared.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Writes records with one system call. Entries can be read at once; durable they are after [`sync`](Self::sync).
    ///
    /// # Errors
    /// `Io` where the disk is full or fails; after the latter the log is poisoned.
    pub fn write(&mut self, records: &[Record]) -> Result<(), LogError> {
        self.alive()?;
        if let Some(begin) = self.begin_behind(records) {
            self.write_in_turn(&[begin])?;
        }
        self.write_in_turn(records)
    }

    /// An empty log may begin at any entry: what came before came another way. Says so in the log where it does.
    fn begin_behind(&self, records: &[Record]) -> Option<Record> {
        let first = records.iter().find_map(|record| match record {
            Record::Entry { index, .. } => Some(*index),
            _ => None,
        })?;
        let shared = self.shared.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let behind = shared.places.is_empty() && first > shared.purged + 1;
        behind.then(|| Record::Purged { upto: first - 1, log_id: Bytes::new() })
    }

    fn write_in_turn(&mut self, records: &[Record]) -> Result<(), LogError> {
        let mut rest = records;
        while !rest.is_empty() {
            let room = self.room();
            let mut bytes = 0;
            let fits = rest
                .iter()
                .take_while(|record| {
                    bytes += record.stored_bytes() as u64;
                    bytes <= room
                })
                .count();
            if fits == 0 {
                self.roll(rest[0].stored_bytes() as u64)?;
                continue;
            }
            let (now, later) = rest.split_at(fits);
            self.write_here(now)?;
            rest = later;
        }
        Ok(())
    }

    /// Bytes left in the segment, its end mark left aside.
    fn room(&self) -> u64 {
        self.size.saturating_sub(self.offset + RECORD_HEADER_BYTES as u64)
    }

    fn write_here(&mut self, records: &[Record]) -> Result<(), LogError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut places = Vec::with_capacity(records.len());
        for record in records {
            places.push((self.offset + buffer.len() as u64, record.stored_bytes() as u32));
            record.encode(self.current.epoch, self.synced, &mut buffer);
        }
        #[cfg(test)]
        crate::io::power::before_write(&self.current.path, &self.current.file, self.offset, buffer.len());
        let written = fault::point("raft_append_write")
            .and_then(|()| self.current.file.write_all_at(&buffer, self.offset));
        let bytes = buffer.len() as u64;
        buffer.shrink_to(1 << 20);
        self.buffer = buffer;
        if let Err(error) = written {
            let full = error.raw_os_error() == Some(nix::libc::ENOSPC);
            let error = LogError::io("writing", &self.current.path)(error);
            // The segment's blocks exist, so a full disk is rare here; nothing of the write counts then.
            return Err(if full { error } else { self.poison(error) });
        }
        self.offset += bytes;
        let epoch = self.current.epoch;
        let mut shared = self.lock();
        let mut purged = None;
        for (record, (offset, bytes)) in records.iter().zip(places) {
            match record {
                Record::Entry { index, payload } => {
                    shared.truncate(index - 1);
                    shared.push_written((epoch, offset, bytes), payload, (self.options.names)(payload));
                }
                Record::Truncated { after } => shared.truncate(*after),
                Record::Purged { upto, log_id } => {
                    shared.purge(*upto);
                    purged = Some((*upto, log_id.clone()));
                }
                Record::Vote(_) | Record::Committed(_) => {}
            }
        }
        drop(shared);
        self.kept.purged = purged.or(self.kept.purged.take());
        for record in records {
            match record {
                Record::Vote(vote) => self.kept.vote = Some(vote.clone()),
                Record::Committed(committed) => self.kept.committed = Some(committed.clone()),
                _ => {}
            }
        }
        if self.offset * 2 > self.options.segment_bytes {
            self.spares.prepare();
        }
        self.low.store(self.offset * 4 > self.options.segment_bytes * 3, Ordering::Relaxed);
        Ok(())
    }

    /// Why the log should get no more entries for now: its segment is nearly full, and there is no disk space for
    /// the next. An entry it cannot take would end Raft.
    pub fn starved(&self) -> impl Fn() -> Option<String> + Send + Sync + use<> {
        let (spares, low) = (self.spares.clone(), self.low.clone());
        move || low.load(Ordering::Relaxed).then(|| spares.lacking()).flatten()
    }

    /// Makes everything written durable.
    ///
    /// # Errors
    /// `Io` where the disk fails: what it holds is not known then, and the log takes no more records.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.alive()?;
        if self.synced == self.offset {
            return Ok(());
        }
        let done = fault::point("raft_append_sync").and_then(|()| self.current.file.sync_data());
        #[cfg(test)]
        let done = done.and_then(|()| crate::io::power::sync(&self.current.path));
        match done {
            Ok(()) => {
                self.synced = self.offset;
                Ok(())
            }
            Err(error) => {
                let error = LogError::io("syncing", &self.current.path)(error);
                Err(self.poison(error))
            }
        }
    }

    /// Ends the segment and begins the next.
    fn roll(&mut self, bytes: u64) -> Result<(), LogError> {
        self.sync()?;
        let need = HEADER_BYTES + bytes + 2 * RECORD_HEADER_BYTES as u64 + self.kept_bytes();
        let (path, file) = self.spares.take(need)?;
        mark_end(&recovery::End { segment: self.current.clone(), offset: self.offset })?;
        let next = Segment::begin(&self.options.dir, &path, file, self.current.epoch + 1)?;
        self.size = next.size_bytes()?;
        self.lock().segments.insert(next.epoch, next.clone());
        self.current = next;
        (self.offset, self.synced) = (HEADER_BYTES, HEADER_BYTES);
        self.carry_over()
    }

    fn kept_bytes(&self) -> u64 {
        self.kept_records().iter().map(|record| record.stored_bytes() as u64).sum()
    }

    fn kept_records(&self) -> Vec<Record> {
        let kept = &self.kept;
        let purged = kept.purged.clone().map(|(upto, log_id)| Record::Purged { upto, log_id });
        let vote = kept.vote.clone().map(Record::Vote);
        let committed = kept.committed.clone().map(Record::Committed);
        purged.into_iter().chain(vote).chain(committed).collect()
    }

    /// Writes vote, committed mark and purge point into a new segment, so that older ones may go.
    fn carry_over(&mut self) -> Result<(), LogError> {
        let records = self.kept_records();
        if !records.is_empty() {
            self.write_here(&records)?;
            self.sync()?;
        }
        Ok(())
    }

    /// Recycles segments whose entries are all given up.
    ///
    /// # Errors
    /// `Io` where a file cannot be renamed or removed.
    pub fn recycle(&mut self) -> Result<(), LogError> {
        // The purge record must be durable before what it gives up is overwritten.
        self.sync()?;
        let gone: Vec<Segment> = {
            let mut shared = self.lock();
            let first = shared.first_epoch().unwrap_or(self.current.epoch).min(self.current.epoch);
            let keep = shared.segments.split_off(&first);
            std::mem::replace(&mut shared.segments, keep).into_values().collect()
        };
        for segment in gone {
            let size = segment.file.metadata().map_or(0, |metadata| metadata.len());
            self.spares.give(&segment.path, size)?;
        }
        Ok(())
    }

    fn alive(&self) -> Result<(), LogError> {
        match &self.poisoned {
            Some(first) => Err(LogError::Poisoned(first.to_string())),
            None => Ok(()),
        }
    }

    fn poison(&mut self, error: LogError) -> LogError {
        self.poisoned = Some(error.clone());
        error
    }
}

impl recovery::End {
    /// Cuts off what follows the end mark: a node that is started often must not leave a whole empty segment behind
    /// each time.
    fn give_back_rest(&self) -> Result<(), LogError> {
        let length = self.offset + RECORD_HEADER_BYTES as u64;
        let cut = fault::point("raft_segment_cut").and_then(|()| self.segment.file.set_len(length));
        cut.map_err(LogError::io("ending log segment", &self.segment.path))
    }
}

/// Marks a segment as complete.
fn mark_end(end: &recovery::End) -> Result<(), LogError> {
    let mut mark = Vec::with_capacity(RECORD_HEADER_BYTES);
    record::encode_end(end.segment.epoch, end.offset, &mut mark);
    let file = &end.segment.file;
    fault::point("raft_segment_end")
        .and_then(|()| file.write_all_at(&mark, end.offset))
        .and_then(|()| file.sync_data())
        .map_err(LogError::io("ending log segment", &end.segment.path))
}
