//! Scrub: compares what is in the files with the checksums, page by page, while the database is served.

use super::database::{Database, State};
use super::{DbError, FileKind};
use crate::io::read_or_zero;
use crate::ltx;
use crate::types::{Checksum, PageCount, Pgno};

/// Pages looked at while the database's lock is held.
pub(super) const PAGES_AT_ONCE: u32 = 64;

impl Database {
    /// Looks at every page of a database no application has open; ends where one opens it. Returns the first page
    /// that is not what its checksum says.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn scrub(&self) -> Result<Option<Pgno>, DbError> {
        let mut next = 1;
        loop {
            let state = self.lock();
            let busy = state.handles > 0 || state.open.is_wal() || state.exclusive || state.redoing();
            if busy || state.service.failure().is_some() || next > state.pages.get() {
                return Ok(None);
            }
            let last = next.saturating_add(PAGES_AT_ONCE - 1).min(state.pages.get());
            let found = self.first_damaged(&state, next, last);
            if let Some(pgno) = found.map_err(|source| self.io_error("reading its pages", source))? {
                return Ok(Some(pgno));
            }
            next = last + 1;
        }
    }

    /// Computes the checksums of pages `first..=last` anew from the file; their sum.
    pub(super) fn resum(&self, state: &mut State, first: u32, last: u32) -> std::io::Result<Checksum> {
        let file = std::fs::File::open(self.files().path(FileKind::Database))?;
        let (mut page, mut sums) = (vec![0; state.page_size.len()], Vec::new());
        for pgno in PageCount::new(last).pages_from(first, state.page_size) {
            read_or_zero(&file, pgno.offset(state.page_size), &mut page)?;
            sums.push((pgno, ltx::page_checksum(pgno, &page)));
        }
        state.checksums.set(&sums)?;
        Ok(sums.into_iter().fold(Checksum::EMPTY, |total, (_, sum)| total ^ sum))
    }

    fn first_damaged(&self, state: &State, first: u32, last: u32) -> std::io::Result<Option<Pgno>> {
        let file = std::fs::File::open(self.files().path(FileKind::Database))?;
        let mut page = vec![0; state.page_size.len()];
        for pgno in PageCount::new(last).pages_from(first, state.page_size) {
            read_or_zero(&file, pgno.offset(state.page_size), &mut page)?;
            let expected = state.checksums.get(pgno)?;
            if expected.is_some_and(|expected| expected != ltx::page_checksum(pgno, &page)) {
                return Ok(Some(pgno));
            }
        }
        Ok(None)
    }
}
