//! A change set on its way into a database: checked as a whole before a byte of it is written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};

use bytes::{Buf, Bytes};

use super::DbError;
use super::batch::Batch;
use super::database::{Database, State};
use super::page_checksums::WalPoint;
use super::shared::Shared;
use crate::ltx::{self, Body, ChangeSet, Decoder, LtxError};
use crate::sqlite::header::DatabaseHeader;
use crate::sqlite::wal::{FRAME_HEADER_SIZE, Salt, WAL_HEADER_SIZE};
use crate::types::{Checksum, PageCount, Pgno};

/// A change set whose LTX has been read through once and found sound.
pub(super) struct Incoming {
    /// The change with its new checksums.
    pub batch: Batch,
    /// An open rollback database is written beside the mount: whoever waits for it may have the kernel hold the file
    /// locked, as an fsync does.
    pub beside_mount: bool,
    source: LtxSource,
}

/// Where LTX bytes can be read, more than once.
pub(super) enum LtxSource {
    /// In memory.
    Bytes(Bytes),
    /// In a file.
    File(File),
}

impl LtxSource {
    pub fn of(change: &ChangeSet, shared: &Shared) -> io::Result<Self> {
        Ok(match &change.body {
            Body::Inline(bytes) => LtxSource::Bytes(bytes.clone()),
            Body::Blob(blob) => LtxSource::File(shared.blobs.open_blob((blob.digest, blob.size_bytes))?),
        })
    }

    fn decoder(&self) -> io::Result<Decoder<Box<dyn Read + '_>>> {
        let reader: Box<dyn Read + '_> = match self {
            LtxSource::Bytes(bytes) => Box::new(bytes.clone().reader()),
            LtxSource::File(file) => {
                use std::io::{Seek, SeekFrom};
                let mut file = file;
                file.seek(SeekFrom::Start(0))?;
                Box::new(BufReader::with_capacity(256 * 1024, file))
            }
        };
        Decoder::new(reader).map_err(into_io)
    }
}

/// An LTX error as the I/O error of the file it was found in.
pub(super) fn into_io(error: LtxError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

impl LtxSource {
    /// All pages in memory; for change sets of applications that are known to be small.
    pub fn pages_by_number(&self) -> io::Result<BTreeMap<Pgno, Vec<u8>>> {
        let mut decoder = self.decoder()?;
        let (mut pages, mut page) = (BTreeMap::new(), Vec::new());
        while let Some(pgno) = decoder.next_page(&mut page).map_err(into_io)? {
            pages.insert(pgno, page.clone());
        }
        Ok(pages)
    }
}

impl Incoming {
    /// Gives the pages in ascending order.
    ///
    /// # Errors
    /// Where the source fails, or `visit` does.
    pub fn for_each(&self, mut visit: impl FnMut(Pgno, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut decoder = self.source.decoder()?;
        let mut page = Vec::new();
        while let Some(pgno) = decoder.next_page(&mut page).map_err(into_io)? {
            visit(pgno, &page)?;
        }
        Ok(())
    }
}

/// How far this node had captured its WAL with a change set: redo must know, or a WAL that a power cut left older than
/// the log would be taken for newer.
fn captured_here(header: &ltx::Header, shared: &Shared) -> Option<WalPoint> {
    if header.node_id != shared.node || header.wal_size_bytes == 0 {
        return None;
    }
    let frame_bytes = header.page_size.bytes() + FRAME_HEADER_SIZE as u64;
    let behind = (header.wal_offset + header.wal_size_bytes).checked_sub(WAL_HEADER_SIZE as u64)?;
    let salt = Salt(header.wal_salt.0, header.wal_salt.1);
    Some(WalPoint { salt, frame: u32::try_from(behind / frame_bytes).ok()? })
}

impl Database {
    /// Reads a change set through and checks that it leads from the present position to the one it names.
    pub(super) fn check_incoming(&self, state: &State, change: &ChangeSet) -> Result<Incoming, DbError> {
        let fail = |source| self.io_error(format!("reading change set {}", change.range.max()), source);
        let source = LtxSource::of(change, &self.shared).map_err(fail)?;
        self.check_source(state, change.clone(), source, true)
    }

    /// The same for an LTX source that is not the change set's own body. Where `chained` is false the present
    /// content is arbitrary and the pages given are what makes it the target.
    pub(super) fn check_source(
        &self,
        state: &State,
        change: ChangeSet,
        source: LtxSource,
        chained: bool,
    ) -> Result<Incoming, DbError> {
        if chained && (change.range.min() != state.pos.next_txid() || change.pre != state.pos.checksum) {
            let why = format!(
                "change set {}-{} does not continue {}",
                change.range.min(),
                change.range.max(),
                state.pos
            );
            return Err(self.corrupt(why));
        }
        let fail = |source| self.io_error(format!("reading change set {}", change.range.max()), source);
        let reset = change.page_size != state.page_size && state.pages != PageCount::ZERO;
        let mut total = match (reset, chained) {
            (true, _) => Checksum::EMPTY,
            (false, true) => state.pos.checksum,
            (false, false) => state.checksums.fold(1, state.pages.get()).map_err(fail)?,
        };
        if !reset && change.commit < state.pages {
            total = total ^ state.checksums.fold(change.commit.get() + 1, state.pages.get()).map_err(fail)?;
        }
        let (mut checksums, mut mode, mut page) = (Vec::new(), None, Vec::new());
        let mut decoder = source.decoder().map_err(fail)?;
        if decoder.header().page_size != change.page_size || decoder.header().commit != change.commit {
            return Err(
                self.corrupt(format!("change set {} names another size than its LTX", change.range.max()))
            );
        }
        let timestamp_ms = decoder.header().timestamp_ms;
        let wal_end = captured_here(decoder.header(), &self.shared);
        while let Some(pgno) = decoder.next_page(&mut page).map_err(|error| fail(into_io(error)))? {
            let checksum = ltx::page_checksum(pgno, &page);
            if !reset && state.pages.contains(pgno) {
                total = total ^ state.checksums.get(pgno).map_err(fail)?.unwrap_or(Checksum::EMPTY);
            }
            total = total ^ checksum;
            if pgno == Pgno::FIRST {
                mode = DatabaseHeader::parse(&page).ok().map(|header| header.mode);
            }
            checksums.push((pgno, checksum));
        }
        decoder.finish().map_err(|error| fail(into_io(error)))?;
        // While entries are applied again after a crash, checksums may be ahead of the position; the last of them
        // brings both together, and is checked as a whole.
        if !state.redoing() && total != change.post {
            let why = format!("checksum after {} would be {total}, not {}", change.range.max(), change.post);
            return Err(self.corrupt(why));
        }
        let batch = Batch { change, checksums, wal_end, timestamp_ms, reset, mode };
        Ok(Incoming { batch, beside_mount: false, source })
    }
}
