use std::fmt;

/// How a database protects a transaction: by write-ahead log or by rollback journal.
///
/// Source: SQLite file format, bytes 18 and 19 of the database header (1 rollback, 2 WAL).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum JournalMode {
    /// Write-ahead log.
    Wal,
    /// Rollback journal (DELETE, TRUNCATE or PERSIST: the header does not say which).
    Rollback,
}

impl fmt::Display for JournalMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            JournalMode::Wal => "wal",
            JournalMode::Rollback => "rollback",
        })
    }
}
