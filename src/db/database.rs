use std::sync::Arc;

use super::{DbError, DbFiles, Done};
use crate::types::{Access, DbName, JournalMode, LogIndex, Pos};

/// One database of this node.
///
/// Events of its files come from the mount, changes from the log; both may come from any thread.
#[derive(Debug)]
pub struct Database {}

impl Database {
    /// Its name.
    pub fn name(&self) -> &DbName {
        todo!()
    }

    /// Its backing files.
    pub fn files(&self) -> &DbFiles {
        todo!()
    }

    /// Where it stands.
    pub fn pos(&self) -> Pos {
        todo!()
    }

    /// The log index of the last entry that changed it here.
    pub fn index(&self) -> LogIndex {
        todo!()
    }

    /// The mode its header names; `None` while it is empty.
    pub fn journal_mode(&self) -> Option<JournalMode> {
        todo!()
    }

    /// Whether applications have it open.
    pub fn attached(&self) -> bool {
        todo!()
    }

    /// What applications may do.
    pub fn access(&self) -> Access {
        todo!()
    }

    // ---- events of the mount; `Done` may be called inline or from another thread

    /// An application opens the database file: attaches first. Answer the open from `done`.
    pub fn app_opened(self: &Arc<Self>, _done: Done) {
        todo!()
    }

    /// An application's handle of the database file was released.
    pub fn app_closed(self: &Arc<Self>) {
        todo!()
    }

    /// An application opens or creates `-wal` or `-shm`: attaches as WAL database first.
    pub fn wal_opened(self: &Arc<Self>, _done: Done) {
        todo!()
    }

    /// `fsync(-wal)`: captures what is new and answers once it is quorum-durable.
    pub fn wal_synced(self: &Arc<Self>, _done: Done) {
        todo!()
    }

    /// A write to `-wal` that reaches the daemon (no passthrough).
    pub fn wal_write(&self, _offset: u64, _data: &[u8]) -> Result<(), DbError> {
        todo!()
    }

    /// `-wal` is truncated.
    pub fn wal_truncated(self: &Arc<Self>, _size: u64, _done: Done) {
        todo!()
    }

    /// A write to the database file that reaches the daemon (rollback mode, or a checkpoint without passthrough).
    pub fn database_write(&self, _offset: u64, _data: &[u8]) -> Result<(), DbError> {
        todo!()
    }

    /// The database file is truncated by ftruncate.
    pub fn database_truncated(self: &Arc<Self>, _size: u64, _done: Done) {
        todo!()
    }

    /// `fsync` of the database file.
    pub fn database_synced(self: &Arc<Self>, _done: Done) {
        todo!()
    }

    /// May a rollback journal be created now? Creates the backing file.
    pub fn journal_created(&self) -> Result<(), DbError> {
        todo!()
    }

    /// A write to the rollback journal; zeroing its header ends the transaction (PERSIST), which is captured first.
    pub fn journal_write(self: &Arc<Self>, _offset: u64, _data: Vec<u8>, _done: Done) {
        todo!()
    }

    /// The rollback journal is truncated; to zero ends the transaction (TRUNCATE).
    pub fn journal_truncated(self: &Arc<Self>, _size: u64, _done: Done) {
        todo!()
    }

    /// The rollback journal is unlinked, which ends the transaction (DELETE). Removes the backing file.
    pub fn journal_unlinked(self: &Arc<Self>, _done: Done) {
        todo!()
    }
}
