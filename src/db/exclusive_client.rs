//! An exclusive client: a connection that keeps the wal-index in its own memory, and has the database file locked.
//!
//! `locking_mode=EXCLUSIVE` before the WAL is first used, the unix-excl VFS and engines that lock the whole file work so.
//! Such a client publishes nothing and heeds no lock of the wal-index. So the kernel does not pass its `-wal` through: each
//! write comes here, and the write that completes a commit is answered when a quorum has the transaction, whatever
//! `synchronous` is. The daemon then publishes it in the wal-index that everybody else reads.
//!
//! A client one of whose commits failed may hold another state than the log. It is refused from then on, until it has
//! closed the database.
//! Source: `wal.c`, sqlite3WalOpen(), walIndexRecover() and sqlite3WalFrames(); `pager.c`, pagerOpenWal().

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::attach::{Captured, WalAttachment, WalClient};
use super::database::{Database, State};
use super::main_lock::MainLock;
use super::opened::WalClients;
use super::{DbError, Done, FileKind};
use crate::io::fault;
use crate::sqlite::wal::{FRAME_HEADER_SIZE, FrameChecksum, WAL_HEADER_SIZE, WalHeader, frame_offset};
use crate::sqlite::wal_index::{HeaderRead, IndexHeader};
use crate::types::{Access, JournalMode, PageCount, PageSize};

impl Database {
    /// Whether the application that opens `-wal` now keeps the wal-index to itself; the daemon takes part then, as it
    /// does before the wal-index of others is opened. Blocking.
    ///
    /// # Errors
    /// `Conflict` where this node is not primary; `Io`.
    pub(super) fn admit_exclusive_client(self: &Arc<Self>) -> Result<(), DbError> {
        let fail = |source| self.io_error("asking for the lock of its connection", source);
        let Some(main_lock) = self.main_lock_of_client().map_err(fail)? else { return Ok(()) };
        if !main_lock.is_exclusive().map_err(fail)? {
            return Ok(());
        }
        if self.access() != Access::Write {
            return Err(self.conflict(
                "is held by a connection that does not share its wal-index (locking_mode=EXCLUSIVE before the WAL is first used, the unix-excl VFS, or an engine that locks the whole file); such a connection works on the primary only",
            ));
        }
        // Leaving a rollback mode is a transaction of that mode, whose end may not have been heard of.
        self.finish_unseen_journal()?;
        let (mut state, attached) = self.attaching(|state| self.attach_exclusive(state));
        attached?;
        match state.wal_clients {
            WalClients::None => state.wal_clients = WalClients::Exclusive { refused: false },
            WalClients::Exclusive { .. } => {}
            WalClients::Shared => {
                return Err(self.conflict("a connection that shares the wal-index has it exclusively"));
            }
        }
        Ok(())
    }

    /// The daemon takes part in the log of an exclusive client as soon as the database is in WAL mode.
    fn attach_exclusive(self: &Arc<Self>, state: &mut State) -> Result<(), DbError> {
        match state.mode {
            Some(JournalMode::Wal) => self.attach_beside(state, WalClient::Exclusive),
            _ => Ok(()),
        }
    }

    fn main_lock_of_client(&self) -> io::Result<Option<MainLock>> {
        if let Some(wal) = self.lock().open.wal() {
            return Ok(Some(wal.main_lock.clone()));
        }
        let Some(cache) = self.shared.cache() else { return Ok(None) };
        let path = cache.mount_point().join(self.name().as_str());
        Ok(Some(MainLock::new(File::options().read(true).write(true).open(path)?)))
    }

    /// Whether `-wal` is written by an exclusive client.
    pub fn has_exclusive_client(&self) -> bool {
        self.lock().wal_clients.is_exclusive()
    }

    /// A write of an exclusive client to `-wal`; one that completes a commit is answered when a quorum has it. Waits for
    /// the database's lock.
    pub(super) fn exclusive_wal_write(self: &Arc<Self>, offset: u64, data: &[u8], done: Done) {
        if let Err(error) = self.check_exclusive_client() {
            return done(Err(error));
        }
        // An engine may make the database with the log open already.
        let (state, attached) = self.attaching(|state| self.attach_exclusive(state));
        drop(state);
        if let Err(error) = attached {
            return done(Err(error));
        }
        let mut state = self.wait_for_capture();
        match self.write_exclusive(&mut state, offset, data) {
            Ok(None) => {
                drop(state);
                done(Ok(()));
            }
            Ok(Some(frame)) => {
                let database = self.clone();
                let captured: Done =
                    Box::new(move |captured| database.exclusive_captured(frame, captured, done));
                self.capture_synced(state, Some(captured));
            }
            Err(error) => {
                drop(state);
                done(Err(error));
            }
        }
    }

    fn check_exclusive_client(&self) -> Result<(), DbError> {
        if !self.may_commit() {
            return Err(DbError::NotPrimary(self.name().clone()));
        }
        match self.lock().wal_clients == (WalClients::Exclusive { refused: true }) {
            true => Err(self
                .unavailable("an earlier commit of its exclusive connection failed; close that connection")),
            false => Ok(()),
        }
    }

    /// Writes, and gives the commit frame that is complete by that.
    fn write_exclusive(&self, state: &mut State, offset: u64, data: &[u8]) -> Result<Option<u32>, DbError> {
        let fail = |source| self.io_error("writing the WAL", source);
        self.shared.limits.check_space().map_err(fail)?;
        fault::point("wal_app_write").map_err(fail)?;
        let pages = state.pages;
        let page_size = state.page_size;
        let Some(wal) = state.open.wal_mut() else {
            return Err(self.invalid("is in no WAL mode, so its -wal does not count"));
        };
        let anew = match offset {
            0 => WalHeader::parse(data)
                .ok()
                .filter(|header| header.salt != wal.captured.salt || wal.captured.frame > 0),
            _ => None,
        };
        if let Some(header) = anew {
            wal.begin_exclusive_log(Some(header), pages, page_size).map_err(fail)?;
        }
        wal.append_wal(data, offset).map_err(fail)?;
        wal.commit_within(offset, data.len() as u64).map_err(fail)
    }

    /// A commit of an exclusive client was captured, or not: publishes it, or sees to it that it never counts.
    fn exclusive_captured(self: &Arc<Self>, frame: u32, captured: Result<(), DbError>, done: Done) {
        if captured.is_ok()
            && let Some(state) = self.try_lock()
            && state.open.wal().is_none_or(|wal| wal.captured.unpublished.is_none())
        {
            drop(state);
            return done(Ok(()));
        }
        // The answer comes on the log's thread, which does no file work.
        self.off_thread(done, move |database, done| {
            let mut state = database.lock();
            let (pages, page_size) = (state.pages, state.page_size);
            let Some(wal) = state.open.wal_mut() else { return done(captured) };
            let concluded = match &captured {
                Ok(()) => wal.publish_captured(pages).map(drop),
                Err(_) => wal.invalidate_frame(frame, page_size),
            };
            if captured.is_err() {
                state.wal_clients = WalClients::Exclusive { refused: true };
            }
            if let Err(error) = concluded {
                tracing::error!(db = %database.name(), %error, "cannot conclude a commit of an exclusive connection; the database is not served");
                state.service.fail(format!("a commit of an exclusive connection cannot be concluded: {error}"));
            }
            drop(state);
            done(captured);
        });
    }

    /// An exclusive client cuts `-wal`: what it had is in the database file then.
    pub(super) fn exclusive_wal_truncated(self: &Arc<Self>, size: u64) -> Result<(), DbError> {
        self.check_exclusive_client()?;
        let fail = |source| self.io_error("truncating the WAL", source);
        let mut state = self.wait_for_capture();
        let (pages, page_size) = (state.pages, state.page_size);
        if let Some(wal) = state.open.wal_mut()
            && size < frame_offset(wal.captured.frame + 1, page_size)
        {
            wal.begin_exclusive_log(None, pages, page_size).map_err(fail)?;
        }
        self.open_backing(FileKind::Wal)?.set_len(size).map_err(fail)
    }
}

impl WalAttachment {
    /// The client begins the log anew, with `header` where it writes one. What the log had is in the database file, as far
    /// as the client kept SQLite's rules; what is not is copied before it is overwritten.
    fn begin_exclusive_log(
        &mut self,
        header: Option<WalHeader>,
        pages: PageCount,
        page_size: PageSize,
    ) -> io::Result<()> {
        if self.captured.frame > 0 {
            self.copy_all(&self.backing_database, pages, page_size)?;
        }
        self.pin.release(&self.index)?;
        let change = match self.index.header() {
            HeaderRead::Valid(published) => published.change.wrapping_add(1),
            HeaderRead::Empty | HeaderRead::Torn => self.captured.change,
        };
        let salt = header.map_or(self.captured.salt, |header| header.salt);
        let checksum = header.map_or(FrameChecksum(0, 0), |header| header.checksum);
        self.index.publish(&IndexHeader {
            change,
            big_endian_checksum: header.is_some_and(|header| header.big_endian_checksum),
            page_size: header.map_or(page_size, |header| header.page_size),
            max_frame: 0,
            pages,
            frame_checksum: checksum,
            salt,
        });
        self.index.reset_checkpoint_info();
        self.captured = Captured { salt, frame: 0, checksum, change, unpublished: None };
        self.invalidated = None;
        Ok(())
    }

    /// The last frame that `length` bytes at `offset` have touched, that ends a commit and is complete.
    fn commit_within(&self, offset: u64, length: u64) -> io::Result<Option<u32>> {
        let Some(header) = self.wal_header() else { return Ok(None) };
        let frame_bytes = FRAME_HEADER_SIZE as u64 + header.page_size.bytes();
        let first = (offset.max(WAL_HEADER_SIZE as u64) - WAL_HEADER_SIZE as u64) / frame_bytes;
        let end = (offset + length).saturating_sub(WAL_HEADER_SIZE as u64).div_ceil(frame_bytes);
        let in_file = self.backing_wal.metadata()?.len().saturating_sub(WAL_HEADER_SIZE as u64) / frame_bytes;
        for number in (first + 1..=end.min(in_file)).rev() {
            let number = u32::try_from(number).map_err(io::Error::other)?;
            let frame = self.frame_header(number, header.page_size)?;
            if number > self.captured.frame && frame.is_some_and(|frame| frame.commit != PageCount::ZERO) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }
}
