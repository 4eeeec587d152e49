//! Start of a database after a clean end or a crash: the file at its marker, ready for redo.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::cow::CowSnapshots;
use super::database::{Database, State};
use super::opened::{Opened, Service, WalClients};
use super::page_checksums::PageChecksums;
use super::shared::Shared;
use super::{DbError, DbFiles, FileKind, in_place};
use crate::io::fault;
use crate::io::read_or_zero;
use crate::sqlite::header::DatabaseHeader;
use crate::types::{DbName, JournalMode, PageCount};

/// Name, beside the database, of a log that a crash left behind.
const TAIL: &str = "tail-wal";

/// The same of a log that was written after the last commit that was captured. Redo writes page checksums anew, so another
/// crash before that log is captured would leave nothing else to tell it by.
const NEWEST_TAIL: &str = "newest-tail-wal";

impl Database {
    /// Opens the database in `files`. What applications had not finished is gone; what the WAL holds is set aside.
    /// Entries after the marker are then to be applied again.
    ///
    /// # Errors
    /// Where a file cannot be read or written, or is damaged; the text says which and what to do.
    pub fn recover(name: DbName, files: DbFiles, shared: Arc<Shared>) -> Result<Arc<Self>, DbError> {
        let fail = |what: &str, source| DbError::Io { db: name.clone(), what: what.to_owned(), source };
        fault::point("recover").map_err(|source| fail("recovering", source))?;
        let checksums =
            PageChecksums::open(&files.pages()).map_err(|source| fail("reading page checksums", source))?;
        remove(&files, FileKind::Shm).map_err(|source| fail("removing the old wal-index", source))?;
        let marker = checksums.marker();
        in_place::play_back(&files, &checksums, marker.page_size, marker.pages)
            .map_err(|source| fail("taking back an unfinished transaction", source))?;
        // What it would roll back is not in the database file by now.
        fault::point("recover_journal_remove")
            .and_then(|()| remove(&files, FileKind::Journal))
            .map_err(|source| fail("removing an old journal", source))?;
        let tail = set_aside(&files, shared.tails_count(), shared.nothing_unsynced_lost())
            .map_err(|source| fail("setting the WAL aside", source))?;
        let tail_is_newest = tail.as_ref().is_some_and(|tail| tail.ends_with(NEWEST_TAIL));
        let mode = mode_of(&files).map_err(|source| fail("reading the database header", source))?;
        let dirty_since = (marker.index < checksums.pending()).then(|| marker.index.next());
        let state = State {
            handles: 0,
            snapshots: 0,
            mode: mode.filter(|_| marker.pages != PageCount::ZERO),
            page_size: marker.page_size,
            pages: marker.pages,
            pos: marker.pos,
            index: marker.index,
            checksums,
            dirty_since,
            wal_clients: WalClients::None,
            open: Opened::Cold,
            captured: marker.wal,
            in_flight: None,
            queued: Vec::new(),
            undecided: None,
            restoring: false,
            exclusive: false,
            cow: CowSnapshots::default(),
            tail,
            tail_is_newest,
            replaying: false,
            looked_whole: None,
            outlasting: false,
            service: Service::Serving,
        };
        Ok(Self::new(name, files, shared, state))
    }
}

/// Whether the WAL was written after the last commit that was captured: each capture writes page checksums.
fn is_newer_than_captured(files: &DbFiles) -> bool {
    let written = |path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    written(files.path(FileKind::Wal))
        .zip(written(files.pages()))
        .is_some_and(|(wal, captured)| wal >= captured)
}

fn remove(files: &DbFiles, kind: FileKind) -> io::Result<()> {
    match std::fs::remove_file(files.path(kind)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Moves the WAL of an earlier run out of the way. One of a node that was not primary (`counts` is false) holds nothing
/// that the log does not bring again. Where `nothing_unsynced_lost`, the times of files tell which was written last.
fn set_aside(files: &DbFiles, counts: bool, nothing_unsynced_lost: bool) -> io::Result<Option<PathBuf>> {
    let (wal, tails) = (files.path(FileKind::Wal), [NEWEST_TAIL, TAIL].map(|name| files.dir().join(name)));
    if !counts {
        remove(files, FileKind::Wal)?;
        for tail in tails {
            match std::fs::remove_file(tail) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        return Ok(None);
    }
    let length = std::fs::metadata(&wal).map_or(0, |metadata| metadata.len());
    if let Some(tail) = tails.iter().find(|tail| tail.exists()) {
        // It is the older one: nothing was served since, so the log beside it is empty.
        remove(files, FileKind::Wal)?;
        return Ok(Some(tail.clone()));
    }
    if length == 0 {
        remove(files, FileKind::Wal)?;
        return Ok(None);
    }
    let [newest, older] = tails;
    let tail = if nothing_unsynced_lost && is_newer_than_captured(files) {
        // What its name says must hold after a power failure, too: no part of it may be missing then.
        File::open(&wal)?.sync_data()?;
        newest
    } else {
        older
    };
    crate::io::durable::rename(&wal, &tail)?;
    Ok(Some(tail))
}

/// The committed mode; `None` for an empty file.
fn mode_of(files: &DbFiles) -> io::Result<Option<JournalMode>> {
    let mut head = [0; 100];
    match File::open(files.path(FileKind::Database)) {
        Ok(file) => read_or_zero(&file, 0, &mut head)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    Ok(DatabaseHeader::parse(&head).ok().map(|header| header.mode))
}
