//! The last close: the last application of a WAL database moves the log into the file and removes it.
//!
//! On the primary the daemon does not count as a connection, so the last one of the applications does what it does
//! anywhere: it takes SQLite's EXCLUSIVE lock, syncs the WAL, copies it into the database file, cuts the file to its
//! size, and removes `-shm` and then `-wal`. The sync, the cut and the removals reach the daemon, which answers each of
//! them when every published frame is in the log of a quorum. So the database file is complete, and holds nothing but
//! history, when close(2) of the last connection returns.
//! Source: `wal.c`, sqlite3WalClose(); `os_unix.c`, unixShmUnmap().

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::attach::WalAttachment;
use super::database::{Database, State};
use super::opened::{Opened, WalClients};
use super::page_checksums::{Marker, WalPoint};
use super::view::StateLock;
use super::{DbError, Done, FileKind};
use crate::io::fault;
use crate::sqlite::wal_index::HeaderRead;
use crate::types::{Access, PageCount, PageSize, Pgno};

impl Database {
    /// An application removes `-wal` or `-shm`; `in_use` says whether anybody has one of them open. Removes the backing
    /// file where that is the last close, or nobody uses it. Never waits.
    pub fn side_file_unlinked(self: &Arc<Self>, kind: FileKind, in_use: bool, done: Done) {
        self.off_thread(done, move |database, done| {
            match database.is_last_close() {
                Ok(true) => {}
                Ok(false) => return done(database.remove_unused(kind, in_use)),
                Err(error) => return done(Err(error)),
            }
            let same = database.clone();
            // Whoever syncs has had it captured; with synchronous=OFF this is the last moment.
            database.capture_committed(Box::new(move |captured| match captured {
                // The answer comes on the log's thread, which does no file work.
                Ok(()) => same.off_thread(done, move |database, done| {
                    done(database.commit_rewritten().and_then(|()| database.end_wal(kind)));
                }),
                Err(error) => done(Err(error)),
            }));
        });
    }

    /// Whether an application has a WAL database for itself while the daemon takes part in it.
    fn is_last_close(&self) -> Result<bool, DbError> {
        let fail = |source| self.io_error("asking for the lock of its last connection", source);
        let state = self.lock();
        match state.open.wal() {
            Some(wal) if self.access() == Access::Write => wal.main_lock.is_exclusive().map_err(fail),
            _ => Ok(false),
        }
    }

    fn remove_unused(&self, kind: FileKind, in_use: bool) -> Result<(), DbError> {
        let mut state = self.lock();
        let allowed = match state.open {
            Opened::LastClosing => true,
            Opened::Wal(_) => false,
            _ => !in_use,
        };
        if !allowed {
            return Err(self.conflict("is in use; close it everywhere first"));
        }
        self.remove_side_file(kind)?;
        if kind == FileKind::Wal && matches!(state.open, Opened::LastClosing) {
            state.open = Opened::Cold;
        }
        Ok(())
    }

    fn end_wal(&self, kind: FileKind) -> Result<(), DbError> {
        let fail = |source| self.io_error("ending its WAL", source);
        fault::point("last_close").map_err(fail)?;
        let mut state = self.wait_for_capture();
        let (pages, page_size) = (state.pages, state.page_size);
        if let Some(wal) = state.open.wal_mut() {
            if !wal.main_lock.is_exclusive().map_err(fail)? || self.access() != Access::Write {
                return Err(self.conflict("is in use; close it everywhere first"));
            }
            if wal.tail().is_some() || wal.is_overrun().map_err(fail)? {
                return Err(self.unavailable("its WAL holds what is not in the log"));
            }
            if wal.lacks_in_file() {
                wal.copy_all(&self.open_backing(FileKind::Database)?, pages, page_size).map_err(fail)?;
                if let Some(cache) = self.shared.cache() {
                    cache.data_changed(self.name(), FileKind::Database);
                }
            }
            self.retire_wal(&mut state).map_err(fail)?;
            state.open = Opened::LastClosing;
            state.wal_clients = WalClients::None;
        }
        if kind == FileKind::Wal {
            // Its client knows of none, or was not allowed to remove it before.
            self.remove_side_file(FileKind::Shm)?;
            if let Some(cache) = self.shared.cache() {
                cache.entry_changed(self.name(), FileKind::Shm);
            }
        }
        self.remove_side_file(kind)
    }

    /// Waits until no change set is on its way, and nobody else has claimed the database.
    pub(super) fn wait_for_capture(&self) -> StateLock<'_> {
        let mut state = self.lock();
        while state.in_flight.is_some() || state.exclusive {
            state = state.wait(&self.changed);
        }
        state
    }

    /// Notes that the present incarnation of the WAL is history to its end, so that a crash which brings its file back
    /// brings back nothing new. Where the next one, with other salts, is found after a crash, all of it is new.
    pub(super) fn retire_wal(&self, state: &mut State) -> io::Result<()> {
        let Some(wal) = state.open.wal() else { return Ok(()) };
        let retired = WalPoint { salt: wal.captured.salt, frame: WalPoint::RETIRED };
        state.captured = Some(retired);
        let marker = Marker { wal: Some(retired), ..state.checksums.marker() };
        state.checksums.set_marker(marker)
    }

    pub(super) fn remove_side_file(&self, kind: FileKind) -> Result<(), DbError> {
        match std::fs::remove_file(self.files().path(kind)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.io_error(format!("removing {}", self.files().path(kind).display()), error))
            }
            _ => Ok(()),
        }
    }
}

impl WalAttachment {
    /// Whether the database file may lack captured frames: those that their writer never published, because it died.
    pub(super) fn lacks_in_file(&self) -> bool {
        match self.index.header() {
            HeaderRead::Valid(header) => {
                let captured = self.captured_frame(&header);
                captured > header.max_frame || captured > self.index.backfilled()
            }
            HeaderRead::Empty | HeaderRead::Torn => self.captured.frame > 0,
        }
    }

    /// Copies every captured frame into `file`. Only while nobody else uses the log: no lock is taken for it, and nothing
    /// is written to the wal-index, which the kernel may hold locked for its removal.
    pub(super) fn copy_all(
        &self,
        file: &std::fs::File,
        pages: PageCount,
        page_size: PageSize,
    ) -> io::Result<()> {
        let mut latest: BTreeMap<Pgno, u32> = BTreeMap::new();
        for number in 1..=self.captured.frame {
            let frame = self.frame_header(number, page_size)?;
            let frame = frame.ok_or_else(|| io::Error::other(format!("frame {number} is not in the WAL")))?;
            latest.insert(frame.pgno, number);
        }
        let mut page = vec![0; page_size.len()];
        for (pgno, number) in latest.into_iter().filter(|(pgno, _)| pages.contains(*pgno)) {
            self.read_frame(number, &mut page)?;
            fault::point("checkpoint_write")?;
            file.write_all_at(&page, pgno.offset(page_size))?;
        }
        file.set_len(pages.bytes(page_size))
    }
}
