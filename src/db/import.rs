//! Import: the content of a file that something other than SQLite wrote becomes a transaction of a database.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::attach::WalAttachment;
use super::batch::{Batch, Frame};
use super::database::{Database, State};
use super::staged_file::{StagedDatabase, StagedFile};
use super::{DbError, Done};
use crate::io::read_or_zero;
use crate::ltx;
use crate::sqlite::header;
use crate::sqlite::wal_index::HeaderRead;
use crate::types::{JournalMode, PageCount, Pgno};

impl Database {
    /// Makes the pages of `staged` the database's content. Of a file that was changed in places only what was
    /// written counts, on top of what the database has by now. A whole file also mends a database that is not served.
    pub fn import(self: &Arc<Self>, staged: StagedFile, done: Done) {
        self.off_thread(done, move |database, done| {
            let mut mends = false;
            let imported = database.commit_own(|state| {
                mends = state.service.failure().is_some();
                database.encode_import(state, &staged)
            });
            if mends && imported.is_ok() {
                database.lock().service.repaired();
            }
            done(imported);
        });
    }

    fn encode_import(&self, state: &mut State, staged: &StagedFile) -> Result<Option<Batch>, DbError> {
        let fail = |source| self.io_error("importing", source);
        let below = Below::of(self, state, staged).map_err(fail)?;
        let StagedDatabase { header, pages } =
            below.judge(state, staged).map_err(|error| self.invalid(error.to_string()))?;
        let (open, damaged) = (state.is_open(), state.service.failure().is_some());
        if let Some(why) = state.service.failure().filter(|_| !staged.is_whole()) {
            return Err(
                self.corrupt(format!("not served until it is repaired or replaced as a whole: {why}"))
            );
        }
        let resets = state.pages != PageCount::ZERO && header.page_size != state.page_size;
        if open && resets {
            let why = format!(
                "is open with pages of {} bytes, the file has {}; close it before importing",
                state.page_size, header.page_size
            );
            return Err(self.conflict(why));
        }
        if resets && !staged.covers(0, pages.bytes(header.page_size)) {
            let why = format!(
                "would have pages of {} bytes, of which only a part was written; replace the whole file",
                header.page_size
            );
            return Err(self.invalid(why));
        }
        // Those who have it open go on in the mode they know.
        let mode = match state.mode {
            Some(mode) if open => mode,
            _ => header.mode,
        };
        let frame = Frame::on(self.name(), state, header.page_size, pages);
        let lock_page = Pgno::lock_page(header.page_size);
        let mut touched = staged.touched(header.page_size, pages);
        touched.retain(|pgno| *pgno != lock_page);
        touched.extend(frame.untouched_growth(&touched));
        let read = |pgno: Pgno, page: &mut [u8]| {
            staged.page(pgno, page, |page| below.read(state.open.wal(), pgno, page))?;
            if pgno == Pgno::FIRST {
                header::set_mode(page, mode);
            }
            Ok(())
        };
        // What is on disk of a damaged one may not be what its checksums say.
        if !resets && !damaged {
            let mut page = vec![0; header.page_size.len()];
            let mut changed = BTreeSet::new();
            for pgno in touched {
                read(pgno, &mut page).map_err(fail)?;
                if state.checksums.get(pgno).map_err(fail)? != Some(ltx::page_checksum(pgno, &page)) {
                    changed.insert(pgno);
                }
            }
            if changed.is_empty() && pages == state.pages {
                return Ok(None);
            }
            touched = changed;
            // SQLite's caches go by the change counter in page 1.
            touched.insert(Pgno::FIRST);
        }
        let base = state.pos;
        frame
            .encode(&self.shared, &state.checksums, touched.into_iter(), |pgno, page| {
                read(pgno, page)?;
                if pgno == Pgno::FIRST && mode == JournalMode::Rollback && base.txid.is_some() {
                    bump_change_counter(page, base.txid_or_zero(), pages);
                }
                Ok(())
            })
            .map(Some)
            .map_err(fail)
    }
}

/// What the database has below what was written.
struct Below {
    file: std::fs::File,
    /// The newest frame of each page that is in the log.
    frames: BTreeMap<Pgno, u32>,
}

impl Below {
    /// Writers are kept out, and what they published is captured.
    fn of(database: &Database, state: &mut State, staged: &StagedFile) -> io::Result<Self> {
        let file = std::fs::File::open(database.files().path(super::FileKind::Database))?;
        let mut frames = BTreeMap::new();
        if let Some(wal) = state.open.wal_mut().filter(|_| !staged.is_whole())
            && let HeaderRead::Valid(header) = wal.index.header()
        {
            for frame in 1..=header.max_frame {
                if let Some(pgno) = wal.index.page_of(frame)? {
                    frames.insert(pgno, frame);
                }
            }
        }
        Ok(Self { file, frames })
    }

    /// What the database would be. The file may lack what is in the log still.
    fn judge(&self, state: &State, staged: &StagedFile) -> io::Result<StagedDatabase> {
        if staged.is_whole() || state.pages == PageCount::ZERO {
            return staged.as_database();
        }
        let mut page = vec![0; state.page_size.len()];
        staged.page(Pgno::FIRST, &mut page, |page| self.read(state.open.wal(), Pgno::FIRST, page))?;
        let has = state.pages.bytes(state.page_size);
        StagedDatabase::of(&page, staged.size_over(has)?)
    }

    fn read(&self, wal: Option<&WalAttachment>, pgno: Pgno, page: &mut [u8]) -> io::Result<()> {
        match (self.frames.get(&pgno), wal) {
            (Some(frame), Some(wal)) => wal.read_frame(*frame, page),
            _ => read_or_zero(&self.file, u64::from(pgno.get() - 1) * page.len() as u64, page),
        }
    }
}

/// Gives page 1 a change counter that no reader of the replaced content has cached, and the size in pages that is valid
/// for it.
pub(super) fn bump_change_counter(page: &mut [u8], salt: u64, pages: PageCount) {
    let word =
        |page: &[u8], at: usize| u32::from_be_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
    let counter = word(page, 24).wrapping_add(salt as u32).wrapping_add(0x4000_0000);
    page[24..28].copy_from_slice(&counter.to_be_bytes());
    page[28..32].copy_from_slice(&pages.get().to_be_bytes());
    page[92..96].copy_from_slice(&counter.to_be_bytes());
}
