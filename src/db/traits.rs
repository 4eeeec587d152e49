//! What a database asks of the layers below it, as traits they implement.

use std::path::Path;

use crate::db::{DbError, FileKind};
use crate::ltx::ChangeSet;
use crate::types::{DbName, LogIndex, MountPath};

/// Receives the answer of an operation that may wait; called exactly once, from any thread.
pub type Done = Box<dyn FnOnce(Result<(), DbError>) + Send>;

/// Receives the fate of proposed change sets; called exactly once, on the log's thread, in log order.
pub type CommitDone = Box<dyn FnOnce(Result<LogIndex, CommitError>) + Send>;

/// Why a proposed change was not confirmed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// It is certain that the change is not in the log and never will be.
    #[error("refused: {0}")]
    Refused(String),
    /// It may or may not be in the log.
    #[error("outcome unknown: {0}")]
    Unknown(String),
}

/// Makes change sets durable in the cluster's log, all of one call or none.
pub trait ChangeSink: Send + Sync + 'static {
    /// Proposes `sets` as one entry; `done` hears the index once a quorum and the local log hold it.
    fn commit(&self, sets: Vec<ChangeSet>, done: CommitDone);

    /// Why a proposal would be refused if it were made now; asked before a large change set is written for it.
    fn refuses(&self) -> Option<String> {
        None
    }
}

/// Tells the kernel that what it caches of the mount is stale. Never call from a FUSE thread.
pub trait KernelCache: Send + Sync + 'static {
    /// Directory entries of this database's file appeared or vanished.
    fn entry_changed(&self, db: &DbName, kind: FileKind);
    /// Something else is under this path of the mount now: a database or directory appeared or vanished.
    fn path_changed(&self, path: &str);
    /// Owner, group or permissions changed. Never waits.
    fn attributes_changed(&self, path: &MountPath);
    /// Content or size of the file changed behind the mount.
    fn data_changed(&self, db: &DbName, kind: FileKind);
    /// `data` was written at `offset` of the file behind the mount, which may have made it longer: the kernel is given
    /// both. To invalidate is not enough where the file grows again and again: an answer about its size that another
    /// invalidation overtakes is thrown away, and a read goes by the old size (`fs/fuse/inode.c`,
    /// fuse_change_attributes()).
    fn data_written(&self, db: &DbName, kind: FileKind, offset: u64, data: &[u8]);
    /// Whether `-wal` and `-shm` are passed through: what is mapped of them is the backing file then.
    fn passthrough(&self) -> bool;
    /// Directory the file system is mounted on.
    fn mount_point(&self) -> &Path;
}
