//! Writes that reached the file of a WAL database past SQLite and past the daemon: a program mapped the file into its memory,
//! or opened it as SQLite does, and the kernel passed its writes through.
//!
//! They are found when the file is closed by a process that never opened `-wal` or `-shm`, as each connection does before it
//! writes, and the file has changed since its open. Then every page that the log does not hold newer is compared with its
//! checksum, and what differs becomes a transaction. Where that would be no database, the copy counts as damaged.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch::{Batch, Frame};
use super::database::{Database, State};
use super::staged_file::StagedDatabase;
use super::{DbError, Done, FileKind};
use crate::io::{fault, read_or_zero};
use crate::ltx;
use crate::sqlite::header::DATABASE_HEADER_SIZE;
use crate::sqlite::wal_index::HeaderRead;
use crate::types::{Access, JournalMode, PageCount, Pgno};

/// How long the writer at work may take.
const WRITER_WAIT_MAX: Duration = Duration::from_secs(5);

impl Database {
    /// The process `process` opens `-wal` or `-shm`, as SQLite does; 0 stands for those of other process namespaces.
    pub fn log_opened_by(&self, process: u32) {
        self.log_users.add(process);
    }

    /// Whether that process has opened `-wal` or `-shm`: what it writes to the database file is a checkpoint.
    pub fn uses_log(&self, process: u32) -> bool {
        self.log_users.has(process)
    }

    /// A process that does not use the log closes the database file, which has changed since it opened it. Captures what it
    /// wrote; on the primary only. Answers when that is durable.
    ///
    /// `done` hears `Corrupt` where the file holds what is not history and cannot become it.
    pub fn capture_unseen_writes(self: &Arc<Self>, done: Done) {
        if self.access() != Access::Write {
            return done(Ok(()));
        }
        self.off_thread(done, |database, done| {
            // The writer at work may be waiting for the process that closes.
            if let Err(error) = database.hold_writers_until(Instant::now() + WRITER_WAIT_MAX) {
                tracing::warn!(%error, "not looking for writes past SQLite now");
                return done(Ok(()));
            }
            let mut found = false;
            let captured = database.commit_own(|state| {
                let batch = database.unseen_writes(state);
                found = !matches!(batch, Ok(None));
                batch
            });
            done(match captured {
                Err(error) if found && !matches!(error, DbError::Corrupt { .. }) => {
                    Err(database.corrupt(format!("its file was changed past SQLite, and {error}")))
                }
                captured => captured,
            });
        });
    }

    /// What differs in the file from what is committed, where nothing newer will replace it. Writers are kept out, and what
    /// they published is captured.
    fn unseen_writes(&self, state: &mut State) -> Result<Option<Batch>, DbError> {
        let fail = |source| self.io_error("looking for writes past SQLite", source);
        fault::point("capture_unseen_writes").map_err(fail)?;
        let settled = state.mode == Some(JournalMode::Wal)
            && state.pages != PageCount::ZERO
            && state.tail.is_none()
            && state.undecided.is_none()
            && state.service.failure().is_none()
            && !state.redoing()
            && !state.open.is_left_behind();
        if !settled {
            return Ok(None);
        }
        let Some(newer) = Newer::of(state).map_err(fail)? else { return Ok(None) };
        let file = File::open(self.files().path(FileKind::Database)).map_err(fail)?;
        let pages = if newer.decides_the_size { state.pages } else { self.size_in(&file, state)? };
        let frame = Frame::on(self.name(), state, state.page_size, pages);
        let mut differing = BTreeSet::new();
        let mut page = vec![0; state.page_size.len()];
        for pgno in pages.pages(state.page_size).filter(|pgno| !newer.pages.contains(pgno)) {
            read_or_zero(&file, pgno.offset(state.page_size), &mut page).map_err(fail)?;
            if state.checksums.get(pgno).map_err(fail)? != Some(ltx::page_checksum(pgno, &page)) {
                differing.insert(pgno);
            }
        }
        if differing.is_empty() && pages == state.pages {
            return Ok(None);
        }
        tracing::warn!(db = %self.name(), pages = differing.len(), "a program wrote to the database file past SQLite; capturing what it wrote");
        differing.insert(Pgno::FIRST);
        differing.extend(frame.untouched_growth(&differing));
        differing.retain(|pgno| !newer.pages.contains(pgno));
        let page_size = state.page_size;
        frame
            .encode(&self.shared, &state.checksums, differing.into_iter(), |pgno, page| {
                read_or_zero(&file, pgno.offset(page_size), page)
            })
            .map(Some)
            .map_err(fail)
    }

    /// Size of the database that the file holds by now.
    fn size_in(&self, file: &File, state: &State) -> Result<PageCount, DbError> {
        let fail = |source| self.io_error("looking for writes past SQLite", source);
        let mut head = [0; DATABASE_HEADER_SIZE];
        read_or_zero(file, 0, &mut head).map_err(fail)?;
        let size = file.metadata().map_err(fail)?.len();
        let broken = |why: String| self.corrupt(format!("its file was changed past SQLite, and {why}"));
        let found = StagedDatabase::of(&head, size).map_err(|error| broken(error.to_string()))?;
        if found.header.page_size != state.page_size || found.header.mode != JournalMode::Wal {
            return Err(broken("has pages of another size, or is in another journal mode".into()));
        }
        Ok(found.pages)
    }
}

/// Pages that a checkpoint is still to write into the file.
struct Newer {
    pages: BTreeSet<Pgno>,
    /// There are such, so the size in the file's header may be an older one.
    decides_the_size: bool,
}

impl Newer {
    /// `None` where that cannot be told: a commit is captured and not published, or something is being taken back.
    fn of(state: &mut State) -> io::Result<Option<Self>> {
        let mut pages = BTreeSet::new();
        let Some(wal) = state.open.wal_mut() else {
            return Ok(Some(Self { pages, decides_the_size: false }));
        };
        let HeaderRead::Valid(header) = wal.index.header() else { return Ok(None) };
        let done = wal.index.backfilled();
        let unclear = wal.captured.unpublished.is_some()
            || wal.rewound.is_some()
            || wal.invalidated.is_some()
            || !wal.rewritable.is_empty()
            || header.max_frame != wal.captured_frame(&header)
            || done > header.max_frame;
        if unclear {
            return Ok(None);
        }
        for frame in done + 1..=header.max_frame {
            pages.extend(wal.index.page_of(frame)?);
        }
        Ok(Some(Self { pages, decides_the_size: done < header.max_frame }))
    }
}
