//! One database: what its applications do to it, what the log does to it, and the bookkeeping between.
//!
//! The mount calls the `app_*` and file-event methods, the store calls the rest. FUSE threads never wait
//! here: what may wait takes a [`Done`] and answers from another thread.
//!
//! The way of a transaction: `capture_wal` or `capture_journal` finds it, `batch` encodes it, `commit` sends it
//! through the log and moves `pin`; elsewhere `incoming` checks it and `apply` writes it.

mod apply;
mod attach;
mod backpressure;
mod batch;
mod capture_journal;
mod capture_time;
mod capture_unseen_journal;
mod capture_wal;
mod checkpoint;
mod claim;
mod closable_file;
mod commit;
mod cow;
mod database;
mod dead_writer;
mod discard;
mod dms;
mod durable;
mod error;
mod exclusive;
mod exclusive_client;
mod fence;
mod files;
mod guarded_file;
mod handles;
mod import;
mod in_place;
mod incoming;
mod invalidate;
mod journal_end;
mod landing;
mod last_close;
mod lifecycle;
mod log_users;
mod main_lock;
mod opened;
mod opening;
mod overlay;
mod overrun;
mod page_checksums;
mod pin;
mod pin_release;
mod recover;
mod recover_index;
mod replace;
mod rewind;
mod rewritable_pages;
mod rewritten_pages;
mod roles;
mod rollback_files;
mod scrub;
mod shared;
mod snapshot;
mod staged_file;
mod super_journal_members;
mod super_journals;
mod traits;
mod undecided;
mod unseen_journal;
mod unseen_writes;
mod view;
mod wal_chain;
mod wal_left_behind;
mod wal_locks;
mod wal_watcher;
mod wal_writer;
mod write_lease;

pub use backpressure::{LimitCounts, Limits};
pub(crate) use capture_journal::take_back;
pub use capture_time::{CaptureTime, take_capture_time};
pub(crate) use claim::Claim;
pub use database::Database;
pub use error::DbError;
pub use files::{DbFiles, FileKind};
pub use guarded_file::{AfterDeath, MountGuard};
pub use page_checksums::{Marker, WalPoint};
pub(crate) use replace::HeldWriters;
pub use shared::{Moved, Observer, Shared};
pub use snapshot::{SnapshotHeader, SnapshotReader};
pub use staged_file::StagedFile;
pub use super_journals::SuperJournals;
pub use traits::{ChangeSink, CommitDone, CommitError, Done, KernelCache};
pub use wal_watcher::WalWatcher;
pub use write_lease::{Ended, Lease, WriteLease};
