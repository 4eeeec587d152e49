//! A database file as a program other than SQLite is writing it: `cp`, `dd`, `rsync`, an import.
//!
//! What it writes is kept aside until it is whole, and then becomes one transaction, see `import`. A program that did not
//! begin by truncating the file changes what is there; only what it wrote counts then.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::overlay::Overlay;
use crate::sqlite::header::{self, DATABASE_HEADER_SIZE, DatabaseHeader};
use crate::types::{PageCount, PageSize, Pgno};

/// The private copy of one writer.
#[derive(Debug)]
pub struct StagedFile {
    overlay: Overlay,
    /// What lies below what was written: the database file, or nothing.
    base: File,
    /// Nothing of what the database had counts.
    whole: bool,
    tmp: PathBuf,
}

/// What a staged file would be as a database.
#[derive(Clone, Copy, Debug)]
pub struct StagedDatabase {
    /// Its header.
    pub header: DatabaseHeader,
    /// Its size. The file may be longer, as SQLite leaves it when it grows a file by more than it needs.
    pub pages: PageCount,
}

impl StagedFile {
    /// A file that is written from nothing; `tmp` is a directory for what is written.
    ///
    /// # Errors
    /// Where no file can be made.
    pub fn empty(tmp: &Path) -> io::Result<Self> {
        let overlay = Overlay::new();
        overlay.truncate(0);
        Ok(Self { overlay, base: tempfile::tempfile_in(tmp)?, whole: true, tmp: tmp.to_owned() })
    }

    /// The database file `base`, to be changed in places.
    pub fn on(base: File, tmp: &Path) -> Self {
        Self { overlay: Overlay::new(), base, whole: false, tmp: tmp.to_owned() }
    }

    /// Writes a part.
    ///
    /// # Errors
    /// Where the disk is full.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.overlay.write(&self.base, &self.tmp, offset, data)
    }

    /// Cuts or extends the file.
    pub fn set_len(&self, size: u64) {
        self.overlay.truncate(size);
    }

    /// Reads the file as its writer sees it; returns how much there was.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<usize> {
        self.overlay.read(&self.base, offset, data)
    }

    /// Size in bytes as its writer sees it.
    ///
    /// # Errors
    /// Where the file's attributes cannot be read.
    pub fn size_bytes(&self) -> io::Result<u64> {
        self.overlay.size().map_or_else(|| Ok(self.base.metadata()?.len()), Ok)
    }

    /// Whether anything was written, cut or extended.
    pub fn is_changed(&self) -> bool {
        self.overlay.size().is_some()
    }

    /// What SQLite would take the file for.
    ///
    /// # Errors
    /// `InvalidData` with the reason where it is no database, or not whole.
    pub fn as_database(&self) -> io::Result<StagedDatabase> {
        let mut head = [0; DATABASE_HEADER_SIZE];
        let got = self.read_at(0, &mut head)?;
        StagedDatabase::of(&head[..got], self.size_bytes()?)
    }

    /// Makes the file, which was cut to nothing, the one page that SQLite begins a database with.
    ///
    /// # Errors
    /// Where the disk is full.
    pub fn begin_new_database(&mut self, page_size: PageSize) -> io::Result<()> {
        self.whole = true;
        self.write_at(0, &header::new_database(page_size))
    }

    /// Whether nothing of what the database had counts.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Size in bytes over a database of `has` bytes, of which the file may lack a part.
    pub(super) fn size_over(&self, has: u64) -> io::Result<u64> {
        let (file, size) = (self.base.metadata()?.len(), self.size_bytes()?);
        Ok(if size < file { size } else { size.max(has) })
    }

    /// Whether every byte from `start` to `end` is the writer's own.
    pub(super) fn covers(&self, start: u64, end: u64) -> bool {
        self.whole || self.overlay.covers(start, end)
    }

    /// Pages that may differ from those of the database.
    pub(super) fn touched(&self, page_size: PageSize, pages: PageCount) -> BTreeSet<Pgno> {
        if self.whole {
            return pages.pages(page_size).collect();
        }
        self.overlay.touched_pages(page_size).into_iter().filter(|pgno| pages.contains(*pgno)).collect()
    }

    /// Reads a page: `below` gives what the database has, where not all of it was written.
    pub(super) fn page(
        &self,
        pgno: Pgno,
        page: &mut [u8],
        below: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let at = u64::from(pgno.get() - 1) * page.len() as u64;
        if !self.covers(at, at + page.len() as u64) {
            below(page)?;
            return self.overlay.patch(at, page);
        }
        let got = self.read_at(at, page)?;
        page[got..].fill(0);
        Ok(())
    }
}

impl StagedDatabase {
    /// What SQLite would take a file of `size` bytes for that begins with `head`. A page that the end of the file cuts
    /// off counts, as it does for SQLite.
    ///
    /// # Errors
    /// `InvalidData` with the reason where it is no database, or not whole.
    pub fn of(head: &[u8], size: u64) -> io::Result<Self> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let header = DatabaseHeader::parse(head)
            .map_err(|error| invalid(format!("is no SQLite database: {error}")))?;
        let in_file = size.div_ceil(header.page_size.bytes());
        let in_file =
            u32::try_from(in_file).map_err(|_| invalid(format!("has {in_file} pages, too many")))?;
        let pages = match header.trusted_page_count() {
            Some(count) if count.get() > in_file => {
                return Err(invalid(format!("is cut short: {in_file} pages, its header says {count}")));
            }
            Some(count) => count,
            None => PageCount::new(in_file),
        };
        Ok(Self { header, pages })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(page_size: u16, pages: u32) -> Vec<u8> {
        let mut header = vec![0u8; 100];
        header[..16].copy_from_slice(b"SQLite format 3\0");
        header[16..18].copy_from_slice(&page_size.to_be_bytes());
        header[18..24].copy_from_slice(&[1, 1, 0, 64, 32, 32]);
        header[28..32].copy_from_slice(&pages.to_be_bytes());
        header
    }

    fn pages_of(staged: &StagedFile) -> Result<u32, String> {
        staged.as_database().map(|found| found.pages.get()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_longer_than_its_header_says_has_the_size_in_its_header() {
        let dir = tempfile::tempdir().unwrap();
        let staged = StagedFile::empty(dir.path()).unwrap();
        staged.write_at(0, &header(512, 3)).unwrap();
        assert!(pages_of(&staged).unwrap_err().contains("cut short"));
        staged.set_len(1025);
        assert_eq!(pages_of(&staged), Ok(3), "SQLite counts a page that the file's end cuts off");
        staged.set_len(512 * 40 + 100);
        assert_eq!(pages_of(&staged), Ok(3));
        staged.write_at(24, &[1]).unwrap();
        assert_eq!(pages_of(&staged), Ok(41), "a stale size in the header does not count");
    }

    #[test]
    fn what_was_not_written_comes_from_below() {
        let dir = tempfile::tempdir().unwrap();
        let base = tempfile::tempfile_in(dir.path()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&base, &[7; 1024], 0).unwrap();
        let staged = StagedFile::on(base, dir.path());
        staged.write_at(600, &[1; 8]).unwrap();
        let size = PageSize::new(512).unwrap();
        let touched = staged.touched(size, PageCount::new(2));
        assert_eq!(touched.into_iter().map(Pgno::get).collect::<Vec<_>>(), [2]);
        let mut page = [0; 512];
        let below = |page: &mut [u8]| {
            page.fill(9);
            Ok(())
        };
        staged.page(Pgno::new(2).unwrap(), &mut page, below).unwrap();
        assert_eq!((page[0], page[88], page[95], page[96]), (9, 1, 1, 9));
    }
}
