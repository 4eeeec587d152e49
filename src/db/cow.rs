//! Copy on write for snapshots of files that are written in place: every writer here saves what it overwrites.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, Weak};

use crate::types::{PageCount, PageSize, Pgno};

/// The snapshots of one file under way.
#[derive(Debug, Default)]
pub(super) struct CowSnapshots(Vec<Weak<Cow>>);

/// Pages of a snapshot that have been overwritten since it was taken.
#[derive(Debug)]
pub(super) struct Cow {
    page_size: PageSize,
    pages: PageCount,
    saved: Mutex<Saved>,
}

#[derive(Debug)]
struct Saved {
    /// Pages at their own offsets, a sparse file.
    file: File,
    pages: HashSet<Pgno>,
}

impl CowSnapshots {
    /// Begins a snapshot of the file as it is now.
    pub fn begin(&mut self, page_size: PageSize, pages: PageCount, file: File) -> Arc<Cow> {
        let saved = Mutex::new(Saved { file, pages: HashSet::new() });
        let cow = Arc::new(Cow { page_size, pages, saved });
        self.0.retain(|other| other.strong_count() > 0);
        self.0.push(Arc::downgrade(&cow));
        cow
    }

    /// Whether any snapshot is under way.
    pub fn any(&self) -> bool {
        self.0.iter().any(|cow| cow.strong_count() > 0)
    }

    /// Saves what the write of `length` bytes at `offset` will overwrite.
    ///
    /// # Errors
    /// Where saving fails; the write must not happen then.
    pub fn before_write(&mut self, file: &File, offset: u64, length: u64) -> io::Result<()> {
        for cow in self.0.iter().filter_map(Weak::upgrade) {
            cow.save(file, offset, length)?;
        }
        Ok(())
    }
}

impl Cow {
    fn save(&self, file: &File, offset: u64, length: u64) -> io::Result<()> {
        let size = self.page_size.bytes();
        let end = offset.saturating_add(length).min(self.pages.bytes(self.page_size));
        let mut saved = self.saved.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut at = offset / size * size;
        let mut page = vec![0; self.page_size.len()];
        while at < end {
            if let Some(pgno) = Pgno::of_offset(at, self.page_size)
                && !saved.pages.contains(&pgno)
            {
                crate::io::read_or_zero(file, at, &mut page)?;
                saved.file.write_all_at(&page, at)?;
                saved.pages.insert(pgno);
            }
            at += size;
        }
        Ok(())
    }

    /// Reads a page as it was: saved, or still in the file.
    ///
    /// # Errors
    /// Where reading fails.
    pub fn read(&self, file: &File, pgno: Pgno, page: &mut [u8]) -> io::Result<()> {
        // Writers save under this lock before they write, so a page not saved by now is read before it changes.
        let saved = self.saved.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let source = if saved.pages.contains(&pgno) { &saved.file } else { file };
        crate::io::read_or_zero(source, pgno.offset(self.page_size), page)
    }
}
