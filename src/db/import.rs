//! Import: the content of a whole file becomes a transaction of a database.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::batch::Frame;
use super::database::{Database, State};
use super::{DbError, Done};
use crate::ltx;
use crate::sqlite::header::{self, DatabaseHeader};
use crate::types::{JournalMode, PageCount, Pgno};

impl Database {
    /// Makes the pages of `file`, a database of which `header` is the header, the database's content.
    pub fn import(self: &Arc<Self>, file: File, header: DatabaseHeader, done: Done) {
        self.off_thread(done, move |database, done| {
            done(database.commit_own(|state| database.encode_import(state, &file, &header)));
        });
    }

    fn encode_import(
        &self,
        state: &mut State,
        file: &File,
        header: &DatabaseHeader,
    ) -> Result<Option<super::batch::Batch>, DbError> {
        let fail = |source| self.io_error("importing", source);
        let open = state.is_open();
        if open && state.pages != PageCount::ZERO && header.page_size != state.page_size {
            let why = format!(
                "is open with pages of {} bytes, the file has {}; close it before importing",
                state.page_size, header.page_size
            );
            return Err(self.conflict(why));
        }
        // Those who have it open go on in the mode they know.
        let mode = match state.mode {
            Some(mode) if open => mode,
            _ => header.mode,
        };
        let size = file.metadata().map_err(fail)?.len();
        let pages = PageCount::new(u32::try_from(size / header.page_size.bytes()).unwrap_or(u32::MAX));
        let frame = Frame::on(self.name(), state, header.page_size, pages);
        let read = |pgno: Pgno, page: &mut [u8]| {
            file.read_exact_at(page, pgno.offset(header.page_size))?;
            if pgno == Pgno::FIRST {
                header::set_mode(page, mode);
            }
            Ok(())
        };
        let mut changed = BTreeSet::new();
        if header.page_size == state.page_size {
            let mut page = vec![0; header.page_size.len()];
            for pgno in pages.pages(header.page_size) {
                read(pgno, &mut page).map_err(fail)?;
                if state.checksums.get(pgno).map_err(fail)? != Some(ltx::page_checksum(pgno, &page)) {
                    changed.insert(pgno);
                }
            }
            if changed.is_empty() && pages == state.pages {
                return Ok(None);
            }
            // SQLite's caches go by the change counter in page 1.
            changed.insert(Pgno::FIRST);
        }
        changed.extend(frame.untouched_growth(&changed));
        let base = state.pos;
        frame
            .encode(&self.shared, &state.checksums, changed.into_iter(), |pgno, page| {
                read(pgno, page)?;
                if pgno == Pgno::FIRST && mode == JournalMode::Rollback && base.txid.is_some() {
                    bump_change_counter(page, base.txid_or_zero());
                }
                Ok(())
            })
            .map(Some)
            .map_err(fail)
    }
}

/// Gives page 1 a change counter that no reader of the replaced content has cached.
pub(super) fn bump_change_counter(page: &mut [u8], salt: u64) {
    let word =
        |page: &[u8], at: usize| u32::from_be_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
    let counter = word(page, 24).wrapping_add(salt as u32).wrapping_add(0x4000_0000);
    page[24..28].copy_from_slice(&counter.to_be_bytes());
    // The page count in the header is valid for this counter too.
    page[92..96].copy_from_slice(&counter.to_be_bytes());
}
