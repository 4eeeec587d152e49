//! Change sets that never become history are kept as LTX files in `discarded/`.

use std::io;
use std::path::PathBuf;

use super::shared::Shared;
use crate::io::durable;
use crate::ltx::{self, Compression, Encoder};
use crate::types::{Checksum, DbName, PageCount, PageSize, Pgno, Pos, TxidRange};

/// Writes pages as `discarded/<database, slashes as %2F>-<txid>-<milliseconds>.ltx`; `base` is the position they
/// were made on.
///
/// # Errors
/// Where a page cannot be read or the file not be written durably.
#[allow(clippy::too_many_arguments)]
pub(super) fn write_discarded<'a>(
    shared: &Shared,
    db: &DbName,
    base: Pos,
    page_size: PageSize,
    pages: PageCount,
    numbers: impl Iterator<Item = &'a Pgno>,
    read: &mut dyn FnMut(&Pgno, &mut [u8]) -> io::Result<()>,
    timestamp_ms: i64,
) -> io::Result<PathBuf> {
    std::fs::create_dir_all(&shared.discarded)?;
    let txid = base.next_txid();
    let name = format!("{}-{txid}-{timestamp_ms}.ltx", db.as_str().replace('/', "%2F"));
    let path = shared.discarded.join(name);
    let temporary = durable::temporary_in(&shared.discarded)?;
    let header = ltx::Header {
        // What the database's checksum would be is not known: these pages never were part of it.
        no_checksum: true,
        page_size,
        commit: pages,
        range: TxidRange::single(txid),
        timestamp_ms,
        pre_apply: None,
        wal_offset: 0,
        wal_size_bytes: 0,
        wal_salt: (0, 0),
        node_id: shared.node,
    };
    let writer = io::BufWriter::new(temporary);
    let mut encoder = Encoder::new(writer, header, Compression::Lz4).map_err(io::Error::other)?;
    let mut page = vec![0; page_size.len()];
    let lock_page = Pgno::lock_page(page_size);
    for pgno in numbers.filter(|pgno| pages.contains(**pgno) && **pgno != lock_page) {
        read(pgno, &mut page)?;
        encoder.page(*pgno, &page).map_err(io::Error::other)?;
    }
    let finished = encoder.finish(None::<Checksum>).map_err(io::Error::other)?;
    let temporary = finished.writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    temporary.as_file().sync_all()?;
    let kept = temporary.into_temp_path();
    durable::rename(&kept, &path)?;
    // Renamed away: nothing is left for the guard to remove.
    let _ = kept.keep();
    Ok(path)
}
