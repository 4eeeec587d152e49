//! Transactions under a rollback journal that are written into the database file past the daemon.
//!
//! A connection that leaves WAL mode (`PRAGMA journal_mode=DELETE`) goes on with the open file it has, and the kernel
//! passes that through. So what it writes under its journal cannot be staged beside the file. It is found when the journal
//! ends, by comparing every page with its checksum: the journal alone does not tell, because SQLite does not save pages
//! that were free. The commit waits for that as any other; where it fails the journal stays, and SQLite takes the
//! transaction back with it. After a crash the daemon does that itself, page by page, where the journal has what the
//! checksums ask for. Once all connections are closed the file is opened as one of a rollback mode, and staged.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::batch::{Batch, Frame};
use super::database::{Database, State};
use super::main_lock::{HeldMainLock, MainLock};
use super::page_checksums::PageChecksums;
use super::{DbError, DbFiles, Done, FileKind};
use crate::io::{fault, read_or_zero};
use crate::ltx;
use crate::sqlite::header::DatabaseHeader;
use crate::sqlite::journal_playback::Playback;
use crate::types::{PageCount, PageSize};

impl Database {
    /// An application has the database file open past the daemon.
    pub fn main_passed_through(&self) {
        self.passed_through.store(true, Ordering::SeqCst);
    }

    /// Whether a transaction under a journal is written past the daemon.
    pub(super) fn is_in_place(&self) -> bool {
        self.passed_through.load(Ordering::SeqCst)
    }

    /// Takes back what such a transaction has written, before its journal is cut: its writer cannot commit any more.
    pub(super) fn take_back_in_place(&self, state: &State) -> io::Result<()> {
        match self.is_in_place() && !state.open.is_wal() {
            true => play_back(self.files(), &state.checksums, state.page_size, state.pages),
            false => Ok(()),
        }
    }

    /// What differs in the file from what is committed, as a change set; `None` where nothing does.
    pub(super) fn encode_differences(
        &self,
        state: &State,
        inline_bytes_max: u64,
    ) -> io::Result<Option<Batch>> {
        fault::point("capture_in_place")?;
        let file = File::open(self.files().path(FileKind::Database))?;
        let length = file.metadata()?.len();
        if length == 0 {
            return Ok(None);
        }
        let mut head = [0; 100];
        read_or_zero(&file, 0, &mut head)?;
        let header = DatabaseHeader::parse(&head).map_err(io::Error::other)?;
        let in_file = u32::try_from(length / header.page_size.bytes()).map_err(io::Error::other)?;
        let in_file = PageCount::new(in_file);
        let pages = header.trusted_page_count().map_or(in_file, |count| count.min(in_file));
        let frame = Frame { inline_bytes_max, ..Frame::on(self.name(), state, header.page_size, pages) };
        let mut touched = BTreeSet::new();
        if header.page_size == state.page_size {
            let mut page = vec![0; header.page_size.len()];
            for pgno in pages.pages(header.page_size).filter(|pgno| state.pages.contains(*pgno)) {
                read_or_zero(&file, pgno.offset(header.page_size), &mut page)?;
                if state.checksums.get(pgno)? != Some(ltx::page_checksum(pgno, &page)) {
                    touched.insert(pgno);
                }
            }
            if touched.is_empty() && pages == state.pages {
                return Ok(None);
            }
        }
        touched.extend(frame.untouched_growth(&touched));
        frame
            .encode(&self.shared, &state.checksums, touched.into_iter(), |pgno, page| {
                read_or_zero(&file, pgno.offset(header.page_size), page)
            })
            .map(Some)
    }

    /// `fsync` of a journal that has to be there after a power cut.
    pub(super) fn sync_journal(self: &Arc<Self>, done: Done) {
        self.off_thread(done, |database, done| {
            let synced = database.open_backing(FileKind::Journal).and_then(|file| {
                let sync =
                    file.sync_data().and_then(|()| crate::io::durable::sync_dir(database.files().dir()));
                sync.map_err(|source| database.io_error("syncing the journal", source))
            });
            done(synced);
        });
    }

    /// Keeps writers from the file for as long as it is read, where they write past the daemon.
    ///
    /// # Errors
    /// `Unavailable` where one is at work.
    pub(super) fn hold_against_passed_through(&self) -> Result<Option<HeldMainLock>, DbError> {
        let fail = |source| self.io_error("waiting for a writer", source);
        let Some(cache) = self.shared.cache().filter(|_| self.is_in_place()) else {
            return Ok(None);
        };
        let path = cache.mount_point().join(self.name().as_str());
        let file = File::options().read(true).write(true).open(path).map_err(fail)?;
        let held = MainLock::new(file).try_hold().map_err(fail)?;
        held.map(Some).ok_or_else(|| self.unavailable("an application holds it exclusively; try again"))
    }
}

/// Takes back what a transaction wrote into the file before its journal ended, where a crash has left the journal. Pages
/// are written only where they are not what is committed and the journal has what is: a journal whose transaction was
/// committed, or was staged beside the file, changes nothing.
///
/// # Errors
/// Where a file cannot be read or written.
pub(super) fn play_back(
    files: &DbFiles,
    checksums: &PageChecksums,
    page_size: PageSize,
    pages: PageCount,
) -> io::Result<()> {
    let journal = match File::open(files.path(FileKind::Journal)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        journal => journal?,
    };
    let Some(mut records) = Playback::open(BufReader::with_capacity(1 << 18, journal), page_size)? else {
        return Ok(());
    };
    if records.page_size() != page_size || pages == PageCount::ZERO {
        return Ok(());
    }
    let file = File::options().read(true).write(true).open(files.path(FileKind::Database))?;
    let (mut old, mut now) = (Vec::new(), vec![0; page_size.len()]);
    while let Some(pgno) = records.next_record(&mut old)? {
        read_or_zero(&file, pgno.offset(page_size), &mut now)?;
        let Some(committed) = checksums.get(pgno)? else { continue };
        if ltx::page_checksum(pgno, &now) != committed && ltx::page_checksum(pgno, &old) == committed {
            file.write_all_at(&old, pgno.offset(page_size))?;
        }
    }
    Ok(())
}
