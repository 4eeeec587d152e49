//! Copies of databases: snapshots out, resync in.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use super::log_positions::LogPosition;
use super::{Store, StoreError};
use crate::db::{Database, DbError, SnapshotHeader, SnapshotReader};
use crate::io::read_or_zero;
use crate::ltx::{self, BlobRef, Body, ChangeSet, Compression, Encoder};
use crate::types::{Checksum, DbName, LogIndex, PageCount, Pgno, Txid, TxidRange};

impl Store {
    /// A consistent view of one database. Blocking.
    ///
    /// # Errors
    /// Where the database does not exist, is not served, or cannot be read.
    pub fn snapshot(&self, name: &DbName) -> Result<SnapshotReader, StoreError> {
        let database = self.get(name).ok_or_else(|| StoreError::NotFound(name.to_string()))?;
        database.end_redo_where_whole()?;
        Ok(database.snapshot()?)
    }

    /// Checksums of the pages this node has, in page order (the lock page's is that of nothing); empty where there
    /// is no such database.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn page_checksums(&self, name: &DbName) -> Result<Vec<Checksum>, StoreError> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(database) => Ok(database.page_checksums()?),
        }
    }

    /// Brings a database to `target` with the pages that differ from [`Store::page_checksums`], as one
    /// transaction for those who have it open. `next_page` gives pages in ascending order. Blocking.
    ///
    /// # Errors
    /// What `next_page` says; `Corrupt` where the pages do not lead to the target's checksum.
    pub fn install(
        &self,
        name: &DbName,
        target: SnapshotHeader,
        next_page: &mut dyn FnMut() -> Result<Option<(Pgno, Vec<u8>)>, StoreError>,
    ) -> Result<(), StoreError> {
        if target.pos.txid.is_none() {
            return Ok(());
        }
        let (change, spool) = self.spool_pages(name, target, next_page)?;
        let database = self.get_or_make(name)?;
        database.install_pages(change, spool, target.index)?;
        if let Some(positions) = &self.positions {
            positions.fetched(name, LogPosition { index: target.index, pos: target.pos });
        }
        Ok(())
    }

    /// The pages that differ between the file of a database and what `other` has, ready to be installed there.
    pub(super) fn content_of(
        &self,
        file: &Path,
        header: SnapshotHeader,
        other: &Database,
    ) -> Result<(ChangeSet, File), StoreError> {
        let name = other.name();
        let failed = |source| StoreError::Io { what: format!("reading what is renamed to {name}"), source };
        let known = other.page_checksums()?;
        let file = File::open(file).map_err(failed)?;
        let mut numbers = header.commit.pages(header.page_size);
        let mut page = vec![0; header.page_size.len()];
        self.spool_pages(name, header, &mut || {
            for pgno in numbers.by_ref() {
                read_or_zero(&file, pgno.offset(header.page_size), &mut page).map_err(failed)?;
                let same = known.get(pgno.get() as usize - 1) == Some(&ltx::page_checksum(pgno, &page));
                // Page 1 always: a transaction changes something.
                if !same || pgno == Pgno::FIRST {
                    return Ok(Some((pgno, page.clone())));
                }
            }
            Ok(None)
        })
    }

    /// Pages as an LTX file that leads to `target`, whatever the database has now.
    fn spool_pages(
        &self,
        name: &DbName,
        target: SnapshotHeader,
        next_page: &mut dyn FnMut() -> Result<Option<(Pgno, Vec<u8>)>, StoreError>,
    ) -> Result<(ChangeSet, File), StoreError> {
        let txid = target.pos.txid.unwrap_or(Txid::FIRST);
        let failed = |source| StoreError::Io { what: format!("receiving database {name}"), source };
        let spool = tempfile::tempfile_in(self.layout.tmp()).map_err(failed)?;
        let header = ltx::Header {
            // The pages that differ are no change set anybody else could apply.
            no_checksum: true,
            page_size: target.page_size,
            commit: target.commit,
            range: TxidRange::single(txid.max(second())),
            timestamp_ms: 0,
            pre_apply: None,
            wal_offset: 0,
            wal_size_bytes: 0,
            wal_salt: (0, 0),
            node_id: self.node(),
        };
        let invalid =
            |error: ltx::LtxError| StoreError::Invalid(format!("receiving database {name}: {error}"));
        let writer = BufWriter::with_capacity(1 << 20, spool);
        let mut encoder = Encoder::new(writer, header, Compression::Stored).map_err(invalid)?;
        while let Some((pgno, page)) = next_page()? {
            encoder.page(pgno, &page).map_err(invalid)?;
        }
        let finished = encoder.finish(None).map_err(invalid)?;
        let spool = finished.writer.into_inner().map_err(|error| failed(error.into_error()))?;
        let change = ChangeSet {
            db: name.clone(),
            range: TxidRange::single(txid),
            pre: Checksum::EMPTY,
            post: target.pos.checksum,
            page_size: target.page_size,
            commit: target.commit,
            body: Body::Blob(BlobRef { digest: finished.file_checksum, size_bytes: finished.size_bytes }),
        };
        Ok((change, spool))
    }

    /// Removes databases that are not in `keep`, as a snapshot of the whole set demands. Blocking.
    ///
    /// # Errors
    /// Where files cannot be removed.
    pub fn retain(&self, keep: &[DbName], index: LogIndex) -> Result<(), StoreError> {
        if let Some(positions) = &self.positions {
            positions.retain(keep, index);
        }
        for database in self.all() {
            let outdated = database.index() < index && database.pos().txid.is_some();
            if outdated && !keep.contains(database.name()) {
                // The log brings entries of it again, up to the one that ended it.
                self.note_ended(&[database.name()], index)?;
                self.forget(database.name())?;
            }
        }
        Ok(())
    }

    /// Whether applying to the database may wait for its applications, so that others must not queue behind it.
    pub fn apply_may_wait(&self, name: &DbName) -> bool {
        self.get(name).is_some_and(|database| database.apply_may_wait())
    }
}

fn second() -> Txid {
    Txid::FIRST.checked_add(1).expect("1 + 1 fits")
}

impl Database {
    /// Checksums of the committed pages in order; of a database that failed, or whose log is not redone yet after a
    /// crash, they are computed anew from what is really there.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn page_checksums(&self) -> Result<Vec<Checksum>, DbError> {
        if self.failure().is_some() || self.is_redoing() {
            // A power cut may have kept a checksum and lost its page.
            self.rescan()?;
        }
        let (_, pages) = self.size();
        if pages == PageCount::ZERO {
            return Ok(Vec::new());
        }
        Ok(self.checksums_upto(pages)?.into_iter().map(|sum| sum.unwrap_or(Checksum::EMPTY)).collect())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::db::FileKind;
    use crate::io::blobs::BlobStore;
    use crate::ltx::{Header, page_checksum};
    use crate::store::{Change, ChangeKind, Layout, Origin, StoreOptions};
    use crate::types::{Access, NodeId, PageSize, Pos};

    const PAGE_BYTES: usize = 512;

    pub(in crate::store) fn open(dir: &Path) -> Arc<Store> {
        let layout = Layout::new(dir.to_path_buf());
        let blobs = Arc::new(BlobStore::open(layout.blobs()).unwrap());
        Store::open(StoreOptions {
            layout,
            node: NodeId::new(1),
            access: Access::Fenced,
            blobs,
            held_files: Default::default(),
        })
        .unwrap()
    }

    /// Pages filled with one byte each, as the change that leads from `pos` to `pages` pages of `byte`.
    pub(in crate::store) fn fill(db: &DbName, pos: Pos, pages: u32, byte: u8) -> Change {
        let page_size = PageSize::new(PAGE_BYTES as u32).unwrap();
        let range = TxidRange::single(pos.next_txid());
        let header = Header::new(page_size, PageCount::new(pages), range, pos.txid.map(|_| pos.checksum));
        let mut encoder = Encoder::new(Vec::new(), header, Compression::Stored).unwrap();
        let mut post = Checksum::EMPTY;
        for pgno in (1..=pages).filter_map(Pgno::new) {
            let page = [byte; PAGE_BYTES];
            post = post ^ page_checksum(pgno, &page);
            encoder.page(pgno, &page).unwrap();
        }
        let body = Body::Inline(Bytes::from(encoder.finish(Some(post)).unwrap().writer));
        let commit = PageCount::new(pages);
        let set = ChangeSet { db: db.clone(), range, pre: pos.checksum, post, page_size, commit, body };
        let origin = Origin { node: NodeId::new(2), run: 1, seq: 1 };
        Change { origin, timestamp_ms: 0, kind: ChangeKind::Commit(vec![set]) }
    }

    #[test]
    fn what_a_node_was_ahead_is_kept_where_an_older_copy_takes_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let db = DbName::new("dir/app.db").unwrap();
        let store = open(dir.path());
        let at = || store.get(&db).map_or(Pos::ZERO, |database| database.pos());
        store.apply(LogIndex::new(1), &fill(&db, Pos::ZERO, 2, 1)).unwrap();
        let older = at();
        store.apply(LogIndex::new(2), &fill(&db, older, 3, 2)).unwrap();
        let discarded = || std::fs::read_dir(store.layout().discarded()).into_iter().flatten().flatten();
        let page_size = PageSize::new(PAGE_BYTES as u32).unwrap();
        let install = |pos, index, pages: u32, byte| {
            let header = SnapshotHeader { pos, index, page_size, commit: PageCount::new(pages) };
            let mut numbers = (1..=pages).filter_map(Pgno::new);
            let mut next = || Ok(numbers.next().map(|pgno| (pgno, vec![byte; PAGE_BYTES])));
            store.install(&db, header, &mut next)
        };
        // A newer copy takes nothing away.
        let there = (1..=3).filter_map(Pgno::new);
        let sum = there.fold(Checksum::EMPTY, |sum, pgno| sum ^ page_checksum(pgno, &[3; PAGE_BYTES]));
        install(Pos::new(at().next_txid(), sum), LogIndex::new(3), 3, 3).unwrap();
        assert_eq!(discarded().count(), 0);
        install(older, LogIndex::new(4), 2, 1).unwrap();
        assert_eq!(at(), older);
        let kept: Vec<_> = discarded().collect();
        let [kept] = kept.as_slice() else { panic!("{kept:?}") };
        assert!(kept.file_name().to_str().unwrap().starts_with("dir%2Fapp.db-"), "{kept:?}");
        let file = std::fs::File::open(kept.path()).unwrap();
        let mut decoder = crate::ltx::Decoder::new(std::io::BufReader::new(file)).unwrap();
        let mut page = vec![0; PAGE_BYTES];
        for number in 1..=3 {
            assert_eq!(decoder.next_page(&mut page).unwrap(), Pgno::new(number));
            assert_eq!(page, [3; PAGE_BYTES]);
        }
    }

    #[test]
    fn before_its_log_is_redone_a_database_counts_the_pages_it_really_has() {
        let dir = tempfile::tempdir().unwrap();
        let db = DbName::new("app.db").unwrap();
        let store = open(dir.path());
        store.apply(LogIndex::new(1), &fill(&db, Pos::ZERO, 2, 1)).unwrap();
        store.applied(LogIndex::new(1));
        store.checkpoint().unwrap();
        let pos = store.get(&db).unwrap().pos();
        store.apply(LogIndex::new(2), &fill(&db, pos, 2, 2)).unwrap();
        // A power cut: the new checksum of page 2 is on disk, the page is not.
        let file = store.layout().database(&db).path(FileKind::Database);
        let file = std::fs::File::options().write(true).open(file).unwrap();
        file.write_all_at(&[1; PAGE_BYTES], PAGE_BYTES as u64).unwrap();
        drop(store);
        let store = open(dir.path());
        store.begin_replay();
        let there = |number: u32, byte| page_checksum(Pgno::new(number).unwrap(), &[byte; PAGE_BYTES]);
        assert_eq!(store.page_checksums(&db).unwrap(), [there(1, 2), there(2, 1)]);
        assert_eq!(store.get(&db).unwrap().pos(), pos, "redo starts from where it was durable");
    }

    #[test]
    fn before_its_log_is_redone_a_database_is_copied_only_where_it_has_nothing_of_later_entries() {
        let dir = tempfile::tempdir().unwrap();
        let db = DbName::new("app.db").unwrap();
        let store = open(dir.path());
        store.apply(LogIndex::new(1), &fill(&db, Pos::ZERO, 1, 1)).unwrap();
        store.applied(LogIndex::new(1));
        store.checkpoint().unwrap();
        let pos = store.get(&db).unwrap().pos();
        drop(store);
        // Entry 2 may be in the log, and has not been applied.
        let store = open(dir.path());
        store.begin_replay();
        assert_eq!(store.snapshot(&db).unwrap().header().pos, pos);
        store.apply(LogIndex::new(2), &fill(&db, pos, 1, 2)).unwrap();
        drop(store);
        // Here it has been, and is not in the marker.
        let store = open(dir.path());
        store.begin_replay();
        assert_eq!(store.get(&db).unwrap().pos(), pos);
        let refused = store.snapshot(&db).err().expect("its pages are not those of its position").to_string();
        assert!(refused.contains("catching up"), "{refused}");
        store.apply(LogIndex::new(2), &fill(&db, pos, 1, 2)).unwrap();
        store.end_replay();
        assert_eq!(store.snapshot(&db).unwrap().header().index, LogIndex::new(2));
    }
}
