use std::fmt;

/// Size of a database page in bytes: a power of two from 512 to 65536.
///
/// Source: SQLite file format, section 1.3.2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageSize(u32);

/// A number that SQLite does not accept as a page size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("page size {0} is not a power of two from 512 to 65536")]
pub struct InvalidPageSize(pub u32);

impl PageSize {
    /// The default of SQLite.
    pub const DEFAULT: PageSize = PageSize(4096);
    /// The largest page size.
    pub const MAX: PageSize = PageSize(65536);

    /// A page size of `bytes` bytes.
    ///
    /// # Errors
    /// Where `bytes` is not a power of two from 512 to 65536.
    pub fn new(bytes: u32) -> Result<Self, InvalidPageSize> {
        if bytes.is_power_of_two() && (512..=65536).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(InvalidPageSize(bytes))
        }
    }

    /// The size in bytes.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The size in bytes, for file offsets.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// The size in bytes, for buffers.
    #[allow(clippy::len_without_is_empty, reason = "a page is never empty")]
    pub fn len(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
