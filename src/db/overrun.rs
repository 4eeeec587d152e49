//! Overrun commits: frames that the log holds and the wal-index never published, overrun by a later writer.
//!
//! An application killed between the fsync that made its commit durable and the publishing leaves such frames.
//! The next writer starts where the published frames end. The transaction stays, because it may be on other
//! nodes: its pages are appended again, after whatever overran it is taken back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::DbError;
use super::attach::WalAttachment;
use super::commit::{all_of, now_ms};
use super::database::{Database, State};
use super::discard::write_discarded;
use super::incoming::LtxSource;
use super::wal_writer::WalAppend;
use crate::io::fault;
use crate::ltx::ChangeSet;
use crate::sqlite::lock_bytes;
use crate::sqlite::wal_index::HeaderRead;
use crate::types::{PageSize, Pgno};

impl WalAttachment {
    /// Whether the last captured change set was overrun before it was published.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub fn is_overrun(&mut self) -> io::Result<bool> {
        let Some((first, first_checksum)) = self.captured.unpublished else { return Ok(false) };
        let HeaderRead::Valid(header) = self.index.header() else { return Ok(false) };
        let (frame, expected) =
            if header.salt == self.captured.salt && header.max_frame >= self.captured.frame {
                (self.captured.frame, self.captured.checksum)
            } else {
                (first, first_checksum)
            };
        if self.checksum_of(frame, header.page_size)? != Some(expected) {
            return Ok(true);
        }
        if frame == self.captured.frame && header.max_frame >= frame {
            self.captured.unpublished = None;
            self.unpublished_change = None;
        }
        Ok(false)
    }
}

impl Database {
    /// Refuses the writer that overran a captured commit and has that commit restored.
    pub(super) fn overrun(self: &Arc<Self>, state: &mut State) -> Result<(), DbError> {
        if !state.restoring {
            state.restoring = true;
            tracing::warn!(db = %self.name(), txid = ?state.pos.txid, "a durable transaction was overrun after its writer died; restoring it");
            self.off_thread(Box::new(|_| ()), |database, done| {
                database.restore_overrun();
                done(Ok(()));
            });
        }
        // What the writer has in the log now must not become a transaction; its commit fails.
        let page_size = state.page_size;
        if let Some(wal) = state.open.wal_mut()
            && let Some((first, _)) = wal.captured.unpublished
            && let HeaderRead::Valid(header) = wal.index.header()
            && header.max_frame < first
        {
            wal.invalidate_frame(first, page_size)
                .map_err(|source| self.io_error("taking back an overrun", source))?;
        }
        Err(self.unavailable("a durable transaction whose writer died is being restored; try again"))
    }

    fn restore_overrun(self: &Arc<Self>) {
        let locks = self.lock().open.wal().map(|wal| wal.locks.clone());
        let restored = match locks {
            // The writer lets go once its fsync has failed.
            Some(locks) => locks.take(lock_bytes::WAL_WRITE).and_then(|_writers_out| self.restore_locked()),
            None => Ok(()),
        };
        let mut state = self.lock();
        state.restoring = false;
        if let Err(error) = restored {
            state.service.fail(format!("restoring a durable transaction: {error}"));
            tracing::error!(db = %self.name(), %error, "cannot restore a durable transaction; the database is not served");
        }
        let queued = std::mem::take(&mut state.queued);
        drop(state);
        if !queued.is_empty() {
            self.capture_wal(Some(all_of(queued)));
        }
    }

    pub(super) fn restore_locked(&self) -> io::Result<()> {
        let mut state = self.lock();
        let page_size = state.page_size;
        let Some(wal) = state.open.wal_mut() else { return Ok(()) };
        let (Some((first, _)), Some(change)) = (wal.captured.unpublished, wal.unpublished_change.clone())
        else {
            return Ok(());
        };
        fault::point("restore_overrun")?;
        let HeaderRead::Valid(header) = wal.index.header() else {
            return Err(io::Error::other("no wal-index"));
        };
        let overran: BTreeMap<Pgno, u32> = frames_between(wal, first, header.max_frame)?;
        if !overran.is_empty() {
            self.keep_overrun(wal, &overran, &change, page_size)?;
        }
        let before = frames_between(wal, 1, first - 1)?;
        let captured = LtxSource::of(&change, &self.shared)?.pages_by_number()?;
        let lock_page = Pgno::lock_page(page_size);
        let pages: BTreeSet<Pgno> = overran
            .keys()
            .chain(captured.keys())
            .copied()
            .filter(|pgno| change.commit.contains(*pgno) && *pgno != lock_page)
            .collect();
        let mut contents = Vec::with_capacity(pages.len());
        for pgno in pages {
            let mut page = vec![0; page_size.len()];
            match captured.get(&pgno) {
                Some(content) => page.copy_from_slice(content),
                None => wal.read_page(pgno, before.get(&pgno).copied(), &mut page)?,
            }
            contents.push((pgno, page));
        }
        let mut append = WalAppend::begin(wal, page_size)?;
        contents.iter().try_for_each(|(pgno, page)| append.page(*pgno, page))?;
        append.publish(change.commit)?;
        wal.unpublished_change = None;
        state.captured = state.open.wal().map(|wal| wal.captured.point());
        tracing::info!(db = %self.name(), txid = %change.range.max(), "restored");
        Ok(())
    }

    /// Keeps what a NORMAL writer published over the captured commit: it loses, but not without a trace.
    fn keep_overrun(
        &self,
        wal: &mut WalAttachment,
        frames: &BTreeMap<Pgno, u32>,
        base: &ChangeSet,
        page_size: PageSize,
    ) -> io::Result<()> {
        let HeaderRead::Valid(header) = wal.index.header() else { return Ok(()) };
        let mut read = |pgno: &Pgno, page: &mut [u8]| wal.read_frame(frames[pgno], page);
        let path = write_discarded(
            &self.shared,
            self.name(),
            base.pos(),
            page_size,
            header.pages,
            frames.keys(),
            &mut read,
            now_ms(),
        )?;
        tracing::error!(db = %self.name(), file = %path.display(), "a transaction that was not replicated is discarded and kept");
        Ok(())
    }
}

/// The last frame of each page among frames `first..=last`.
pub(super) fn frames_between(
    wal: &mut WalAttachment,
    first: u32,
    last: u32,
) -> io::Result<BTreeMap<Pgno, u32>> {
    let mut frames = BTreeMap::new();
    for frame in first..=last {
        if let Some(pgno) = wal.index.page_of(frame)? {
            frames.insert(pgno, frame);
        }
    }
    Ok(frames)
}
