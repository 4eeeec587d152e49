//! Capture of a rollback-journal database: what was written under the journal, when the journal ends.
//!
//! The commit point of SQLite is the unlink, truncation or zeroing of the journal. The change set is in the log
//! before that happens; if it cannot get there the journal stays, and SQLite rolls back with it. What the transaction
//! wrote reaches the database file only after that, see [`Overlay`](super::overlay::Overlay).

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::sync::Arc;

use super::batch::{Batch, Frame, INLINE_BYTES_MAX};
use super::commit::{InFlight, Source};
use super::database::{Database, State};
use super::journal_end::JournalEnd;
use super::view::StateLock;
use super::{DbError, Done, FileKind, capture_time};
use crate::io::fault;
use crate::ltx;
use crate::sqlite::header::DatabaseHeader;
use crate::types::{PageCount, PageSize, Pgno};

impl Database {
    /// The journal ends: the transaction is captured and committed, then the end takes place.
    pub(super) fn journal_ends(self: &Arc<Self>, end: JournalEnd, done: Done) {
        // Large transactions are read and encoded on a thread of their own; so is what has to wait.
        if !self.is_in_place()
            && self.overlay.staged_bytes() <= INLINE_BYTES_MAX
            && let Some(state) = self.try_lock()
            && state.may_take_off()
        {
            return self.take_off_journal(state, end, done);
        }
        self.off_thread(done, move |database, done| {
            let state = database.wait_for_landing();
            database.take_off_journal(state, end, done);
        });
    }

    fn take_off_journal(self: &Arc<Self>, mut state: StateLock<'_>, end: JournalEnd, done: Done) {
        if matches!(end, JournalEnd::Written) && !self.journal_has_ended() {
            // Somebody else has captured it, and another transaction is under way.
            drop(state);
            return done(Ok(()));
        }
        capture_time::begin();
        let database = self.clone();
        let finish: Done = Box::new(move |answer| match answer {
            Ok(()) => done(database.finish_journal(&end)),
            // SQLite takes it back with the journal.
            Err(error) if database.is_in_place() => done(Err(error)),
            Err(error) => take_back(vec![database], error, done),
        });
        match self.capture_journal(&mut state, INLINE_BYTES_MAX) {
            Ok(Some(change)) => {
                state.in_flight.as_mut().expect("it was put there").waiters.push(finish);
                drop(state);
                capture_time::end();
                self.propose(change);
            }
            Ok(None) => {
                drop(state);
                finish(Ok(()));
            }
            Err(error) => {
                drop(state);
                finish(Err(error));
            }
        }
    }

    /// Captures what was written under the journal and puts it in in_flight, to be proposed together with other
    /// databases of one transaction; `None` where nothing changed. Pages of more than `inline_bytes_max` become a blob.
    /// Blocking.
    pub(crate) fn prepare_group(&self, inline_bytes_max: u64) -> Result<Option<ltx::ChangeSet>, DbError> {
        let mut state = self.wait_for_landing();
        self.capture_journal(&mut state, inline_bytes_max.min(INLINE_BYTES_MAX))
    }

    fn wait_for_landing(&self) -> StateLock<'_> {
        let mut state = self.lock();
        while !state.may_take_off() {
            state = state.wait(&self.changed);
        }
        state
    }

    fn capture_journal(
        &self,
        state: &mut State,
        inline_bytes_max: u64,
    ) -> Result<Option<ltx::ChangeSet>, DbError> {
        // What was staged is forgotten by now.
        self.check_not_ending()?;
        let in_place = self.is_in_place() && !state.open.is_wal();
        if !in_place && self.overlay.size().is_none() {
            return Ok(None);
        }
        if let Some(why) = state.service.failure() {
            return Err(self.corrupt(why));
        }
        if !self.may_commit() {
            return Err(DbError::NotPrimary(self.name().clone()));
        }
        let encoded = match in_place {
            true => self.encode_differences(state, inline_bytes_max),
            false => self.encode_journal(state, inline_bytes_max),
        };
        // What was rolled back ends whatever the disk has left. For the rest the space is taken now: once the log has the
        // change set, writing it must not fail.
        let space = match &encoded {
            Ok(Some(batch)) => {
                self.shared.limits.check_space().and_then(|()| self.reserve_space(state, &batch.change))
            }
            Ok(None) | Err(_) => Ok(()),
        };
        match space.and(encoded) {
            Ok(None) => {
                // It was rolled back: what it staged is what the file has.
                self.overlay.discard();
                Ok(None)
            }
            Ok(Some(_)) if state.undecided.is_some() => {
                Err(self.unavailable("the fate of an earlier transaction is unknown"))
            }
            Ok(Some(batch)) => {
                let change = batch.change.clone();
                state.in_flight = Some(InFlight { batch, waiters: Vec::new(), source: Source::Journal });
                Ok(Some(change))
            }
            Err(source) => Err(self.io_error("capturing a transaction", source)),
        }
    }

    fn encode_journal(&self, state: &State, inline_bytes_max: u64) -> io::Result<Option<Batch>> {
        fault::point("capture_journal")?;
        let file = File::open(self.files().path(FileKind::Database))?;
        let length = match self.overlay.size() {
            Some(size) => size,
            // Nothing was written.
            None => return Ok(None),
        };
        if length == 0 {
            return Ok(None);
        }
        let read_at = |offset: u64, data: &mut [u8]| {
            let got = self.overlay.read(&file, offset, data)?;
            data[got..].fill(0);
            Ok::<(), io::Error>(())
        };
        let mut head = [0; 100];
        read_at(0, &mut head)?;
        let header = DatabaseHeader::parse(&head).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("its first page: {error}"))
        })?;
        let in_file = page_count(length, header.page_size)?;
        // SQLite may cut the file to the size in the header only after the journal has ended.
        let pages = header.trusted_page_count().map_or(in_file, |count| count.min(in_file));
        let frame = Frame { inline_bytes_max, ..Frame::on(self.name(), state, header.page_size, pages) };
        let lock_page = Pgno::lock_page(header.page_size);
        let same_size = header.page_size == state.page_size;
        let mut touched = self.overlay.touched_pages(header.page_size);
        touched.retain(|pgno| pages.contains(*pgno) && *pgno != lock_page);
        let read = |pgno: Pgno, page: &mut [u8]| read_at(pgno.offset(header.page_size), page);
        if same_size && pages == state.pages && unchanged(state, &touched, header.page_size, read)? {
            return Ok(None);
        }
        touched.extend(frame.untouched_growth(&touched));
        frame.encode(&self.shared, &state.checksums, touched.into_iter(), read).map(Some)
    }

    /// Brings what is staged into the database file, now that the log has it as the change set that gives the
    /// database `pages`.
    pub(super) fn install_overlay(&self, state: &mut State) -> Result<(), DbError> {
        let fail = |source| self.io_error("writing a committed transaction", source);
        if self.overlay.size().is_none() {
            return Ok(());
        }
        let file = self.open_backing(FileKind::Database)?;
        let cow = &mut state.cow;
        let before = |offset, length| {
            fault::point("overlay_install")?;
            cow.before_write(&file, offset, length)
        };
        self.overlay.install(&file, state.pages.bytes(state.page_size), before).map_err(fail)
    }

    /// Forgets a transaction under a rollback journal that cannot commit any more: another content takes the place
    /// of what it was made on. Nobody may be in the middle of it.
    pub(super) fn drop_staged(&self) -> io::Result<()> {
        if self.forget_staged()? {
            self.tell_kernel(FileKind::Journal);
        }
        Ok(())
    }

    /// The same but for what the kernel has cached of the journal; returns whether there was anything.
    fn forget_staged(&self) -> io::Result<bool> {
        let staged = self.overlay.discard();
        // With its journal a later opener, also one on a later primary, would roll back to the content before. A writer
        // whose first write was refused leaves one, too.
        if !staged && !self.journal_in_force() {
            return Ok(false);
        }
        // Cut, not removed: an application may keep it open for its next transaction.
        match File::options().write(true).open(self.files().path(FileKind::Journal)) {
            Ok(journal) => journal.set_len(0)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.tell_kernel(FileKind::Database);
        Ok(true)
    }

    fn tell_kernel(&self, kind: FileKind) {
        if let Some(cache) = self.shared.cache() {
            cache.data_changed(self.name(), kind);
        }
    }

    fn finish_journal(&self, end: &JournalEnd) -> Result<(), DbError> {
        let ended = self.end_journal_file(end);
        if let Err(error) = &ended {
            // SQLite would take back with it what is history by now.
            tracing::error!(%error, "the journal of a committed transaction cannot be ended; the database is not served until the node is started again");
            self.lock().service.fail(format!("{error}; start the node again"));
        }
        ended
    }
}

/// Takes back a transaction of these databases, which was not committed because of `error`, before its writer hears of
/// that and lets go of its locks: what others read then could be taken for a later commit, by its change counter.
pub(crate) fn take_back(databases: Vec<Arc<Database>>, error: DbError, done: Done) {
    let Some(first) = databases.first().cloned() else { return done(Err(error)) };
    // Whoever tells the kernel must not be one of those who answer it.
    first.off_thread(done, move |_, done| {
        for database in &databases {
            if let Err(source) = database.forget_staged() {
                database.fail(&database.io_error("taking back a transaction", source));
            }
        }
        done(Err(error));
        // The writer's last request may have been to the journal.
        databases.iter().for_each(|database| database.tell_kernel(FileKind::Journal));
    });
}

impl State {
    /// Whether a change set may be put in in_flight.
    fn may_take_off(&self) -> bool {
        self.in_flight.is_none() && !self.exclusive
    }
}

/// Whether a transaction left the pages it touched as they were: it was rolled back.
fn unchanged(
    state: &State,
    touched: &BTreeSet<Pgno>,
    page_size: PageSize,
    read: impl Fn(Pgno, &mut [u8]) -> io::Result<()>,
) -> io::Result<bool> {
    let mut page = vec![0; page_size.len()];
    for pgno in touched {
        read(*pgno, &mut page)?;
        if state.checksums.get(*pgno)? != Some(ltx::page_checksum(*pgno, &page)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Pages of a file; one that the file's end cuts off counts, as it does for SQLite. A transaction that changes the page
/// size leaves the file at a size that is no multiple of it, until it is cut after the journal has ended.
fn page_count(length: u64, page_size: PageSize) -> io::Result<PageCount> {
    u32::try_from(length.div_ceil(page_size.bytes())).map(PageCount::new).map_err(io::Error::other)
}
