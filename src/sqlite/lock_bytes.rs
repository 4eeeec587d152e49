//! Byte ranges on which SQLite takes its locks.
//!
//! Source: SQLite `os.h` (PENDING_BYTE and following) and `wal.c` (WAL locks).

/// Lock byte of the database file that a writer waiting for readers to leave holds.
pub const PENDING: u64 = 0x4000_0000;
/// Lock byte of the database file that the one connection preparing to write holds.
pub const RESERVED: u64 = PENDING + 1;
/// First lock byte of the database file that readers share.
pub const SHARED_FIRST: u64 = PENDING + 2;
/// Number of bytes readers share, from [`SHARED_FIRST`] on.
pub const SHARED_SIZE: u64 = 510;

/// Lock byte of the `-shm` file that a WAL writer holds exclusively.
pub const WAL_WRITE: u64 = 120;
/// Lock byte of the `-shm` file that a checkpointer holds exclusively.
pub const CKPT: u64 = 121;
/// Lock byte of the `-shm` file held while the wal-index is rebuilt.
pub const RECOVER: u64 = 122;
/// Number of read slots in the wal-index.
pub const READ_SLOTS: u64 = 5;
/// Lock byte of the `-shm` file held shared for as long as a connection maps it ("dead man switch").
pub const DMS: u64 = 128;

/// Lock byte of the `-shm` file that a reader of slot `slot` (0 to 4) shares.
///
/// Slot 0 means "reads the database file only"; slots 1 to 4 end at the frame in `aReadMark[slot]`.
///
/// # Panics
/// Where `slot` is not one of the five: a slot number comes from this program, never from a file.
pub const fn read(slot: u64) -> u64 {
    assert!(slot < READ_SLOTS, "the wal-index has read slots 0 to 4");
    WAL_WRITE + 3 + slot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_bytes_are_those_of_sqlite() {
        assert_eq!((PENDING, RESERVED, SHARED_FIRST), (1_073_741_824, 1_073_741_825, 1_073_741_826));
        assert_eq!((read(0), read(4), DMS), (123, 127, 128));
    }
}
