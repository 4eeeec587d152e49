//! The durable log's files: segments that are written over again and again.
//!
//! Overwriting blocks that exist needs no journal commit of the file system, which halves an fdatasync; so
//! segments are filled with zeros when made, and one that is purged becomes the next one. An epoch in each
//! record's checksum keeps the former content from being taken for the present one.
//!
//! Knows nothing of Raft: records are numbered bytes. One writer; any number of readers.

mod error;
mod log;
mod reader;
mod record;
mod recovery;
mod segment;
mod spare;
#[cfg(test)]
mod tests;

pub use error::LogError;
#[cfg(test)]
use log::Recovered;
pub use log::{LogOptions, SegmentLog};
pub use reader::LogReader;
pub use record::Record;

/// Reads the log in a directory and changes nothing.
///
/// # Errors
/// As [`SegmentLog::open`].
#[cfg(test)]
pub fn replayed(
    dir: &std::path::Path,
    names: fn(&bytes::Bytes) -> Vec<crate::io::blobs::BlobKey>,
) -> Result<(), LogError> {
    let segments = recovery::segments(dir)?;
    recovery::replay(&segments, names, &mut reader::Shared::default(), &mut log::Recovered::default())
        .map(drop)
}
