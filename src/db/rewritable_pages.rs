//! Which pages of a database may come to have other bytes in its file than in its log.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;

use crate::io::read_or_zero;
use crate::sqlite::header::{DATABASE_HEADER_SIZE, DatabaseHeader};
use crate::types::Pgno;

/// Pages that were captured from the log since the file was last compared with it. None where pages have no reserved
/// bytes, which is the usual case.
#[derive(Default)]
pub(super) struct RewritablePages {
    reserved: bool,
    pages: BTreeSet<Pgno>,
}

impl RewritablePages {
    /// Those of the database in `file`: none yet.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn of(file: &File) -> io::Result<Self> {
        let mut head = [0; DATABASE_HEADER_SIZE];
        read_or_zero(file, 0, &mut head)?;
        let reserved = DatabaseHeader::parse(&head).is_ok_and(|header| header.reserved_bytes > 0);
        Ok(Self { reserved, pages: BTreeSet::new() })
    }

    /// These were captured from the log.
    pub fn captured<'a>(&mut self, pages: impl Iterator<Item = &'a Pgno>) {
        if self.reserved {
            self.pages.extend(pages);
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// All of them, ascending.
    pub fn pages(&self) -> impl Iterator<Item = Pgno> {
        self.pages.iter().copied()
    }

    /// The file is what was captured.
    pub fn forget(&mut self) {
        self.pages.clear();
    }
}
