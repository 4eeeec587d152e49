//! LTX: the change-set format, bytes in and out, no I/O of its own.
//!
//! Owns the file format (version 3, read and written by Litestream 0.5 and the `ltx` tool, too) and the
//! record around it that the log orders. Readers and writers are handed in; all input is taken as hostile.
//!
//! A file is a header of 100 bytes; per page a frame of page number (4), flags (2), size (4) and an LZ4 block;
//! 6 zero bytes; an index of the frames; and a trailer of 16 bytes. The file checksum covers the pages
//! uncompressed.

mod change_set;
mod compactor;
mod crc;
mod decoder;
mod encoder;
mod error;
mod file_name;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod header;
mod index;
mod page_index;
#[cfg(test)]
mod tests;

pub use change_set::{BlobRef, Body, ChangeSet, ChangeSetError};
pub(crate) use change_set::{put_name, take, take_name};
pub use compactor::{CompactHeader, CompactOptions, compact, compact_as};
pub use crc::page_checksum;
pub use decoder::{Decoder, verify};
pub use encoder::{Compression, Encoder, Finished};
pub use error::LtxError;
pub use file_name::{file_name, parse_file_name};
pub use header::{HEADER_SIZE, Header, TRAILER_SIZE, Trailer};
pub use page_index::{FrameAt, INDEX_END_SIZE, decode_frame, index_end, parse_page_index};
