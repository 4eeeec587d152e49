use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::broadcast;

use crate::backup::BackupStatus;
use crate::db::{Done, SnapshotHeader};
use crate::history::History;
use crate::store::{
    ClusterAnswer, ClusterError, CopyProgress, DbStatus, Member, MemberChange, NodeFacts, PrimaryInfo,
    StoreError, StoreEvent,
};
use crate::types::{Checksum, DbName, LogIndex, NodeName, Pos, Role, Txid};

/// What a node says about itself.
#[derive(Clone, Debug)]
pub struct Overview {
    /// Its name.
    pub name: NodeName,
    /// What it is configured as.
    pub role: Role,
    /// The primary, also where that is this node.
    pub primary: Option<PrimaryInfo>,
    /// Whether this node takes writes.
    pub is_primary: bool,
    /// The Raft term; 0 where unknown.
    pub term: u64,
    /// Last log entry applied.
    pub index: LogIndex,
    /// Last log entry the database files hold durably.
    pub durable_index: LogIndex,
    /// Why nothing can be written anywhere, as far as this node knows; `None` while there is a quorum.
    pub no_quorum: Option<String>,
    /// Since when that is so.
    pub no_quorum_since: Option<SystemTime>,
    /// What this node fetches from others at the moment.
    pub copying: Option<CopyProgress>,
    /// `Err` says why applications may not start yet.
    pub ready: Result<(), String>,
}

/// What an operator wants to know of a node besides.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Details {
    /// The program's version.
    pub version: String,
    /// How long it has run.
    pub uptime: Duration,
    /// Whether the kernel reads and writes WAL databases itself.
    pub passthrough: bool,
    /// Where databases are mounted.
    pub mount: String,
    /// URL of the proxy in front of its application, empty where there is none.
    pub proxy: String,
    /// The databases whose write lease applications of this node hold.
    pub write_leases: Vec<DbName>,
    /// Space left for its data directory.
    pub disk_free_bytes: Option<u64>,
    /// How long its certificate still counts; `None` where it has none.
    pub certificate_left: Option<Duration>,
}

/// A node, as far as HTTP shows it.
pub trait Api: Send + Sync + 'static {
    /// What it says about itself.
    fn overview(&self) -> Overview;

    /// Who it is besides. Reads files.
    fn details(&self) -> Details;

    /// Its databases by name.
    fn databases(&self) -> Vec<DbStatus>;

    /// One of them.
    fn database(&self, name: &DbName) -> Option<DbStatus>;

    /// The nodes of the cluster it knows.
    fn members(&self) -> Vec<Member>;

    /// What those of `members` say of themselves that answer at once.
    fn member_facts<'a>(&'a self, members: &'a [Member]) -> BoxFuture<'a, HashMap<NodeName, NodeFacts>>;

    /// The nodes as the primary sees them.
    fn cluster_members(&self) -> ClusterAnswer<'_, Vec<Member>>;

    /// Makes a running voter of this cluster that is no member one; `addr` is its gRPC.
    fn add_member(&self, addr: String) -> ClusterAnswer<'_, ()>;

    /// Changes the part a member has.
    fn change_member(&self, change: MemberChange) -> ClusterAnswer<'_, ()>;

    /// Moves the primary as planned; gives the new one.
    fn hand_off(&self, to: Option<NodeName>) -> ClusterAnswer<'_, NodeName>;

    /// The newest committed position of a database, confirmed by a quorum.
    fn newest(&self, db: DbName) -> ClusterAnswer<'_, Pos>;

    /// Every node, what it is, and the URL of its API where it answers.
    fn nodes(&self) -> ClusterAnswer<'_, Vec<(NodeName, Role, Option<String>)>>;

    /// Position of a database, and the checksum of its pages as they are read now. Blocking.
    ///
    /// # Errors
    /// Where there is no such database, or it cannot be read.
    fn check(&self, name: &DbName) -> Result<(Pos, Checksum), StoreError>;

    /// Lets this node fetch what differs from another node's copy of a database; it is not served until that is done.
    ///
    /// # Errors
    /// On the primary: its copy is what others are compared with.
    fn repair(&self, name: &DbName) -> Result<(), ClusterError>;

    /// How the backups stand, one for each URL; only the primary uploads.
    fn backups(&self) -> Vec<BackupStatus> {
        Vec::new()
    }

    /// What its databases were; `None` where nothing is kept.
    fn history(&self) -> Option<Arc<History>> {
        None
    }

    /// Number of change sets kept in `discarded/`.
    fn discarded(&self) -> u64;

    /// Events from now on.
    fn events(&self) -> broadcast::Receiver<StoreEvent>;

    /// Waits until the database has reached `txid` here; `false` at the deadline.
    fn wait_for(&self, name: DbName, txid: Txid, deadline: Instant) -> BoxFuture<'static, bool>;

    /// Gives a consistent copy of a database to `out`. Blocking.
    ///
    /// # Errors
    /// Where there is no such database, or it cannot be read.
    fn export(&self, name: &DbName, out: &mut dyn ExportSink) -> Result<(), StoreError>;

    /// Starts to replace a database's content. Blocking.
    ///
    /// # Errors
    /// Where this node is not primary.
    fn import(&self, name: &DbName) -> Result<Box<dyn Import>, StoreError>;

    /// Drops a database everywhere.
    fn drop_database(&self, name: &DbName, done: Done);
}

/// Receives a copy of a database.
pub trait ExportSink {
    /// What comes; called once, first.
    fn begin(&mut self, header: SnapshotHeader);

    /// The next bytes of the database file; `Break` where nobody wants more.
    fn chunk(&mut self, bytes: Bytes) -> ControlFlow<()>;
}

/// A database file being received; nothing has changed where it is dropped. Its methods block.
pub trait Import: Send {
    /// Takes the next part.
    ///
    /// # Errors
    /// Where the bytes are no SQLite database, or cannot be stored.
    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), StoreError>;

    /// Makes what was received the database's content, as one transaction.
    fn finish(self: Box<Self>, done: Done);
}
