use std::fs::File;
use std::io::{BufWriter, Write};

use crate::ltx::{self, Compression, LtxError};

/// Change sets merged at a time: each step looks at the next page of all of them.
const MERGED_AT_A_TIME: usize = 128;

/// Merges following change sets into one file, with the checksums of the first and the last.
///
/// # Errors
/// Where they are damaged, do not follow each other, or the file cannot be written.
pub(super) fn merge(sets: Vec<&[u8]>, file: &File) -> Result<(), LtxError> {
    let mut owned: Vec<Vec<u8>> = Vec::new();
    if sets.len() > MERGED_AT_A_TIME {
        for some in sets.chunks(MERGED_AT_A_TIME) {
            owned.push(ltx::compact(some.iter().copied(), Vec::new(), Compression::Stored)?.writer);
        }
        return merge(owned.iter().map(Vec::as_slice).collect(), file);
    }
    let writer = BufWriter::with_capacity(1 << 18, file);
    let mut done = ltx::compact(sets, writer, Compression::Lz4)?;
    done.writer.flush().map_err(|source| LtxError::Io { offset: done.size_bytes, source })
}
