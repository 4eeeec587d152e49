//! One database: what its applications do to it, what the log does to it, and the bookkeeping between.
//!
//! The mount calls the `app_*` and file-event methods, the store calls the rest. FUSE threads never wait
//! here: what may wait takes a [`Done`] and answers from another thread.

mod contract;
mod error;
mod files;

pub use contract::{ChangeSink, CommitDone, CommitError, Done, KernelCache};
pub use error::DbError;
pub use files::{DbFiles, FileKind};

mod database;
mod snapshot;
pub use database::Database;
pub use snapshot::{SnapshotHeader, SnapshotReader};
