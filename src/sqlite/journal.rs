//! The rollback journal: the images pages had before a transaction.
//!
//! A journal is one or more segments, each a header that fills a sector and then its records. The writer puts
//! the record count into a segment's header when it has synced the records, before it changes the database,
//! so a count of 0 means "nothing here has been needed yet", and 0xffffffff "not synced: count by the size of
//! the file". Source: SQLite file format, section 3; `pager.c`.

use std::ffi::OsStr;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::header::be32;
use crate::types::{InvalidPageSize, PageCount, PageSize};

/// Size of the fields of a journal header in bytes; the header itself fills a sector.
pub const JOURNAL_HEADER_SIZE: usize = 28;

pub(super) const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
const COUNT_BY_FILE_SIZE: u32 = 0xffff_ffff;
const SECTOR_SIZE_MIN: u32 = 32;
const SECTOR_SIZE_MAX: u32 = 0x1_0000;
/// The longest path SQLite knows on Unix (`MAX_PATHNAME`).
const SUPER_NAME_BYTES_MAX: u32 = 512;
/// Behind a super-journal's name: its length, its checksum, the magic.
const SUPER_TAIL_SIZE: u64 = 16;

/// How many records a segment has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordCount {
    /// As many as were synced before the database was changed; 0 for none.
    Synced(u32),
    /// As many as fit into the file: the writer does not sync (`synchronous=OFF`).
    ByFileSize,
}

impl RecordCount {
    pub(super) fn of_field(field: u32) -> Self {
        if field == COUNT_BY_FILE_SIZE { Self::ByFileSize } else { Self::Synced(field) }
    }
}

/// The header at the start of a journal.
///
/// | offset | size | field, big-endian |
/// |---|---|---|
/// | 0 | 8 | magic |
/// | 8 | 4 | number of records in the segment, or 0xffffffff |
/// | 12 | 4 | nonce of the records' checksums |
/// | 16 | 4 | size of the database in pages before the transaction |
/// | 20 | 4 | sector size: the header takes this many bytes |
/// | 24 | 4 | page size; 0 from SQLite before 3.5.8 |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalHeader {
    /// Records in the first segment.
    pub records: RecordCount,
    /// What the checksums of the first segment's records start from.
    pub nonce: u32,
    /// Size of the database before the transaction.
    pub initial_size: PageCount,
    /// Sector size of the writer in bytes: a power of two from 32 to 65536.
    pub sector_size: u32,
    /// Size of the pages, `None` where the writer did not say: then it is the database's.
    pub page_size: Option<PageSize>,
}

/// Bytes that are not the header of a journal: SQLite takes the journal as empty.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum JournalError {
    /// There are less than 28 bytes.
    #[error("journal header is cut short: {0} of 28 bytes")]
    CutShort(usize),
    /// The journal is zeroed (its transaction has ended), not synced, or no journal.
    #[error("journal header does not begin with the magic of a journal")]
    Magic,
    /// The page size is not one of SQLite's.
    #[error("journal header: {0}")]
    PageSize(#[from] InvalidPageSize),
    /// The sector size is not one of SQLite's.
    #[error("journal header: sector size {0} is not a power of two from 32 to 65536")]
    SectorSize(u32),
}

/// Whether the bytes begin as the header of a journal that is in force.
pub fn is_header_magic(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// Whether writing `data` at `offset` of a journal ends its transaction as `journal_mode=PERSIST` does: by
/// zeroing the 28 bytes of the first header.
///
/// The header of a beginning transaction is no such write: it has zeros for magic and count, but a page size.
/// Source: `pager.c`, zeroJournalHdr() and writeJournalHdr().
pub fn ends_transaction(offset: u64, data: &[u8]) -> bool {
    let zeroed = |header: &[u8]| header.iter().all(|byte| *byte == 0);
    offset == 0 && data.get(..JOURNAL_HEADER_SIZE).is_some_and(zeroed)
}

impl JournalHeader {
    /// Reads the first header of a journal.
    ///
    /// # Errors
    /// Where SQLite would not play the journal back.
    pub fn parse(bytes: &[u8]) -> Result<Self, JournalError> {
        let header = bytes.get(..JOURNAL_HEADER_SIZE).ok_or(JournalError::CutShort(bytes.len()))?;
        if !is_header_magic(header) {
            return Err(JournalError::Magic);
        }
        let page_size = match be32(header, 24) {
            0 => None,
            bytes => Some(PageSize::new(bytes)?),
        };
        let sector_size = be32(header, 20);
        let in_range = (SECTOR_SIZE_MIN..=SECTOR_SIZE_MAX).contains(&sector_size);
        if !in_range || !sector_size.is_power_of_two() {
            return Err(JournalError::SectorSize(sector_size));
        }
        Ok(Self {
            records: RecordCount::of_field(be32(header, 8)),
            nonce: be32(header, 12),
            initial_size: PageCount::new(be32(header, 16)),
            sector_size,
            page_size,
        })
    }
}

/// The checksum at the end of a record: the nonce plus every 200th byte of the page, counted from its end.
///
/// Source: `pager.c`, pager_cksum().
pub fn record_checksum(nonce: u32, page: &[u8]) -> u32 {
    let mut sum = nonce;
    let mut at = page.len();
    while at > 200 {
        at -= 200;
        sum = sum.wrapping_add(u32::from(page[at]));
    }
    sum
}

/// The super-journal a journal names at its end, if it does: the journal of a transaction over several
/// databases is in force only while its super-journal exists.
///
/// | from the name's start | size | field |
/// |---|---|---|
/// | -4 | 4 | page number of the lock page |
/// | 0 | n | path |
/// | n | 4 | n |
/// | n + 4 | 4 | sum of the path's bytes, each signed |
/// | n + 8 | 8 | magic |
///
/// Source: `pager.c`, readSuperJournal() and pagerIsSuperJrnlName().
///
/// # Errors
/// Where the reader fails; a name that is damaged counts as none.
pub fn super_journal_name(journal: &mut (impl Read + Seek)) -> io::Result<Option<PathBuf>> {
    let size = journal.seek(SeekFrom::End(0))?;
    let Some(tail_at) = size.checked_sub(SUPER_TAIL_SIZE) else { return Ok(None) };
    let mut tail = [0; SUPER_TAIL_SIZE as usize];
    journal.seek(SeekFrom::Start(tail_at))?;
    journal.read_exact(&mut tail)?;
    let length = be32(&tail, 0);
    let in_range = (1..=SUPER_NAME_BYTES_MAX).contains(&length) && u64::from(length) <= tail_at;
    if !in_range || tail[8..] != MAGIC {
        return Ok(None);
    }
    let mut name = vec![0; length as usize];
    journal.seek(SeekFrom::Start(tail_at - u64::from(length)))?;
    journal.read_exact(&mut name)?;
    let sum = name.iter().fold(0u32, |sum, byte| sum.wrapping_add_signed(i32::from(byte.cast_signed())));
    name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
    let valid = sum == be32(&tail, 4) && is_super_journal_name(&name);
    Ok(valid.then(|| PathBuf::from(std::ffi::OsString::from_vec(name))))
}

/// Whether a path is one SQLite gives to super-journals: it ends in `-mj`, six hex digits, `9` and two more.
pub fn is_super_journal_name(path: &[u8]) -> bool {
    let Some(end) = path.len().checked_sub(12).map(|from| &path[from..]) else { return false };
    end.starts_with(b"-mj") && end[9] == b'9' && end[3..].iter().all(u8::is_ascii_hexdigit)
}

/// The journals listed in a super-journal: their paths, each ended by a NUL byte.
///
/// Source: `vdbeaux.c`, vdbeCommit(); `pager.c`, pager_delsuper().
pub fn journals_of_super_journal(content: &[u8]) -> impl Iterator<Item = &Path> {
    content
        .split(|byte| *byte == 0)
        .filter(|path| !path.is_empty())
        .map(|path| Path::new(OsStr::from_bytes(path)))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn sample() -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        for field in [3u32, 77, 10, 512, 4096] {
            header.extend_from_slice(&field.to_be_bytes());
        }
        header
    }

    #[test]
    fn fields_are_read_from_their_offsets() {
        let header = JournalHeader::parse(&sample()).unwrap();
        assert_eq!(header.records, RecordCount::Synced(3));
        assert_eq!((header.nonce, header.initial_size.get(), header.sector_size), (77, 10, 512));
        assert_eq!(header.page_size, Some(PageSize::DEFAULT));
    }

    #[test]
    fn a_count_of_all_ones_means_the_size_of_the_file() {
        let mut bytes = sample();
        bytes[8..12].fill(0xff);
        assert_eq!(JournalHeader::parse(&bytes).unwrap().records, RecordCount::ByFileSize);
    }

    #[test]
    fn headers_sqlite_does_not_play_back_are_refused() {
        let with = |offset: usize, value: u32| {
            let mut bytes = sample();
            bytes[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
            JournalHeader::parse(&bytes)
        };
        assert_eq!(JournalHeader::parse(&sample()[..27]), Err(JournalError::CutShort(27)));
        assert_eq!(with(0, 0), Err(JournalError::Magic));
        assert_eq!(with(20, 16), Err(JournalError::SectorSize(16)));
        assert_eq!(with(20, 513), Err(JournalError::SectorSize(513)));
        assert_eq!(with(20, 0x2_0000), Err(JournalError::SectorSize(0x2_0000)));
        assert_eq!(with(24, 256), Err(JournalError::PageSize(InvalidPageSize(256))));
        assert_eq!(with(24, 0).map(|header| header.page_size), Ok(None));
    }

    #[test]
    fn only_a_zeroed_header_ends_a_transaction() {
        assert!(ends_transaction(0, &[0; 28]));
        assert!(!ends_transaction(0, &[0; 27]));
        assert!(!ends_transaction(512, &[0; 28]));
        let mut beginning = sample();
        beginning[..12].fill(0);
        assert!(!ends_transaction(0, &beginning), "magic and count are zero until the journal is synced");
    }

    #[test]
    fn the_record_checksum_takes_every_200th_byte_from_the_end() {
        let mut page = vec![0u8; 512];
        (page[312], page[112], page[311], page[0]) = (3, 5, 100, 100);
        assert_eq!(record_checksum(u32::MAX, &page), 7);
        assert_eq!(record_checksum(1, &[9; 200]), 1, "byte 0 is never taken");
    }

    fn with_super_name(name: &[u8], checksum: u32) -> Vec<u8> {
        let mut journal = vec![0; 600];
        journal.extend_from_slice(name);
        journal.extend_from_slice(&(name.len() as u32).to_be_bytes());
        journal.extend_from_slice(&checksum.to_be_bytes());
        journal.extend_from_slice(&MAGIC);
        journal
    }

    #[test]
    fn a_super_journal_is_named_at_the_end_of_the_journal() {
        let name = b"/\xc3\xa4-mj1A2B3C9D4";
        let sum = name.iter().fold(0u32, |sum, b| sum.wrapping_add(*b as i8 as u32));
        let read = |journal: Vec<u8>| super_journal_name(&mut Cursor::new(journal)).unwrap();
        assert_eq!(read(with_super_name(name, sum)).unwrap().as_os_str().as_bytes(), name);
        assert_eq!(read(with_super_name(name, sum + 1)), None, "wrong checksum");
        assert_eq!(read(with_super_name(b"/etc/passwd", 1)), None, "not the name of a super-journal");
        assert_eq!(read(vec![0; 15]), None);
        let mut too_long = with_super_name(name, sum);
        let at = too_long.len() - 16;
        too_long[at..at + 4].copy_from_slice(&513u32.to_be_bytes());
        assert_eq!(read(too_long), None);
    }

    #[test]
    fn a_super_journal_lists_paths() {
        let paths: Vec<_> = journals_of_super_journal(b"/a/x-journal\0/b/y-journal\0").collect();
        assert_eq!(paths, [Path::new("/a/x-journal"), Path::new("/b/y-journal")]);
    }
}
