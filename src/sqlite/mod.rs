//! SQLite's file formats: bytes in and out, no I/O of its own.
//!
//! Owns the layout of the database header, the write-ahead log, the rollback journal and the lock bytes.
//! Never opens a file: readers are handed in. Called by `db`, which owns the files.

#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod header;
pub mod journal;
pub mod journal_playback;
pub mod lock_bytes;
pub mod page_owners;
pub mod wal;
pub mod wal_index;
pub mod wal_scanner;
