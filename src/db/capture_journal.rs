//! Capture of a rollback-journal database: what was written under the journal, when the journal ends.
//!
//! The commit point of SQLite is the unlink, truncation or zeroing of the journal. The change set is in the log
//! before that happens; if it cannot get there the journal stays, and SQLite rolls back with it. The database
//! file need not be synced: until the marker moves past the change set, redo writes its pages again.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::batch::{Batch, Frame};
use super::capture_wal::read_or_zero;
use super::commit::{Flight, Source, now_ms};
use super::database::{Database, JournalState, State};
use super::{DbError, Done, FileKind};
use crate::io::fault;
use crate::ltx;
use crate::sqlite::header::DatabaseHeader;
use crate::sqlite::journal;
use crate::types::{Access, JournalMode, PageCount, PageSize, Pgno};

/// How a transaction under a rollback journal ends.
enum JournalEnd {
    /// journal_mode=DELETE.
    Unlink,
    /// journal_mode=TRUNCATE.
    Truncate(u64),
    /// journal_mode=PERSIST: the header is zeroed.
    Write(u64, Vec<u8>),
}

impl Database {
    /// May a rollback journal be created now? Creates the backing file.
    ///
    /// # Errors
    /// `NotPrimary` where this node may not write; `Io` where the file cannot be made.
    pub fn journal_created(&self) -> Result<(), DbError> {
        if self.access() != Access::Write {
            return Err(DbError::NotPrimary(self.name().clone()));
        }
        let path = self.files().path(FileKind::Journal);
        fault::point("journal_create").map_err(|source| self.io_error("creating the journal", source))?;
        File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| self.io_error(format!("creating {}", path.display()), source))?;
        Ok(())
    }

    /// A write to the database file that reaches the daemon (rollback mode, or a checkpoint without passthrough).
    ///
    /// # Errors
    /// `Invalid` where no journal could roll the write back; `NotPrimary`; `Io`.
    pub fn database_write(&self, offset: u64, data: &[u8]) -> Result<(), DbError> {
        let fail = |source| self.io_error("writing the database file", source);
        let mut state = self.lock();
        let file = self.open_backing(FileKind::Database)?;
        if state.mode == Some(JournalMode::Wal) && state.wal.is_some() && !state.journal.live {
            // A checkpoint: what it copies is captured, the read mark and its own sync of the WAL see to that.
            return file.write_all_at(data, offset).map_err(fail);
        }
        self.may_change(&state)?;
        fault::point("database_write").map_err(fail)?;
        let journal = &mut state.journal;
        if let Some(size) = journal.page_size {
            let last = (offset + data.len() as u64).saturating_sub(1) / size.bytes();
            let numbers = offset / size.bytes()..=last;
            journal.dirty.extend(numbers.filter_map(|n| u32::try_from(n + 1).ok().and_then(Pgno::new)));
        }
        state.cow.before_write(&file, offset, data.len() as u64).map_err(fail)?;
        file.write_all_at(data, offset).map_err(fail)
    }

    fn may_change(&self, state: &State) -> Result<(), DbError> {
        if self.access() != Access::Write {
            return Err(DbError::NotPrimary(self.name().clone()));
        }
        if !state.journal.live {
            return Err(self.invalid(
                "a write without a rollback journal (journal_mode=OFF or MEMORY) could not be undone; use DELETE, TRUNCATE, PERSIST or WAL",
            ));
        }
        Ok(())
    }

    /// The database file is truncated by ftruncate.
    pub fn database_truncated(self: &Arc<Self>, size: u64, done: Done) {
        let state = self.lock();
        if state.wal.is_some() && !state.journal.live {
            drop(state);
            // The last step of a checkpoint that copied everything; the log may begin anew after it, so
            // everything must be captured by now.
            let database = self.clone();
            let gate: Done = Box::new(move |answer| {
                let answer = answer.and_then(|()| database.set_database_len(size));
                database.release_pin();
                done(answer);
            });
            return self.capture_wal(Some(gate));
        }
        let committed = size == state.pages.bytes(state.page_size) && self.access() == Access::Write;
        let allowed = if committed { Ok(()) } else { self.may_change(&state) };
        let answer = allowed.and_then(|()| self.truncate_rollback(state, size));
        done(answer);
    }

    fn truncate_rollback(
        &self,
        mut state: std::sync::MutexGuard<'_, State>,
        size: u64,
    ) -> Result<(), DbError> {
        let fail = |source| self.io_error("truncating the database file", source);
        let file = self.open_backing(FileKind::Database)?;
        let length = file.metadata().map_err(fail)?.len();
        state.cow.before_write(&file, size.min(length), u64::MAX - size.min(length)).map_err(fail)?;
        file.set_len(size).map_err(fail)
    }

    fn set_database_len(&self, size: u64) -> Result<(), DbError> {
        let fail = |source| self.io_error("truncating the database file", source);
        self.open_backing(FileKind::Database)?.set_len(size).map_err(fail)
    }

    /// `fsync` of the database file: the log is what makes it durable.
    pub fn database_synced(self: &Arc<Self>, done: Done) {
        self.release_pin();
        done(Ok(()));
    }

    /// A write to the rollback journal; zeroing its header ends the transaction (PERSIST), which is captured first.
    pub fn journal_write(self: &Arc<Self>, offset: u64, data: Vec<u8>, done: Done) {
        if journal::ends_transaction(offset, &data) {
            return self.journal_ends(JournalEnd::Write(offset, data), done);
        }
        done(self.write_journal(offset, &data));
    }

    fn write_journal(&self, offset: u64, data: &[u8]) -> Result<(), DbError> {
        let fail = |source| self.io_error("writing the journal", source);
        if self.access() != Access::Write {
            return Err(DbError::NotPrimary(self.name().clone()));
        }
        fault::point("journal_write").map_err(fail)?;
        self.open_backing(FileKind::Journal)?.write_all_at(data, offset).map_err(fail)?;
        if offset == 0 && journal::is_header_magic(data) {
            let mut state = self.lock();
            if !state.journal.live {
                let page_size = (state.pages != PageCount::ZERO).then_some(state.page_size);
                state.journal = JournalState { live: true, dirty: BTreeSet::new(), page_size };
            }
        }
        Ok(())
    }

    /// The rollback journal is truncated; to zero ends the transaction (TRUNCATE).
    pub fn journal_truncated(self: &Arc<Self>, size: u64, done: Done) {
        if size == 0 {
            return self.journal_ends(JournalEnd::Truncate(0), done);
        }
        done(self.end_journal_file(&JournalEnd::Truncate(size)));
    }

    /// The rollback journal is unlinked, which ends the transaction (DELETE). Removes the backing file.
    pub fn journal_unlinked(self: &Arc<Self>, done: Done) {
        self.journal_ends(JournalEnd::Unlink, done);
    }

    fn journal_ends(self: &Arc<Self>, end: JournalEnd, done: Done) {
        let database = self.clone();
        let finish: Done = Box::new(move |answer| {
            done(answer.and_then(|()| database.finish_journal(&end)));
        });
        match self.prepare_group() {
            Ok(Some(change)) => {
                // The state has the flight; its landing answers.
                if let Some(flight) = self.lock().flight.as_mut() {
                    flight.waiters.push(finish);
                }
                self.propose(change);
            }
            Ok(None) => finish(Ok(())),
            Err(error) => finish(Err(error)),
        }
    }

    /// Captures what was written under the journal and puts it in flight, to be proposed alone or together with
    /// other databases of one transaction; `None` where nothing changed.
    pub(crate) fn prepare_group(&self) -> Result<Option<ltx::ChangeSet>, DbError> {
        let mut state = self.lock();
        while state.flight.is_some() || state.exclusive {
            state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        if !state.journal.live {
            return Ok(None);
        }
        if self.access() != Access::Write {
            return Err(DbError::NotPrimary(self.name().clone()));
        }
        if state.limbo.is_some() {
            return Err(self.unavailable("the fate of an earlier transaction is unknown"));
        }
        match self.encode_journal(&state) {
            Ok(None) => Ok(None),
            Ok(Some(batch)) => {
                let change = batch.change.clone();
                state.flight = Some(Flight { batch, waiters: Vec::new(), source: Source::Journal });
                Ok(Some(change))
            }
            Err(source) => Err(self.io_error("capturing a transaction", source)),
        }
    }

    fn encode_journal(&self, state: &State) -> io::Result<Option<Batch>> {
        fault::point("capture_journal")?;
        let file = File::open(self.files().path(FileKind::Database))?;
        let length = file.metadata()?.len();
        if length == 0 {
            return Ok(None);
        }
        let mut head = [0; 100];
        read_or_zero(&file, 0, &mut head)?;
        let header = DatabaseHeader::parse(&head).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("its first page: {error}"))
        })?;
        let in_file = page_count(length, header.page_size)?;
        // SQLite may cut the file to the size in the header only after the journal has ended.
        let pages = header.trusted_page_count().map_or(in_file, |count| count.min(in_file));
        let frame = Frame {
            db: self.name(),
            base: state.pos,
            base_pages: state.pages,
            base_page_size: state.page_size,
            commits: 1,
            page_size: header.page_size,
            pages,
            wal: None,
            timestamp_ms: now_ms(),
        };
        let lock_page = Pgno::lock_page(header.page_size);
        let same_size = header.page_size == state.page_size;
        let mut touched: BTreeSet<Pgno> =
            if same_size { state.journal.dirty.clone() } else { BTreeSet::new() };
        touched.retain(|pgno| pages.contains(*pgno) && *pgno != lock_page);
        if same_size && pages == state.pages && unchanged(state, &file, &touched, header.page_size)? {
            return Ok(None);
        }
        touched.extend(frame.untouched_growth(&touched));
        let read = |pgno: Pgno, page: &mut [u8]| read_or_zero(&file, pgno.offset(header.page_size), page);
        frame.encode(&self.shared, &state.checksums, touched.into_iter(), read).map(Some)
    }

    fn finish_journal(&self, end: &JournalEnd) -> Result<(), DbError> {
        self.end_journal_file(end)?;
        self.lock().journal = JournalState::default();
        Ok(())
    }

    fn end_journal_file(&self, end: &JournalEnd) -> Result<(), DbError> {
        let fail = |source| self.io_error("ending the journal", source);
        fault::point("journal_end").map_err(fail)?;
        match end {
            JournalEnd::Unlink => match std::fs::remove_file(self.files().path(FileKind::Journal)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail(error)),
                _ => Ok(()),
            },
            JournalEnd::Truncate(size) => self.open_backing(FileKind::Journal)?.set_len(*size).map_err(fail),
            JournalEnd::Write(offset, data) => {
                self.open_backing(FileKind::Journal)?.write_all_at(data, *offset).map_err(fail)
            }
        }
    }
}

/// Whether a transaction left the pages it touched as they were: it was rolled back.
fn unchanged(state: &State, file: &File, touched: &BTreeSet<Pgno>, page_size: PageSize) -> io::Result<bool> {
    let mut page = vec![0; page_size.len()];
    for pgno in touched {
        read_or_zero(file, pgno.offset(page_size), &mut page)?;
        if state.checksums.get(*pgno)? != Some(ltx::page_checksum(*pgno, &page)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn page_count(length: u64, page_size: PageSize) -> io::Result<PageCount> {
    let pages = length / page_size.bytes();
    if !length.is_multiple_of(page_size.bytes()) {
        let text = format!("its size of {length} bytes is no multiple of the page size {page_size}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    u32::try_from(pages).map(PageCount::new).map_err(io::Error::other)
}
