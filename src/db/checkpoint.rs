//! Checkpoint: copies frames of the WAL into the database file, as SQLite's checkpointer does.
//!
//! No sync: what the file durably holds is the marker's business, and redo covers the rest. The frames are written to
//! the file in the data directory, never through the mount: the kernel holds the mounted file locked while an unlink or
//! a rename of it waits for this daemon, and that waits for the database's lock, which a checkpoint has.
//! Source: `wal.c`, `walCheckpoint`.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::time::Duration;

use super::FileKind;
use super::attach::WalAttachment;
use crate::io::fault;
use crate::io::read_or_zero;
use crate::sqlite::lock_bytes;
use crate::sqlite::wal_index::{HeaderRead, READ_MARK_UNUSED, READ_SLOTS};
use crate::types::Pgno;

/// How long a checkpoint waits for the kernel to drop pages of the database file: requests for them that are under way
/// are answered first, and one of them may be waiting for the lock that the checkpoint has.
const CACHE_WAIT_MAX: Duration = Duration::from_secs(1);

/// How far a checkpoint came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Backfill {
    /// All frames up to the limit are in the database file.
    Complete,
    /// A reader holds back frames behind this one.
    HeldBack(u32),
    /// Another checkpoint is running.
    Busy,
}

impl WalAttachment {
    /// Copies frames up to `limit` (which must be captured) into the database file, as far as readers allow.
    ///
    /// # Errors
    /// Where reading the log or writing the database fails; the wal-index then still says the old state.
    pub fn backfill(&mut self, limit: u32) -> io::Result<Backfill> {
        if self.index.backfilled() >= limit {
            return Ok(Backfill::Complete);
        }
        let Some(_alone) = self.locks.try_take(lock_bytes::CKPT)? else { return Ok(Backfill::Busy) };
        let result = self.backfill_locked(limit);
        let backfilled = self.index.backfilled();
        self.rewound = self.rewound.filter(|rewound| rewound.end > backfilled);
        if self.rewound.is_none() {
            self.no_checkpoints = None;
        }
        result
    }

    fn backfill_locked(&mut self, limit: u32) -> io::Result<Backfill> {
        let HeaderRead::Valid(header) = self.index.header() else { return Ok(Backfill::Busy) };
        let safe = self.safe_frame(limit.min(header.max_frame))?;
        let safe = self.rewound.map_or(safe, |rewound| rewound.outside(safe));
        let done = self.index.backfilled();
        if safe > done {
            let Some(_readers_out) = self.locks.try_take(lock_bytes::read(0))? else {
                return Ok(Backfill::HeldBack(done));
            };
            self.copy(done, safe, header.pages, safe == header.max_frame, header.page_size)?;
        }
        let done = self.index.backfilled();
        Ok(if done >= limit { Backfill::Complete } else { Backfill::HeldBack(done) })
    }

    fn copy(
        &mut self,
        done: u32,
        safe: u32,
        pages: crate::types::PageCount,
        whole: bool,
        page_size: crate::types::PageSize,
    ) -> io::Result<()> {
        let mut latest = BTreeMap::new();
        for frame in done + 1..=safe {
            if let Some(pgno) = self.index.page_of(frame)? {
                latest.insert(pgno, frame);
            }
        }
        self.index.set_backfill_attempted(safe);
        let mut page = vec![0; page_size.len()];
        for (pgno, frame) in latest {
            // Where readers hold back a part, the size may still shrink below what older readers see.
            if whole && !pages.contains(pgno) {
                continue;
            }
            self.read_frame(frame, &mut page)?;
            fault::point("checkpoint_write")?;
            self.backing_database.write_all_at(&page, pgno.offset(page_size))?;
        }
        if whole {
            fault::point("checkpoint_truncate")?;
            self.backing_database.set_len(pages.bytes(page_size))?;
        }
        // From here on readers take these pages from the file, where the kernel may have older ones of it cached.
        if self.empty_kernel_cache() {
            self.index.set_backfilled(safe);
        }
        Ok(())
    }

    /// Has the kernel drop what it has cached of the database file; says whether it has. On a thread of its own, because
    /// nobody knows how long it takes.
    fn empty_kernel_cache(&self) -> bool {
        let (cache, db) = self.cached_by.clone();
        let (sender, receiver) = mpsc::channel();
        let spawned = std::thread::Builder::new().name("skein-uncache".into()).spawn(move || {
            cache.data_changed(&db, FileKind::Database);
            // Nobody waits for it any more where that took too long.
            let _ = sender.send(());
        });
        spawned.is_ok() && receiver.recv_timeout(CACHE_WAIT_MAX).is_ok()
    }

    /// The last frame that every reader can do without, up to `limit`; unused marks are moved out of the way.
    fn safe_frame(&self, limit: u32) -> io::Result<u32> {
        let mut safe = limit;
        for slot in 1..READ_SLOTS {
            let mark = self.index.read_mark(slot);
            if mark >= safe {
                continue;
            }
            match self.locks.try_take(super::pin::read_byte(slot))? {
                Some(_readers_out) => {
                    self.index.set_read_mark(slot, if slot == 1 { safe } else { READ_MARK_UNUSED });
                }
                None => safe = mark,
            }
        }
        Ok(safe)
    }

    /// Reads a page as the captured part of the log and the database file give it.
    pub fn read_page(&mut self, pgno: Pgno, frame: Option<u32>, page: &mut [u8]) -> io::Result<()> {
        match frame {
            Some(frame) => self.read_frame(frame, page),
            None => {
                let page_size = crate::types::PageSize::new(page.len() as u32).map_err(io::Error::other)?;
                read_or_zero(&self.backing_database, pgno.offset(page_size), page)
            }
        }
    }
}
