//! Rewind: what applications wrote while this node was primary, and what another primary's history does not have.
//!
//! Readers may have the frames in their snapshot, so they are not overwritten: newer frames with the content that is
//! history are appended behind them. Readers that begin then see history; those under way keep what they see and are
//! not waited for. Both runs of frames together change nothing, so a checkpoint copies both or neither: the database
//! file stays a prefix of history. Checkpoints of applications, which know nothing of that, are kept out until one of
//! this daemon's has passed.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::DbError;
use super::attach::WalAttachment;
use super::commit::now_ms;
use super::database::{Database, State};
use super::discard::write_discarded;
use super::overrun::frames_between;
use super::wal_writer::WalAppend;
use crate::io::fault;
use crate::ltx;
use crate::sqlite::lock_bytes;
use crate::sqlite::wal_index::{HeaderRead, IndexHeader};
use crate::types::{Access, PageCount, PageSize, Pgno};

/// Frames that were taken back, together with those that took them back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Rewound {
    /// The last frame before them.
    pub before: u32,
    /// The last frame of both.
    pub end: u32,
}

impl Rewound {
    /// The last frame up to `frame` at which a checkpoint may stop.
    pub fn outside(self, frame: u32) -> u32 {
        if frame > self.before && frame < self.end { self.before } else { frame }
    }
}

impl WalAttachment {
    /// The published frames that are not captured, as the header that publishes them and the first of them.
    pub fn tail(&mut self) -> Option<(IndexHeader, u32)> {
        let HeaderRead::Valid(header) = self.index.header() else { return None };
        let first = if header.salt == self.captured.salt { self.captured.frame + 1 } else { 1 };
        (header.max_frame >= first).then_some((header, first))
    }
}

impl Database {
    /// Another node is primary, and its log has decided everything that was proposed here: what is left in the WAL
    /// never becomes history. It is taken back and kept in `discarded/`. Blocking; the fence is up.
    ///
    /// # Errors
    /// Where a file cannot be read or written; the database is not served then.
    pub fn follow_history(self: &Arc<Self>) -> Result<(), DbError> {
        self.discard_tail()?;
        loop {
            self.keep_out_checkpoints()?;
            let mut state = self.lock();
            while state.exclusive || state.in_flight.is_some() {
                state = state.wait(&self.changed);
            }
            self.clear_undecided(&mut state);
            return match self.rewind(&mut state) {
                // One began in between.
                Err(DbError::Unavailable { .. }) => continue,
                Err(error) => {
                    state.service.fail(error.to_string());
                    Err(error)
                }
                Ok(()) => Ok(()),
            };
        }
    }

    /// Where there is something to take back, waits for a checkpoint of an application under way, whose frames were
    /// captured before it began, and lets none begin. Without the state's lock: a checkpoint waits for its fsync, whose
    /// answer may need it.
    pub(super) fn keep_out_checkpoints(&self) -> Result<(), DbError> {
        let fail = |source| self.io_error("waiting for a checkpoint", source);
        if self.access() == Access::Write {
            return Ok(());
        }
        let locks = self.lock().open.wal_mut().and_then(|wal| wal.tail().map(|_| wal.locks.clone()));
        let Some(locks) = locks else { return Ok(()) };
        let checkpoints_out = locks.take(lock_bytes::CKPT).map_err(fail)?;
        if let Some(wal) = self.lock().open.wal_mut().filter(|wal| checkpoints_out.belongs_to(&wal.locks)) {
            wal.no_checkpoints = Some(checkpoints_out);
        }
        Ok(())
    }

    /// Takes back what is in the WAL and not captured, where this node may not write any more; after
    /// [`keep_out_checkpoints`](Self::keep_out_checkpoints).
    ///
    /// # Errors
    /// `Unavailable` where a checkpoint of an application is under way; nothing has changed then.
    pub(super) fn rewind(&self, state: &mut State) -> Result<(), DbError> {
        let fail = |source| self.io_error("taking back what is not history", source);
        if self.access() == Access::Write {
            return Ok(());
        }
        let (base, pages, page_size) = (state.pos, state.pages, state.page_size);
        let Some(wal) = state.open.wal_mut() else { return Ok(()) };
        let Some((header, first)) = wal.tail() else {
            if wal.rewound.is_none() {
                wal.no_checkpoints = None;
            }
            return Ok(());
        };
        if wal.no_checkpoints.is_none() {
            wal.no_checkpoints = wal.locks.try_take(lock_bytes::CKPT).map_err(fail)?;
        }
        if wal.no_checkpoints.is_none() {
            return Err(self.unavailable("an application's checkpoint is under way"));
        }
        fault::point("rewind").map_err(fail)?;
        let tail = frames_between(wal, first, header.max_frame).map_err(fail)?;
        let mut read = |pgno: &Pgno, page: &mut [u8]| wal.read_frame(tail[pgno], page);
        let (numbers, at) = (tail.keys(), now_ms());
        let file =
            write_discarded(&self.shared, self.name(), base, page_size, header.pages, numbers, &mut read, at)
                .map_err(fail)?;
        self.report_discarded((header.max_frame + 1 - first) as usize, &file);
        let history = history_of(wal, &tail, first, page_size, pages).map_err(fail)?;
        for (pgno, page) in &history {
            if state.checksums.get(*pgno).map_err(fail)? != Some(ltx::page_checksum(*pgno, page)) {
                return Err(self.corrupt(format!("page {pgno} below what is taken back is not history's")));
            }
        }
        let wal = state.open.wal_mut().expect("it was just there");
        wal.take_back(&history, first - 1, page_size, pages).map_err(fail)?;
        state.captured = Some(wal.captured.point());
        Ok(())
    }
}

/// The pages of `tail` as they were before frame `first`; at least one page, so that there is something to append.
fn history_of(
    wal: &mut WalAttachment,
    tail: &BTreeMap<Pgno, u32>,
    first: u32,
    page_size: PageSize,
    pages: PageCount,
) -> std::io::Result<BTreeMap<Pgno, Vec<u8>>> {
    let before = frames_between(wal, 1, first - 1)?;
    let lock_page = Pgno::lock_page(page_size);
    let touched = tail.keys().copied().filter(|pgno| pages.contains(*pgno) && *pgno != lock_page);
    let mut history = BTreeMap::new();
    for pgno in touched.chain([Pgno::FIRST]) {
        let mut page = vec![0; page_size.len()];
        wal.read_page(pgno, before.get(&pgno).copied(), &mut page)?;
        history.insert(pgno, page);
    }
    Ok(history)
}

impl WalAttachment {
    fn take_back(
        &mut self,
        history: &BTreeMap<Pgno, Vec<u8>>,
        before: u32,
        page_size: PageSize,
        pages: PageCount,
    ) -> std::io::Result<()> {
        let before = self.rewound.map_or(before, |rewound| rewound.before.min(before));
        let mut append = WalAppend::begin(self, page_size)?;
        history.iter().try_for_each(|(pgno, page)| append.page(*pgno, page))?;
        append.publish(pages)?;
        self.rewound = Some(Rewound { before, end: self.captured.frame });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_never_stops_between_what_was_taken_back_and_what_took_it_back() {
        let rewound = Rewound { before: 10, end: 20 };
        let stops: Vec<u32> =
            [9, 10, 11, 19, 20, 21].into_iter().map(|frame| rewound.outside(frame)).collect();
        assert_eq!(stops, [9, 10, 10, 10, 20, 21]);
    }
}
