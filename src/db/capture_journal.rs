//! Capture of a rollback-journal database: what was written under the journal, when the journal ends.
//!
//! The commit point of SQLite is the unlink, truncation or zeroing of the journal. The change set is in the log
//! before that happens; if it cannot get there the journal stays, and SQLite rolls back with it. What the transaction
//! wrote reaches the database file only after that, see [`Overlay`](super::overlay::Overlay).

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use super::batch::{Batch, Frame, INLINE_BYTES_MAX};
use super::commit::{Flight, Source};
use super::database::{Database, State};
use super::{DbError, Done, FileKind};
use crate::io::fault;
use crate::ltx;
use crate::sqlite::header::DatabaseHeader;
use crate::sqlite::journal;
use crate::types::{Access, PageCount, PageSize, Pgno};

/// How a transaction under a rollback journal ends.
enum JournalEnd {
    /// journal_mode=DELETE.
    Unlink,
    /// journal_mode=TRUNCATE.
    Truncate(u64),
    /// journal_mode=PERSIST: the header is zeroed.
    Write(u64, Vec<u8>),
    /// The same where the kernel writes the journal by itself, and has zeroed the header.
    Written,
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

    /// A write to the database file that reaches the daemon (rollback mode, or a checkpoint without passthrough);
    /// `file` is the backing file. Waits for the database's lock.
    ///
    /// # Errors
    /// `Invalid` where no journal could roll the write back; `NotPrimary`; `Io`.
    pub fn database_write(&self, file: &File, offset: u64, data: &[u8]) -> Result<(), DbError> {
        self.write_in(&self.lock(), file, offset, data)
    }

    /// The same for FUSE threads; `None` where the lock is taken.
    pub fn try_database_write(&self, file: &File, offset: u64, data: &[u8]) -> Option<Result<(), DbError>> {
        self.try_lock().map(|state| self.write_in(&state, file, offset, data))
    }

    fn write_in(&self, state: &State, file: &File, offset: u64, data: &[u8]) -> Result<(), DbError> {
        let fail = |source| self.io_error("writing the database file", source);
        if state.wal.is_some() {
            // A checkpoint: what it copies is captured, the read mark and its own sync of the WAL see to that.
            return file.write_all_at(data, offset).map_err(fail);
        }
        self.may_change(state)?;
        fault::point("database_write").map_err(fail)?;
        self.overlay.write(file, &self.shared.tmp, offset, data).map_err(fail)
    }

    /// A read of the database file that reaches the daemon; `file` is the backing file. Returns how much there was.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn database_read(&self, file: &File, offset: u64, data: &mut [u8]) -> io::Result<usize> {
        self.overlay.read(file, offset, data)
    }

    /// Size of the database file as its writer sees it, in bytes; `None` where that is the backing file's.
    pub fn database_bytes(&self) -> Option<u64> {
        self.overlay.size()
    }

    fn may_change(&self, state: &State) -> Result<(), DbError> {
        if let Some(why) = &state.failed {
            return Err(self.corrupt(why.clone()));
        }
        if self.access() != Access::Write {
            return Err(DbError::NotPrimary(self.name().clone()));
        }
        // The journal is written before the database, and stays in force until the end.
        if self.overlay.size().is_none() && !self.journal_in_force() {
            return Err(self.invalid(
                "a write without a rollback journal (journal_mode=OFF or MEMORY) could not be undone; use DELETE, TRUNCATE, PERSIST or WAL",
            ));
        }
        Ok(())
    }

    /// The database file is truncated by ftruncate.
    pub fn database_truncated(self: &Arc<Self>, size: u64, done: Done) {
        let state = self.lock();
        if state.wal.is_some() {
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
        // After a commit SQLite cuts the file to the size the commit gave it, which it has by then.
        let committed = size == state.pages.bytes(state.page_size) && self.access() == Access::Write;
        let answer = match self.may_change(&state) {
            Ok(()) => {
                self.overlay.truncate(size);
                Ok(())
            }
            Err(_) if committed => Ok(()),
            Err(error) => Err(error),
        };
        drop(state);
        done(answer);
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

    /// A write to the rollback journal, whose backing file is `file`; zeroing its header ends the transaction
    /// (PERSIST), which is captured first.
    pub fn journal_write(self: &Arc<Self>, file: &File, offset: u64, data: &[u8], done: Done) {
        if journal::ends_transaction(offset, data) {
            return self.journal_ends(JournalEnd::Write(offset, data.to_vec()), done);
        }
        done(self.write_journal(file, offset, data));
    }

    /// `fsync` of the journal: nothing of it has to be durable, but where the kernel writes it by itself this is
    /// where a transaction of journal_mode=PERSIST is seen to have ended.
    pub fn journal_synced(self: &Arc<Self>, done: Done) {
        if self.overlay.size().is_none() || self.journal_in_force() {
            return done(Ok(()));
        }
        self.journal_ends(JournalEnd::Written, done);
    }

    /// Whether the kernel may write the journal by itself: its end must be one that the daemon sees coming. The mode is
    /// each connection's own, so the last end is a guess; where it is wrong the end is seen at the journal's fsync,
    /// before the commit returns, or with synchronous=OFF when the journal is closed.
    pub fn journal_may_be_passed_through(&self) -> bool {
        self.journal_vanishes.load(Ordering::Relaxed)
    }

    /// Whether the journal has a header with which SQLite would roll back.
    fn journal_in_force(&self) -> bool {
        let mut magic = [0; 8];
        File::open(self.files().path(FileKind::Journal))
            .and_then(|file| file.read_exact_at(&mut magic, 0))
            .is_ok_and(|()| journal::is_header_magic(&magic))
    }

    fn write_journal(&self, file: &File, offset: u64, data: &[u8]) -> Result<(), DbError> {
        let fail = |source| self.io_error("writing the journal", source);
        if self.access() != Access::Write {
            return Err(DbError::NotPrimary(self.name().clone()));
        }
        fault::point("journal_write").map_err(fail)?;
        file.write_all_at(data, offset).map_err(fail)
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
        // Large transactions are read and encoded on a thread of their own; so is what has to wait.
        if self.overlay.staged_bytes() <= INLINE_BYTES_MAX
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

    fn take_off_journal(self: &Arc<Self>, mut state: MutexGuard<'_, State>, end: JournalEnd, done: Done) {
        if matches!(end, JournalEnd::Written) && self.journal_in_force() {
            // Somebody else has captured it, and another transaction is under way.
            drop(state);
            return done(Ok(()));
        }
        let database = self.clone();
        let finish: Done = Box::new(move |answer| {
            if answer.is_err() && matches!(end, JournalEnd::Written) {
                return database.take_back(answer, done);
            }
            done(answer.and_then(|()| database.finish_journal(&end)));
        });
        match self.capture_journal(&mut state) {
            Ok(Some(change)) => {
                state.flight.as_mut().expect("it was put there").waiters.push(finish);
                drop(state);
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

    /// Captures what was written under the journal and puts it in flight, to be proposed together with other
    /// databases of one transaction; `None` where nothing changed. Blocking.
    pub(crate) fn prepare_group(&self) -> Result<Option<ltx::ChangeSet>, DbError> {
        let mut state = self.wait_for_landing();
        self.capture_journal(&mut state)
    }

    fn wait_for_landing(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while !state.may_take_off() {
            state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        state
    }

    fn capture_journal(&self, state: &mut State) -> Result<Option<ltx::ChangeSet>, DbError> {
        if self.overlay.size().is_none() {
            return Ok(None);
        }
        if let Some(why) = &state.failed {
            return Err(self.corrupt(why.clone()));
        }
        if self.access() != Access::Write {
            return Err(DbError::NotPrimary(self.name().clone()));
        }
        if state.limbo.is_some() {
            return Err(self.unavailable("the fate of an earlier transaction is unknown"));
        }
        match self.encode_journal(state) {
            Ok(None) => {
                // It was rolled back: what it staged is what the file has.
                self.overlay.discard();
                Ok(None)
            }
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
        let frame = Frame::on(self.name(), state, header.page_size, pages);
        let lock_page = Pgno::lock_page(header.page_size);
        let same_size = header.page_size == state.page_size;
        let mut touched = self.touched_pages(header.page_size);
        touched.retain(|pgno| pages.contains(*pgno) && *pgno != lock_page);
        let read = |pgno: Pgno, page: &mut [u8]| read_at(pgno.offset(header.page_size), page);
        if same_size && pages == state.pages && unchanged(state, &touched, header.page_size, read)? {
            return Ok(None);
        }
        touched.extend(frame.untouched_growth(&touched));
        frame.encode(&self.shared, &state.checksums, touched.into_iter(), read).map(Some)
    }

    /// Pages of which any byte may differ from the file.
    fn touched_pages(&self, page_size: PageSize) -> BTreeSet<Pgno> {
        let size = page_size.bytes();
        let numbers =
            self.overlay.extents().into_iter().flat_map(|(start, end)| start / size..end.div_ceil(size));
        numbers.filter_map(|number| u32::try_from(number + 1).ok().and_then(Pgno::new)).collect()
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
        if !self.overlay.discard() {
            return Ok(());
        }
        // With its journal a later opener would roll back to the content before. Cut, not removed: an application
        // may keep it open for its next transaction.
        match File::options().write(true).open(self.files().path(FileKind::Journal)) {
            Ok(journal) => journal.set_len(0)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if let Some(cache) = self.shared.cache() {
            cache.data_changed(self.name(), FileKind::Database);
            cache.data_changed(self.name(), FileKind::Journal);
        }
        Ok(())
    }

    /// A transaction that was not committed, and of which SQLite has given up the journal by then.
    fn take_back(self: &Arc<Self>, answer: Result<(), DbError>, done: Done) {
        // The kernel's cache is told, which may wait for the caller's request.
        self.off_thread(done, move |database, done| {
            let dropped = database.drop_staged();
            done(
                answer.and(dropped.map_err(|source| database.io_error("taking back a transaction", source))),
            );
        });
    }

    fn finish_journal(&self, end: &JournalEnd) -> Result<(), DbError> {
        let ended = self.end_journal_file(end);
        if let Err(error) = &ended {
            // SQLite would take back with it what is history by now.
            tracing::error!(%error, "the journal of a committed transaction cannot be ended; the database is not served until the node is started again");
            self.lock().failed.get_or_insert_with(|| format!("{error}; start the node again"));
        }
        ended
    }

    fn end_journal_file(&self, end: &JournalEnd) -> Result<(), DbError> {
        self.journal_vanishes
            .store(matches!(end, JournalEnd::Unlink | JournalEnd::Truncate(0)), Ordering::Relaxed);
        let fail = |source| self.io_error("ending the journal", source);
        fault::point("journal_end").map_err(fail)?;
        match end {
            JournalEnd::Unlink => match std::fs::remove_file(self.files().path(FileKind::Journal)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail(error)),
                _ => Ok(()),
            },
            JournalEnd::Truncate(size) => self.open_backing(FileKind::Journal)?.set_len(*size).map_err(fail),
            JournalEnd::Written => Ok(()),
            JournalEnd::Write(offset, data) => {
                self.open_backing(FileKind::Journal)?.write_all_at(data, *offset).map_err(fail)
            }
        }
    }
}

impl State {
    /// Whether a change set may be put in flight.
    fn may_take_off(&self) -> bool {
        self.flight.is_none() && !self.exclusive
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

fn page_count(length: u64, page_size: PageSize) -> io::Result<PageCount> {
    let pages = length / page_size.bytes();
    if !length.is_multiple_of(page_size.bytes()) {
        let text = format!("its size of {length} bytes is no multiple of the page size {page_size}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    u32::try_from(pages).map(PageCount::new).map_err(io::Error::other)
}
