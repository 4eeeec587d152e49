//! How a transaction under a rollback journal ends.

/// What an application does to its journal to commit.
pub(super) enum JournalEnd {
    /// journal_mode=DELETE.
    Unlink,
    /// journal_mode=TRUNCATE.
    Truncate(u64),
    /// journal_mode=PERSIST: the header is zeroed.
    Write(u64, Vec<u8>),
    /// The same where the kernel writes the journal by itself, and has zeroed the header.
    Written,
}
