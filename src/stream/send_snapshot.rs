use std::io::{self, Read};

use bytes::{Bytes, BytesMut};

use super::{CHUNK_BYTES, SnapshotSource, StreamError};
use crate::db::SnapshotHeader;
use crate::ltx::BlobRef;
use crate::store::StoreError;
use crate::types::{Checksum, DbName, Pgno};

/// A part of a database sent by difference.
pub enum SnapshotPiece {
    /// What the pages belong to; first.
    Header(SnapshotHeader),
    /// Pages that differ, in ascending order.
    Pages(Vec<(Pgno, Bytes)>),
    /// The number of pages sent; last.
    End(u32),
}

/// Pages of one message, in bytes.
const BATCH_BYTES: usize = 256 << 10;

/// Sends one database to someone who has pages with the checksums that `have` yields. Blocking.
///
/// `have` gives the checksum of the next page in page order (the lock page's included), `None` at the end. `emit` says
/// whether the receiver is still there.
///
/// # Errors
/// Where there is no such database, or it cannot be read; [`StreamError::Unavailable`] where the receiver left.
pub fn send_snapshot(
    source: &dyn SnapshotSource,
    name: &DbName,
    have: &mut dyn FnMut() -> Result<Option<Checksum>, StreamError>,
    emit: &mut dyn FnMut(SnapshotPiece) -> bool,
) -> Result<(), StreamError> {
    let mut view = source.snapshot(name).map_err(|error| match error {
        StoreError::NotFound(_) => StreamError::NotFound(format!("database {name}")),
        error => StreamError::Store(error),
    })?;
    let left = || StreamError::Unavailable("the receiver of a snapshot left".into());
    let header = view.header();
    if !emit(SnapshotPiece::Header(header)) {
        return Err(left());
    }
    let page_bytes = header.page_size.len();
    let lock = Pgno::lock_page(header.page_size);
    let (mut batch, mut sent) = (Vec::new(), 0u32);
    for pgno in (1..=header.commit.get()).filter_map(Pgno::new) {
        let theirs = have()?;
        if pgno == lock || theirs == Some(view.page_checksum(pgno).map_err(StoreError::from)?) {
            continue;
        }
        let mut page = BytesMut::zeroed(page_bytes);
        view.read_page(pgno, &mut page).map_err(StoreError::from)?;
        batch.push((pgno, page.freeze()));
        sent += 1;
        if batch.len() * page_bytes >= BATCH_BYTES && !emit(SnapshotPiece::Pages(std::mem::take(&mut batch)))
        {
            return Err(left());
        }
    }
    if (batch.is_empty() || emit(SnapshotPiece::Pages(batch))) && emit(SnapshotPiece::End(sent)) {
        Ok(())
    } else {
        Err(left())
    }
}

/// Opens a large change set for [`send_blob`]. Blocking.
///
/// # Errors
/// [`StreamError::NotFound`] where it is not here (any more).
pub fn open_blob(source: &dyn SnapshotSource, blob: BlobRef) -> Result<Box<dyn Read + Send>, StreamError> {
    source.open_blob(blob).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => StreamError::NotFound(format!("blob {blob}")),
        _ => StreamError::Io { what: format!("opening blob {blob}"), source: error },
    })
}

/// Sends a large change set in chunks of at most [`CHUNK_BYTES`]. Blocking; `emit` as for [`send_snapshot`].
///
/// # Errors
/// Where it cannot be read, or the receiver left.
pub fn send_blob(
    blob: BlobRef,
    mut reader: Box<dyn Read + Send>,
    emit: &mut dyn FnMut(Bytes) -> bool,
) -> Result<(), StreamError> {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        reader
            .by_ref()
            .take(CHUNK_BYTES as u64)
            .read_to_end(&mut chunk)
            .map_err(|source| StreamError::Io { what: format!("reading blob {blob}"), source })?;
        if chunk.is_empty() {
            return Ok(());
        }
        if !emit(chunk.into()) {
            return Err(StreamError::Unavailable("the receiver of a blob left".into()));
        }
    }
}
