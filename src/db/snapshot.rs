use super::DbError;
use crate::types::{Checksum, LogIndex, PageCount, PageSize, Pgno, Pos};

/// What a snapshot is a snapshot of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotHeader {
    /// The position all pages belong to.
    pub pos: Pos,
    /// The log index the position was reached at: entries above it come after the snapshot.
    pub index: LogIndex,
    /// Page size in bytes.
    pub page_size: PageSize,
    /// Size in pages.
    pub commit: PageCount,
}

/// A consistent view of one database that stays as it is while writers go on.
pub struct SnapshotReader {}

impl SnapshotReader {
    /// What it is a snapshot of.
    pub fn header(&self) -> SnapshotHeader {
        todo!()
    }

    /// The checksum of one page.
    pub fn page_checksum(&mut self, _pgno: Pgno) -> Result<Checksum, DbError> {
        todo!()
    }

    /// Reads one page into `page`, whose length is the page size.
    pub fn read_page(&mut self, _pgno: Pgno, _page: &mut [u8]) -> Result<(), DbError> {
        todo!()
    }
}
