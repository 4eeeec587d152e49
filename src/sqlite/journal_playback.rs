use std::io::{self, Read, Seek, SeekFrom};

use super::header::be32;
use super::journal::{JOURNAL_HEADER_SIZE, JournalHeader, RecordCount, is_header_magic, record_checksum};
use crate::types::{PageCount, PageSize, Pgno};

/// The smallest file in which SQLite looks for a journal header: its sector size on Linux.
const JOURNAL_SIZE_MIN: u64 = 512;
/// The fields of a later segment's header that SQLite reads.
const SEGMENT_HEADER_SIZE: usize = 16;

/// Walks the records of a journal left behind by a writer that died, as SQLite plays it back.
///
/// To roll back: set the size of the database to [`Playback::initial_size`], then write every page yielded, in
/// order (a page may come twice). Ends without error at the first record that is incomplete, of page 0 or of
/// the lock page, or has a wrong checksum; skips pages beyond the initial size. The caller has already seen
/// that a super-journal named by the journal exists. Give it a buffered reader.
/// Source: `pager.c`, pager_playback(), readJournalHdr(), pager_playback_one_page().
#[derive(Debug)]
pub struct Playback<R> {
    journal: R,
    size_bytes: u64,
    header: JournalHeader,
    page_size: PageSize,
    /// Where the next record, or behind the last one the next segment, is.
    offset: u64,
    nonce: u32,
    records_left: u64,
    ended: bool,
}

impl<R: Read + Seek> Playback<R> {
    /// Reads the journal's first header; `None` where there is nothing to play back.
    ///
    /// `page_size` is that of the database: it counts where the journal does not say.
    ///
    /// # Errors
    /// Where the reader fails.
    pub fn open(mut journal: R, page_size: PageSize) -> io::Result<Option<Self>> {
        let size_bytes = journal.seek(SeekFrom::End(0))?;
        if size_bytes < JOURNAL_SIZE_MIN {
            return Ok(None);
        }
        journal.seek(SeekFrom::Start(0))?;
        let mut bytes = [0; JOURNAL_HEADER_SIZE];
        journal.read_exact(&mut bytes)?;
        let Ok(header) = JournalHeader::parse(&bytes) else { return Ok(None) };
        let mut playback = Self {
            journal,
            size_bytes,
            header,
            page_size: header.page_size.unwrap_or(page_size),
            offset: u64::from(header.sector_size),
            nonce: header.nonce,
            records_left: 0,
            ended: false,
        };
        playback.records_left = playback.record_count(header.records);
        playback.journal.seek(SeekFrom::Start(playback.offset))?;
        Ok(Some(playback))
    }

    /// The journal's first header.
    pub fn header(&self) -> &JournalHeader {
        &self.header
    }

    /// The size the database had before the transaction.
    pub fn initial_size(&self) -> PageCount {
        self.header.initial_size
    }

    /// The size of the pages yielded.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The next page to write back, its former content in `page`; `None` at the end.
    ///
    /// # Errors
    /// Where the reader fails; a journal that ends early is no error.
    pub fn next_record(&mut self, page: &mut Vec<u8>) -> io::Result<Option<Pgno>> {
        page.resize(self.page_size.len(), 0);
        while !self.ended {
            if self.records_left == 0 {
                self.ended = !self.next_segment()?;
                continue;
            }
            self.records_left -= 1;
            match self.read_record(page)? {
                None => self.ended = true,
                Some((pgno, _)) if !self.header.initial_size.contains(pgno) => {}
                Some((_, sum)) if sum != record_checksum(self.nonce, page) => self.ended = true,
                Some((pgno, _)) => return Ok(Some(pgno)),
            }
        }
        Ok(None)
    }

    /// A record of a page that can be: its page number and checksum.
    fn read_record(&mut self, page: &mut [u8]) -> io::Result<Option<(Pgno, u32)>> {
        let end = self.offset + self.record_bytes();
        if end > self.size_bytes {
            return Ok(None);
        }
        let (mut number, mut sum) = ([0; 4], [0; 4]);
        self.journal.read_exact(&mut number)?;
        self.journal.read_exact(page)?;
        self.journal.read_exact(&mut sum)?;
        self.offset = end;
        let pgno = Pgno::new(be32(&number, 0)).filter(|pgno| *pgno != Pgno::lock_page(self.page_size));
        Ok(pgno.map(|pgno| (pgno, be32(&sum, 0))))
    }

    /// Goes to the segment at the next sector, if there is one.
    fn next_segment(&mut self) -> io::Result<bool> {
        let sector = u64::from(self.header.sector_size);
        let start = self.offset.next_multiple_of(sector);
        if start + sector > self.size_bytes {
            return Ok(false);
        }
        let mut bytes = [0; SEGMENT_HEADER_SIZE];
        self.journal.seek(SeekFrom::Start(start))?;
        self.journal.read_exact(&mut bytes)?;
        if !is_header_magic(&bytes) {
            return Ok(false);
        }
        self.records_left = self.record_count(RecordCount::of_field(be32(&bytes, 8)));
        self.nonce = be32(&bytes, 12);
        self.offset = start + sector;
        self.journal.seek(SeekFrom::Start(self.offset))?;
        Ok(true)
    }

    fn record_count(&self, records: RecordCount) -> u64 {
        match records {
            RecordCount::Synced(count) => u64::from(count),
            RecordCount::ByFileSize => {
                self.size_bytes.saturating_sub(u64::from(self.header.sector_size)) / self.record_bytes()
            }
        }
    }

    /// Page number, page, checksum.
    fn record_bytes(&self) -> u64 {
        4 + self.page_size.bytes() + 4
    }
}

/// The records with their own buffers, for short journals.
impl<R: Read + Seek> Iterator for Playback<R> {
    type Item = io::Result<(Pgno, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut page = Vec::new();
        self.next_record(&mut page).map(|pgno| pgno.map(|pgno| (pgno, page))).transpose()
    }
}
