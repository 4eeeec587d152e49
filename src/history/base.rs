//! The copy of a database that a generation begins with, where its first transactions were not seen.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::generation::{BASE, Generation};
use super::keeper::Keeper;
use super::meta::Base;
use super::{HistoryError, directory};
use crate::db::SnapshotReader;
use crate::ltx::page_checksum;
use crate::store::Store;
use crate::types::{Checksum, DbName, Pgno, Timestamp};

/// A copy of a database under a temporary name.
pub(super) struct Copied {
    file: tempfile::NamedTempFile,
    header: crate::db::SnapshotHeader,
    time: Timestamp,
}

/// Copies a database as it is now; `None` where it is not there any more, or has no content. Blocking, for as long as the disk
/// takes; the keeper is not held meanwhile. `room` says whether there is room for so many bytes;
/// it is given up once `stopped` is set: nothing may have the database open while the node ends.
///
/// # Errors
/// Where it cannot be read, or the copy has not the checksum of its position.
pub(super) fn copy(
    store: &Arc<Store>,
    db: &DbName,
    room: impl FnOnce(u64) -> bool,
    stopped: &AtomicBool,
) -> Result<Option<Copied>, HistoryError> {
    let Some(status) = store.status(db) else { return Ok(None) };
    if status.failure.is_some() || status.size_bytes == 0 {
        return Ok(None);
    }
    if !room(status.size_bytes) {
        let why = format!(
            "{db}: there is no room for a copy of {} bytes to begin a history with",
            status.size_bytes
        );
        return Err(HistoryError::NotFound(why));
    }
    let time = Timestamp::now();
    let mut snapshot = store.snapshot(db)?;
    let scratch = store.layout().tmp();
    let file = tempfile::Builder::new().prefix("history-").tempfile_in(&scratch);
    let file = file.map_err(HistoryError::io("writing into", &scratch))?;
    write(&mut snapshot, file.as_file(), db, stopped)?;
    file.as_file().sync_data().map_err(HistoryError::io("writing", file.path()))?;
    Ok(Some(Copied { header: snapshot.header(), file, time }))
}

fn write(
    snapshot: &mut SnapshotReader,
    file: &File,
    db: &DbName,
    stopped: &AtomicBool,
) -> Result<(), HistoryError> {
    let header = snapshot.header();
    let mut page = vec![0; header.page_size.len()];
    let mut out = BufWriter::with_capacity(1 << 18, file);
    let (lock_page, mut computed) = (Pgno::lock_page(header.page_size), Checksum::EMPTY);
    for pgno in (1..=header.commit.get()).filter_map(Pgno::new) {
        if stopped.load(Ordering::Relaxed) {
            return Err(HistoryError::NotFound(format!("{db}: the node ends before its copy is complete")));
        }
        if pgno == lock_page {
            page.fill(0);
        } else {
            snapshot.read_page(pgno, &mut page).map_err(crate::store::StoreError::from)?;
            computed = computed ^ page_checksum(pgno, &page);
        }
        let failed = |source| HistoryError::Io { what: format!("copying {db} for its history"), source };
        out.write_all(&page).map_err(failed)?;
    }
    out.flush()
        .map_err(|source| HistoryError::Io { what: format!("copying {db} for its history"), source })?;
    if computed != header.pos.checksum {
        return Err(HistoryError::Corrupt(format!("the pages of {db} are not those of {}", header.pos)));
    }
    Ok(())
}

impl Keeper {
    /// Begins a generation with a copy, and brings it up to the log.
    ///
    /// # Errors
    /// Where its files cannot be put in place.
    pub fn begin_with(&mut self, db: &DbName, copied: Copied) -> Result<(), HistoryError> {
        let Copied { file, header, time } = copied;
        if self.current(db).is_some() || !self.needs_base.contains(db) {
            return Ok(());
        }
        let dir = directory::generation(&self.root, db, header.index);
        if dir.exists() {
            // One that begins with the same entry, and has ended.
            return Err(HistoryError::NotFound(format!("{db} has not changed since its history ended")));
        }
        std::fs::create_dir_all(&dir).map_err(HistoryError::io("making", &dir))?;
        let path = dir.join(BASE);
        file.persist(&path).map_err(|error| HistoryError::io("writing", &path)(error.error))?;
        let base = Base { pos: header.pos, pages: header.commit, time };
        let bytes = header.commit.bytes(header.page_size);
        let generation = Generation::begin(dir, header.page_size, base, bytes)?;
        self.databases.entry(db.clone()).or_default().push(generation);
        self.needs_base.remove(db);
        self.replay(db, header.index.next())
    }
}
