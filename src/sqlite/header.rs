//! The first 100 bytes of a database file.
//!
//! Source: SQLite file format, section 1.3; `btree.c`, lockBtree().

use crate::types::{InvalidPageSize, JournalMode, PageCount, PageSize};

/// Size of the database header in bytes.
pub const DATABASE_HEADER_SIZE: usize = 100;

/// The 16 bytes every SQLite database begins with.
pub const MAGIC: &[u8; 16] = b"SQLite format 3\0";

const WRITE_VERSION: usize = 18;
const READ_VERSION: usize = 19;
const VERSION_ROLLBACK: u8 = 1;
const VERSION_WAL: u8 = 2;
const USABLE_MIN: u32 = 480;

/// The fields of the database header that replication needs.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 16 | [`MAGIC`] |
/// | 16 | 2 | page size; 1 means 65536 |
/// | 18 | 1 | write version: 1 rollback journal, 2 WAL |
/// | 19 | 1 | read version: the same |
/// | 20 | 1 | bytes reserved at the end of each page |
/// | 21 | 3 | 64, 32, 32 |
/// | 24 | 4 | change counter |
/// | 28 | 4 | size in pages |
/// | 40 | 4 | schema cookie |
/// | 92 | 4 | change counter for which the size in pages holds |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DatabaseHeader {
    /// Size of a page.
    pub page_size: PageSize,
    /// How the database protects a transaction.
    pub mode: JournalMode,
    /// Bytes left free at the end of each page.
    pub reserved_bytes: u8,
    /// Counts the transactions of rollback mode; wraps.
    pub change_counter: u32,
    /// Size of the database in pages as stored; see [`DatabaseHeader::trusted_page_count`].
    pub page_count: u32,
    /// Changes whenever the schema does.
    pub schema_cookie: u32,
    /// The change counter at which `page_count` was written.
    pub version_valid_for: u32,
}

/// Bytes that are not the header of a database SQLite would open.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// There are less than 100 bytes.
    #[error("database header is cut short: {0} of 100 bytes")]
    CutShort(usize),
    /// The file is not a SQLite database (or an encrypted one).
    #[error("database header does not begin with \"SQLite format 3\": not a SQLite database")]
    Magic,
    /// The page size is not one of SQLite's.
    #[error("database header: {0}")]
    PageSize(#[from] InvalidPageSize),
    /// The file needs a newer SQLite than there is.
    #[error("database header: read version {0} is not known (1 is rollback journal, 2 is WAL)")]
    ReadVersion(u8),
    /// Fields with a fixed value have another one.
    #[error("database header: bytes 20 to 23 ({0:02x?}) are not those of a SQLite database")]
    Layout([u8; 4]),
}

/// Whether the bytes begin as every SQLite database does.
pub fn is_magic(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// The one page of a database without a schema, in a rollback journal mode: for SQLite the same as a file of no bytes, but
/// that the page size is chosen. As in a file of no bytes, the first schema chooses the text encoding.
///
/// Source: `btree.c`, newDatabase() and zeroPage().
pub fn new_database(page_size: PageSize) -> Vec<u8> {
    const LEAF_OF_A_TABLE: u8 = 0x0d;
    let mut page = vec![0; page_size.len()];
    page[..16].copy_from_slice(MAGIC);
    // Both fields hold 65536 as what is left of it in 16 bits, the first one moved: 1, and 0.
    let low = page_size.get() as u16;
    page[16..18].copy_from_slice(&if low == 0 { 1_u16 } else { low }.to_be_bytes());
    page[18..24].copy_from_slice(&[VERSION_ROLLBACK, VERSION_ROLLBACK, 0, 64, 32, 32]);
    page[28..32].copy_from_slice(&1_u32.to_be_bytes());
    page[DATABASE_HEADER_SIZE] = LEAF_OF_A_TABLE;
    page[105..107].copy_from_slice(&low.to_be_bytes());
    page
}

/// Writes the journal mode into the first page of a database.
///
/// Touches bytes 18 and 19 and nothing else; a slice too short to hold them is left alone.
pub fn set_mode(page1: &mut [u8], mode: JournalMode) {
    let version = match mode {
        JournalMode::Wal => VERSION_WAL,
        JournalMode::Rollback => VERSION_ROLLBACK,
    };
    if let Some(versions) = page1.get_mut(WRITE_VERSION..=READ_VERSION) {
        versions.fill(version);
    }
}

impl DatabaseHeader {
    /// Reads the header from the first bytes of a database.
    ///
    /// # Errors
    /// Where there are less than 100 bytes or SQLite would call the file "not a database".
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let header = bytes.get(..DATABASE_HEADER_SIZE).ok_or(HeaderError::CutShort(bytes.len()))?;
        if !is_magic(header) {
            return Err(HeaderError::Magic);
        }
        let page_size = match u16::from_be_bytes([header[16], header[17]]) {
            1 => PageSize::MAX,
            bytes => PageSize::new(u32::from(bytes))?,
        };
        let mode = match header[READ_VERSION] {
            0 | VERSION_ROLLBACK => JournalMode::Rollback,
            VERSION_WAL => JournalMode::Wal,
            unknown => return Err(HeaderError::ReadVersion(unknown)),
        };
        let layout = [header[20], header[21], header[22], header[23]];
        if layout[1..] != [64, 32, 32] || page_size.get() - u32::from(layout[0]) < USABLE_MIN {
            return Err(HeaderError::Layout(layout));
        }
        Ok(Self {
            page_size,
            mode,
            reserved_bytes: layout[0],
            change_counter: be32(header, 24),
            page_count: be32(header, 28),
            schema_cookie: be32(header, 40),
            version_valid_for: be32(header, 92),
        })
    }

    /// The size in the header, or `None` where a writer older than SQLite 3.7.0 left it stale and the
    /// size of the file counts instead.
    pub fn trusted_page_count(&self) -> Option<PageCount> {
        let trusted = self.page_count != 0 && self.change_counter == self.version_valid_for;
        trusted.then(|| PageCount::new(self.page_count))
    }
}

/// The big-endian number at `offset`; the caller has checked that the bytes are there.
pub(super) fn be32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes([bytes[offset], bytes[offset + 1], bytes[offset + 2], bytes[offset + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> [u8; 100] {
        let mut header = [0u8; 100];
        header[..16].copy_from_slice(MAGIC);
        header[16..18].copy_from_slice(&4096u16.to_be_bytes());
        header[18..24].copy_from_slice(&[2, 2, 8, 64, 32, 32]);
        header[24..28].copy_from_slice(&7u32.to_be_bytes());
        header[28..32].copy_from_slice(&3u32.to_be_bytes());
        header[92..96].copy_from_slice(&7u32.to_be_bytes());
        header
    }

    #[test]
    fn fields_are_read_from_their_offsets() {
        let header = DatabaseHeader::parse(&sample()).unwrap();
        assert_eq!(header.page_size, PageSize::DEFAULT);
        assert_eq!(header.mode, JournalMode::Wal);
        assert_eq!((header.change_counter, header.page_count, header.version_valid_for), (7, 3, 7));
        assert_eq!(header.reserved_bytes, 8);
        assert_eq!(header.trusted_page_count(), Some(PageCount::new(3)));
    }

    #[test]
    fn page_size_one_means_65536() {
        let mut bytes = sample();
        bytes[16..18].copy_from_slice(&1u16.to_be_bytes());
        assert_eq!(DatabaseHeader::parse(&bytes).unwrap().page_size, PageSize::MAX);
    }

    #[test]
    fn a_stale_page_count_is_not_trusted() {
        let mut bytes = sample();
        bytes[95] = 6;
        assert_eq!(DatabaseHeader::parse(&bytes).unwrap().trusted_page_count(), None);
    }

    #[test]
    fn the_mode_is_set_in_both_versions_and_read_back() {
        let mut bytes = sample();
        for mode in [JournalMode::Rollback, JournalMode::Wal] {
            set_mode(&mut bytes, mode);
            assert_eq!(bytes[18], bytes[19]);
            assert_eq!(DatabaseHeader::parse(&bytes).unwrap().mode, mode);
        }
        set_mode(&mut bytes[..10], JournalMode::Wal);
    }

    #[test]
    fn what_sqlite_would_not_open_is_refused() {
        assert_eq!(DatabaseHeader::parse(&sample()[..99]), Err(HeaderError::CutShort(99)));
        assert_eq!(DatabaseHeader::parse(&[0; 100]), Err(HeaderError::Magic));
        let with = |offset: usize, value: u8| {
            let mut bytes = sample();
            bytes[offset] = value;
            DatabaseHeader::parse(&bytes)
        };
        assert_eq!(with(17, 3), Err(HeaderError::PageSize(InvalidPageSize(4099))));
        assert_eq!(with(19, 3), Err(HeaderError::ReadVersion(3)));
        assert_eq!(with(21, 63), Err(HeaderError::Layout([8, 63, 32, 32])));
        let mut small = sample();
        small[16..18].copy_from_slice(&512u16.to_be_bytes());
        small[20] = 33;
        assert_eq!(DatabaseHeader::parse(&small), Err(HeaderError::Layout([33, 64, 32, 32])));
    }
}
