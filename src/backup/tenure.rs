//! What the parts of the uploader share: what it works with, and what it knows while this node is primary.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::chain::Chain;
use super::level0::Naming;
use super::{ArchiveFile, BackupError, BucketLease, FileAttributes, Objects, StatusBoard};
use crate::db::SnapshotHeader;
use crate::store::{CommittedLog, Store};
use crate::types::{DbName, Globs, LogIndex, Timestamp};

/// What is backed up, and how.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// Where to, as it is shown.
    pub url: String,
    /// Which databases.
    pub databases: Globs,
    /// Changes of so long go into one file.
    pub sync_interval: Duration,
    /// Age of the last snapshot at which a database that has changed gets another one.
    pub snapshot_interval: Duration,
    /// For how long every point is kept.
    pub retention: Duration,
    /// Being so far behind is told as a warning.
    pub warn_after: Duration,
    /// The cluster.
    pub cluster: String,
    /// This node's name.
    pub node: String,
    /// A number of this run of the node's program.
    pub run: u64,
}

/// What every part of the uploader works with.
pub(super) struct Context {
    pub options: BackupOptions,
    pub objects: Arc<dyn Objects>,
    pub store: Arc<Store>,
    pub log: Arc<dyn CommittedLog>,
    pub board: StatusBoard,
    /// Snapshots and merges at a time.
    pub jobs: Arc<Semaphore>,
}

/// What is known of a database's files.
pub(super) enum Slot {
    /// What a listing shows.
    Listed(Vec<ArchiveFile>),
    /// Everything.
    Known(Box<Chain>),
    /// Why it cannot be backed up, and what a listing shows; tried again later.
    Failed(String, Vec<ArchiveFile>, Instant),
}

/// The time in which this node is primary and holds the lease.
pub(super) struct Tenure {
    pub(super) context: Arc<Context>,
    pub(super) epoch: u64,
    pub(super) lease: BucketLease,
    /// Everything up to here is in the bucket, or its database waits for a snapshot.
    pub(super) cursor: LogIndex,
    pub(super) slots: BTreeMap<DbName, Slot>,
    /// When files of a database are to be looked at.
    pub(super) due: BTreeMap<DbName, Timestamp>,
    pub(super) jobs: JoinSet<Done>,
    pub(super) opened: (mpsc::Sender<Opened>, mpsc::Receiver<Opened>),
    pub(super) renewed: Instant,
}

/// A snapshot was opened: what is to become of it?
pub(super) struct Opened {
    pub db: DbName,
    pub generation: u64,
    pub is_base: bool,
    pub header: SnapshotHeader,
    pub time: Timestamp,
    /// Without an answer it is given up.
    pub assign: oneshot::Sender<Assignment>,
}

/// How a snapshot is stored.
pub(super) struct Assignment {
    pub naming: Naming,
    pub key: String,
    pub attributes: FileAttributes,
}

/// How a job has ended.
pub(super) enum Done {
    /// A snapshot; no file where it was given up.
    Snapshot { db: DbName, generation: u64, is_base: bool, result: Result<Option<ArchiveFile>, BackupError> },
    /// Files were merged.
    Merged { db: DbName, generation: u64, result: Result<ArchiveFile, BackupError> },
}
