//! The record, little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | CRC-64/GO-ISO over the segment's epoch (8 bytes) and the bytes from 8 to the payload's end |
//! | 8 | 8 | index: of an entry, or the point of a truncation or purge; else 0 |
//! | 16 | 8 | bytes of this segment that were synced when the record was written |
//! | 24 | 4 | length of the payload |
//! | 28 | 1 | kind: 1 entry, 2 vote, 3 committed, 4 purged, 5 truncated, 6 end of segment |
//! | 29 | 3 | zero |
//! | 32 | n | payload |

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

/// Bytes before the payload.
pub(super) const RECORD_HEADER_BYTES: usize = 32;

const ENTRY: u8 = 1;
const VOTE: u8 = 2;
const COMMITTED: u8 = 3;
const PURGED: u8 = 4;
const TRUNCATED: u8 = 5;
const END: u8 = 6;

/// Something to be written to the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// An entry; its payload is opaque here.
    Entry {
        /// Its index, one above that of the entry before.
        index: u64,
        /// Its bytes.
        payload: Bytes,
    },
    /// The vote, replacing the one before.
    Vote(Bytes),
    /// How far the log is known to be committed, replacing the one before.
    Committed(Bytes),
    /// Entries up to and including this one are given up.
    Purged {
        /// The last entry given up.
        upto: u64,
        /// Its log id, opaque here.
        log_id: Bytes,
    },
    /// Entries above this one never were.
    Truncated {
        /// The last entry that stays, 0 for none.
        after: u64,
    },
}

/// A record as it stands in a segment.
pub(super) struct Stored {
    /// The record; `None` for the end of the segment.
    pub record: Option<Record>,
}

impl Record {
    fn parts(&self) -> (u8, u64, &[u8]) {
        match self {
            Record::Entry { index, payload } => (ENTRY, *index, payload),
            Record::Vote(vote) => (VOTE, 0, vote),
            Record::Committed(committed) => (COMMITTED, 0, committed),
            Record::Purged { upto, log_id } => (PURGED, *upto, log_id),
            Record::Truncated { after } => (TRUNCATED, *after, &[]),
        }
    }

    /// Bytes the record takes.
    pub(super) fn stored_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.parts().2.len()
    }

    /// Appends the record to `out`.
    pub(super) fn encode(&self, epoch: u64, synced: u64, out: &mut Vec<u8>) {
        let (kind, index, payload) = self.parts();
        encode_parts(epoch, synced, kind, index, payload, out);
    }
}

/// Appends the mark that a segment is complete.
pub(super) fn encode_end(epoch: u64, synced: u64, out: &mut Vec<u8>) {
    encode_parts(epoch, synced, END, 0, &[], out);
}

fn encode_parts(epoch: u64, synced: u64, kind: u8, index: u64, payload: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&index.to_le_bytes());
    out.extend_from_slice(&synced.to_le_bytes());
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.extend_from_slice(payload);
    let sum = checksum(epoch, &out[start + 8..]);
    out[start..start + 8].copy_from_slice(&sum.to_le_bytes());
}

fn checksum(epoch: u64, bytes: &[u8]) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64GoIso);
    digest.update(&epoch.to_le_bytes());
    digest.update(bytes);
    digest.finalize()
}

/// Length of the payload that a record header claims.
pub(super) fn payload_bytes(header: &[u8]) -> usize {
    u32::from_le_bytes(header[24..28].try_into().expect("four bytes")) as usize
}

/// Reads a record from bytes that are exactly as long as it claims; `None` where it is not one of this epoch.
pub(super) fn decode(epoch: u64, bytes: &[u8]) -> Option<Stored> {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    if word(0) != checksum(epoch, &bytes[8..]) {
        return None;
    }
    let (index, payload) = (word(8), &bytes[RECORD_HEADER_BYTES..]);
    let bytes_of = || Bytes::copy_from_slice(payload);
    let record = match bytes[28] {
        ENTRY => Some(Record::Entry { index, payload: bytes_of() }),
        VOTE => Some(Record::Vote(bytes_of())),
        COMMITTED => Some(Record::Committed(bytes_of())),
        PURGED => Some(Record::Purged { upto: index, log_id: bytes_of() }),
        TRUNCATED => Some(Record::Truncated { after: index }),
        END => None,
        _ => return None,
    };
    Some(Stored { record })
}
