use std::collections::{BTreeMap, HashSet, VecDeque};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, RwLock};
use std::time::SystemTime;

use bytes::Bytes;

use super::error::LogError;
use super::record::{self, Record};
use super::segment::Segment;
use crate::io::blobs::BlobKey;

/// Where an entry is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub epoch: u64,
    pub offset: u64,
    /// Bytes of the whole record.
    pub bytes: u32,
    /// Bytes of all records up to the end of this one and of the blobs they name, counted from an arbitrary one on.
    pub total: u64,
}

/// Bytes of the newest entries that stay in memory: whoever follows closely never reads the disk.
const RECENT_BYTES_MAX: usize = 4 << 20;

/// The newest entries, without a gap up to the last one.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// The entries' bytes, the last one at the back.
    entries: VecDeque<Bytes>,
    bytes: usize,
}

impl Recent {
    fn push(&mut self, payload: Bytes) {
        self.bytes += payload.len();
        self.entries.push_back(payload);
        while self.bytes > RECENT_BYTES_MAX
            && let Some(oldest) = self.entries.pop_front()
        {
            self.bytes -= oldest.len();
        }
    }

    /// Takes the newest `count` away.
    fn drop_newest(&mut self, count: u64) {
        for _ in 0..count {
            let Some(newest) = self.entries.pop_back() else { return };
            self.bytes -= newest.len();
        }
    }

    /// The entry that `behind` others follow.
    fn get(&self, behind: u64) -> Option<Bytes> {
        let at = self.entries.len().checked_sub(usize::try_from(behind).ok()?.checked_add(1)?)?;
        self.entries.get(at).cloned()
    }
}

/// What reader and writer share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// The last entry given up.
    pub purged: u64,
    /// Entries from `purged + 1` on.
    pub places: VecDeque<Place>,
    /// The blobs of those entries that name some.
    pub blobs: BTreeMap<u64, Vec<BlobKey>>,
    /// Segments in use, by epoch.
    pub segments: BTreeMap<u64, Segment>,
    /// What was written since the start, as far as it fits.
    pub recent: Recent,
}

impl Shared {
    pub fn last_index(&self) -> u64 {
        self.purged + self.places.len() as u64
    }

    /// Adds the next entry, which was written now.
    pub fn push_written(&mut self, place: (u64, u64, u32), payload: &Bytes, blobs: Vec<BlobKey>) {
        self.push(place, blobs);
        self.recent.push(payload.clone());
    }

    /// Adds the next entry: `bytes` at `offset` of the segment of `epoch`, and the blobs it names.
    pub fn push(&mut self, (epoch, offset, bytes): (u64, u64, u32), blobs: Vec<BlobKey>) {
        let before = self.places.back().map_or(0, |last| last.total);
        let named: u64 = blobs.iter().map(|(_, size)| *size).sum();
        self.places.push_back(Place { epoch, offset, bytes, total: before + u64::from(bytes) + named });
        if !blobs.is_empty() {
            self.blobs.insert(self.last_index(), blobs);
        }
    }

    /// Entries above `index` never were.
    pub fn truncate(&mut self, index: u64) {
        self.recent.drop_newest(self.last_index().saturating_sub(index.max(self.purged)));
        self.places.truncate(index.saturating_sub(self.purged) as usize);
        self.blobs.split_off(&(index + 1));
    }

    /// Entries up to `upto` are given up.
    pub fn purge(&mut self, upto: u64) {
        let count = upto.saturating_sub(self.purged).min(self.places.len() as u64) as usize;
        self.places.drain(..count);
        self.purged = self.purged.max(upto);
        if self.places.is_empty() {
            self.recent = Recent::default();
        }
        self.blobs = self.blobs.split_off(&(upto + 1));
    }

    fn find(&self, index: u64, place: Place) -> Result<Found, LogError> {
        if let Some(payload) = self.recent.get(self.last_index() - index) {
            return Ok(Found::Memory(payload));
        }
        let segment = self.segments.get(&place.epoch).ok_or(LogError::Missing(index))?;
        Ok(Found::File(place, segment.clone()))
    }

    /// The oldest epoch that still holds an entry.
    pub fn first_epoch(&self) -> Option<u64> {
        self.places.front().map(|place| place.epoch)
    }
}

/// Where an entry can be had.
enum Found {
    Memory(Bytes),
    File(Place, Segment),
}

/// Reads entries while the log is written.
#[derive(Debug, Clone)]
pub struct LogReader {
    shared: Arc<RwLock<Shared>>,
}

impl LogReader {
    pub(super) fn new(shared: Arc<RwLock<Shared>>) -> Self {
        Self { shared }
    }

    fn lock(&self) -> std::sync::RwLockReadGuard<'_, Shared> {
        self.shared.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The oldest entry that is not given up, whether or not it was written yet.
    pub fn first_index(&self) -> u64 {
        self.lock().purged + 1
    }

    /// The newest entry; the last one given up where there is none.
    pub fn last_index(&self) -> u64 {
        self.lock().last_index()
    }

    /// Entries `from..to`, as far as they are there, until about `bytes_max` bytes; at least one where there is one.
    ///
    /// # Errors
    /// `Missing` where `from` is given up; `Io` and `Corrupt` of the files.
    pub fn read(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<(u64, Bytes)>, LogError> {
        let mut wanted = Vec::new();
        {
            let shared = self.lock();
            if from <= shared.purged {
                return Err(LogError::Missing(from));
            }
            let mut bytes = 0;
            for index in from..to.min(shared.last_index() + 1) {
                let place = shared.places[(index - shared.purged - 1) as usize];
                if bytes > 0 && bytes + place.bytes as usize > bytes_max {
                    break;
                }
                bytes += place.bytes as usize;
                wanted.push((index, shared.find(index, place)?));
            }
        }
        wanted
            .into_iter()
            .map(|(index, found)| match found {
                Found::Memory(payload) => Ok((index, payload)),
                Found::File(place, segment) => Ok((index, read_entry(index, place, &segment)?)),
            })
            .collect()
    }

    /// Bytes of the entries above `index` and of the blobs they name.
    pub fn bytes_above(&self, index: u64) -> u64 {
        let shared = self.lock();
        let (Some(first), Some(last)) = (shared.places.front(), shared.places.back()) else { return 0 };
        match index.checked_sub(shared.purged + 1) {
            None => {
                let of_first = shared.blobs.get(&(shared.purged + 1));
                let named: u64 = of_first.into_iter().flatten().map(|(_, size)| *size).sum();
                last.total - first.total + u64::from(first.bytes) + named
            }
            Some(at) => shared.places.get(at as usize).map_or(0, |place| last.total - place.total),
        }
    }

    /// The blobs that entries up to `index` name.
    pub fn blobs_up_to(&self, index: u64) -> HashSet<BlobKey> {
        self.lock().blobs.range(..=index).flat_map(|(_, blobs)| blobs.iter().copied()).collect()
    }

    /// The blobs that all entries name.
    pub fn blobs(&self) -> HashSet<BlobKey> {
        self.blobs_up_to(u64::MAX)
    }

    /// About when an entry was written: when its segment last was.
    pub fn written_at(&self, index: u64) -> Option<SystemTime> {
        let shared = self.lock();
        let place = shared.places.get(index.checked_sub(shared.purged + 1)? as usize)?;
        shared.segments.get(&place.epoch)?.file.metadata().ok()?.modified().ok()
    }

    /// The last entry of the oldest segments that may go if entries up to `index` may: purging less frees nothing.
    pub fn last_of_whole_segments(&self, index: u64) -> Option<u64> {
        let shared = self.lock();
        let newest = shared.segments.keys().next_back().copied()?;
        let count = index.saturating_sub(shared.purged) as usize;
        let next = shared.places.get(count).map_or(newest, |place| place.epoch);
        let whole = shared.places.iter().take(count).take_while(|place| place.epoch < next).count() as u64;
        (whole > 0).then(|| shared.purged + whole)
    }
}

fn read_entry(index: u64, place: Place, segment: &Segment) -> Result<Bytes, LogError> {
    let mut bytes = vec![0; place.bytes as usize];
    segment.file.read_exact_at(&mut bytes, place.offset).map_err(LogError::io("reading", &segment.path))?;
    match record::decode(place.epoch, &bytes).and_then(|stored| stored.record) {
        Some(Record::Entry { index: found, .. }) if found == index => {
            Ok(Bytes::from(bytes).slice(record::RECORD_HEADER_BYTES..))
        }
        // A segment that was recycled since the look at the index, or damage.
        _ => Err(LogError::Corrupt {
            path: segment.path.clone(),
            offset: place.offset,
            why: format!("entry {index} is not there"),
        }),
    }
}
