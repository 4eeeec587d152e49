use std::io::{self, Read};

use super::ListedDatabase;
use crate::db::{DbError, SnapshotHeader, SnapshotReader};
use crate::ltx::BlobRef;
use crate::store::{NameList, NodeFacts, Store, StoreError};
use crate::types::{Checksum, DbName, LogIndex, Pgno};

/// What copies are taken from; the store of any node. Blocking, callable from any thread.
pub trait SnapshotSource: Send + Sync + 'static {
    /// The databases here, by name.
    fn list(&self) -> Vec<ListedDatabase>;

    /// What the databases take together, in bytes.
    fn databases_bytes(&self) -> u64 {
        u64::MAX
    }

    /// Attributes, directories and databases without content.
    fn names(&self) -> NameList {
        NameList::default()
    }

    /// What this node says of itself; `None` until it is known. Blocking.
    fn facts(&self) -> Option<NodeFacts> {
        None
    }

    /// Last entry applied: every database is at least as new.
    fn applied_index(&self) -> LogIndex;

    /// A consistent view of one database, used on the thread it is made on.
    fn snapshot(&self, name: &DbName) -> Result<Box<dyn PageSource>, StoreError>;

    /// Opens a large change set.
    fn open_blob(&self, blob: BlobRef) -> io::Result<Box<dyn Read + Send>>;
}

/// A consistent view of one database.
pub trait PageSource {
    /// What it is a view of.
    fn header(&self) -> SnapshotHeader;

    /// The checksum of one page.
    fn page_checksum(&mut self, pgno: Pgno) -> Result<Checksum, DbError>;

    /// Reads one page into `page`, whose length is the page size.
    fn read_page(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<(), DbError>;
}

impl PageSource for SnapshotReader {
    fn header(&self) -> SnapshotHeader {
        SnapshotReader::header(self)
    }

    fn page_checksum(&mut self, pgno: Pgno) -> Result<Checksum, DbError> {
        SnapshotReader::page_checksum(self, pgno)
    }

    fn read_page(&mut self, pgno: Pgno, page: &mut [u8]) -> Result<(), DbError> {
        SnapshotReader::read_page(self, pgno, page)
    }
}

impl SnapshotSource for Store {
    fn facts(&self) -> Option<NodeFacts> {
        Store::facts(self)
    }

    fn databases_bytes(&self) -> u64 {
        Store::list(self).iter().map(|database| database.size_bytes).sum()
    }

    fn list(&self) -> Vec<ListedDatabase> {
        Store::list(self)
            .into_iter()
            .map(|db| ListedDatabase { name: db.name, pos: db.pos, size_bytes: db.size_bytes })
            .collect()
    }

    fn names(&self) -> NameList {
        self.name_list()
    }

    fn applied_index(&self) -> LogIndex {
        Store::applied_index(self)
    }

    fn snapshot(&self, name: &DbName) -> Result<Box<dyn PageSource>, StoreError> {
        Ok(Box::new(Store::snapshot(self, name)?))
    }

    fn open_blob(&self, blob: BlobRef) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(self.blobs().open_blob((blob.digest, blob.size_bytes))?))
    }
}
