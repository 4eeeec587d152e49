//! The log as a crash left it.

use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;

use super::error::LogError;
use super::log::Recovered;
use super::reader::Shared;
use super::record::{self, RECORD_HEADER_BYTES, Record};
use super::segment::{self, HEADER_BYTES, Segment};
use super::spare::is_spare;
use crate::io::blobs::BlobKey;

/// Files of the directory that the state machine keeps beside the segments.
const OTHER_FILES: [&str; 2] = ["membership", "fetched"];

/// Where writing goes on.
pub(super) struct End {
    pub segment: Segment,
    pub offset: u64,
}

/// Segments of the directory, oldest first.
pub(super) fn segments(dir: &Path) -> Result<Vec<Segment>, LogError> {
    let mut epochs = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(LogError::io("reading", dir))? {
        let entry = entry.map_err(LogError::io("reading", dir))?;
        let name = entry.file_name();
        match segment::epoch_of(&name.to_string_lossy()) {
            Some(epoch) => epochs.push(epoch),
            None if is_spare(&name.to_string_lossy()) || OTHER_FILES.iter().any(|other| name == *other) => {}
            None => return Err(LogError::Foreign(entry.path())),
        }
    }
    epochs.sort_unstable();
    if let Some(gap) = epochs.windows(2).find(|pair| pair[1] != pair[0] + 1) {
        let (path, why) = (segment::path_of(dir, gap[0] + 1), "the segment is missing".to_owned());
        return Err(LogError::Corrupt { path, offset: 0, why });
    }
    epochs.into_iter().map(|epoch| Segment::open(&segment::path_of(dir, epoch), epoch)).collect()
}

/// Reads all segments; only the last may end without saying so.
pub(super) fn replay(
    segments: &[Segment],
    names: fn(&Bytes) -> Vec<BlobKey>,
    shared: &mut Shared,
    found: &mut Recovered,
) -> Result<Option<End>, LogError> {
    let mut end = None;
    for (number, segment) in segments.iter().enumerate() {
        let last = number + 1 == segments.len();
        let (offset, complete) = replay_segment(segment, names, shared, found)?;
        if !last && !complete {
            let why = "it ends before its end mark, and a later segment follows".to_owned();
            return Err(LogError::Corrupt { path: segment.path.clone(), offset, why });
        }
        shared.segments.insert(segment.epoch, segment.clone());
        end = last.then(|| End { segment: segment.clone(), offset });
    }
    Ok(end)
}

fn replay_segment(
    segment: &Segment,
    names: fn(&Bytes) -> Vec<BlobKey>,
    shared: &mut Shared,
    found: &mut Recovered,
) -> Result<(u64, bool), LogError> {
    crate::io::fault::point("raft_recover_read").map_err(LogError::io("reading", &segment.path))?;
    let size = segment.file.metadata().map_err(LogError::io("reading", &segment.path))?.len();
    let mut bytes = vec![0; size.saturating_sub(HEADER_BYTES) as usize];
    segment.file.read_exact_at(&mut bytes, HEADER_BYTES).map_err(LogError::io("reading", &segment.path))?;
    let mut at = 0;
    while let Some((stored, length)) = record_at(segment.epoch, &bytes, at) {
        let offset = HEADER_BYTES + at as u64;
        let Some(record) = stored.record else { return Ok((offset, true)) };
        let place = (segment.epoch, offset, length as u32);
        if let Err(why) = adopt(record, place, names, shared, found) {
            return Err(LogError::Corrupt { path: segment.path.clone(), offset, why });
        }
        at += length;
    }
    let offset = HEADER_BYTES + at as u64;
    if let Some(later) = synced_behind(segment.epoch, &bytes, at) {
        let why = format!("a record was durable here: one at byte {} says so", HEADER_BYTES + later as u64);
        return Err(LogError::Corrupt { path: segment.path.clone(), offset, why });
    }
    Ok((offset, false))
}

fn record_at(epoch: u64, bytes: &[u8], at: usize) -> Option<(record::Stored, usize)> {
    let header = bytes.get(at..at + RECORD_HEADER_BYTES)?;
    let length = RECORD_HEADER_BYTES + record::payload_bytes(header);
    let stored = record::decode(epoch, bytes.get(at..at + length)?)?;
    Some((stored, length))
}

/// A record behind `at` that was written when the bytes at `at` were already durable: they were damaged since. A
/// write that a crash tore leaves no such record.
fn synced_behind(epoch: u64, bytes: &[u8], at: usize) -> Option<usize> {
    let damaged = HEADER_BYTES + at as u64;
    (at + 1..bytes.len().saturating_sub(RECORD_HEADER_BYTES)).find(|later| {
        let header = &bytes[*later..*later + RECORD_HEADER_BYTES];
        // Cheap tests first: nearly every offset fails them.
        let plausible = (1..=6).contains(&header[28]) && header[29..32] == [0; 3];
        let synced = u64::from_le_bytes(header[16..24].try_into().expect("eight bytes"));
        plausible
            && synced > damaged
            && synced <= HEADER_BYTES + *later as u64
            && record_at(epoch, bytes, *later).is_some()
    })
}

/// Makes a record part of the recovered log.
fn adopt(
    record: Record,
    place: (u64, u64, u32),
    names: fn(&Bytes) -> Vec<BlobKey>,
    shared: &mut Shared,
    found: &mut Recovered,
) -> Result<(), String> {
    match record {
        Record::Entry { index, payload } => {
            if shared.places.is_empty() && index > shared.purged + 1 && shared.segments.is_empty() {
                // The oldest segment begins behind entries that were purged; the purge record follows.
                shared.purged = index - 1;
            }
            if index <= shared.purged {
                return Ok(());
            }
            if index > shared.last_index() + 1 {
                return Err(format!("entry {index} follows entry {}", shared.last_index()));
            }
            shared.truncate(index - 1);
            shared.push(place, names(&payload));
        }
        Record::Vote(vote) => found.vote = Some(vote),
        Record::Committed(committed) => found.committed = Some(committed),
        Record::Truncated { after } if after < shared.purged => {
            // What the oldest segment began with was given up later, and what took its place follows.
            shared.places.clear();
            shared.blobs.clear();
            shared.purged = after.max(found.purged.as_ref().map_or(0, |(upto, _)| *upto));
        }
        Record::Truncated { after } => shared.truncate(after),
        Record::Purged { upto, log_id } => {
            shared.purge(upto);
            found.purged = Some((upto, log_id));
        }
    }
    Ok(())
}
