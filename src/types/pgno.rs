use std::fmt;
use std::num::NonZeroU32;

use super::PageSize;

/// Number of a page in a database file, from 1.
///
/// Source: SQLite file format, section 1.2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pgno(NonZeroU32);

impl Pgno {
    /// The page that holds the database header.
    pub const FIRST: Pgno = Pgno(NonZeroU32::MIN);

    /// A page number, or `None` for 0, which names no page.
    pub fn new(value: u32) -> Option<Self> {
        NonZeroU32::new(value).map(Self)
    }

    /// The number itself.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// The page that holds the byte at `offset`, or `None` past the largest page number.
    pub fn of_offset(offset: u64, page_size: PageSize) -> Option<Self> {
        u32::try_from(offset / page_size.bytes())
            .ok()
            .and_then(|zero_based| zero_based.checked_add(1))
            .and_then(Self::new)
    }

    /// The page SQLite never writes, because it holds the lock bytes at 2^30.
    ///
    /// Source: SQLite file format, section 1.4 (the lock-byte page).
    pub fn lock_page(page_size: PageSize) -> Self {
        const PENDING_BYTE: u64 = 1 << 30;
        Self::of_offset(PENDING_BYTE, page_size).expect("2^30 / 512 + 1 fits a page number")
    }

    /// Where the page starts in a database file, in bytes.
    pub fn offset(self, page_size: PageSize) -> u64 {
        u64::from(self.0.get() - 1) * page_size.bytes()
    }
}

impl fmt::Display for Pgno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Pgno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Size of a database in pages (LTX calls it `commit`); 0 where the database has no page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PageCount(u32);

impl PageCount {
    /// A database of no pages.
    pub const ZERO: PageCount = PageCount(0);

    /// A size of `pages` pages.
    pub fn new(pages: u32) -> Self {
        Self(pages)
    }

    /// The number itself.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The size in bytes.
    pub fn bytes(self, page_size: PageSize) -> u64 {
        u64::from(self.0) * page_size.bytes()
    }

    /// Whether the page lies inside a database of this size.
    pub fn contains(self, pgno: Pgno) -> bool {
        pgno.get() <= self.0
    }

    /// The pages of a database of this size in ascending order, the lock page left out.
    pub fn pages(self, page_size: PageSize) -> impl Iterator<Item = Pgno> {
        self.pages_from(1, page_size)
    }

    /// The same from page `first` on.
    pub fn pages_from(self, first: u32, page_size: PageSize) -> impl Iterator<Item = Pgno> {
        let lock = Pgno::lock_page(page_size);
        (first..=self.0).filter_map(Pgno::new).filter(move |pgno| *pgno != lock)
    }
}

impl fmt::Display for PageCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
