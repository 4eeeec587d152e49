//! LTX: the change-set format, bytes in and out, no I/O of its own.

mod change_set;

pub use change_set::{BlobRef, Body, ChangeSet, ChangeSetError};
pub(crate) use change_set::{put_name, take, take_name};
