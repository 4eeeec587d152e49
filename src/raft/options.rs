use std::path::PathBuf;
use std::time::Duration;

use super::incarnations::Incarnation;
use super::transport::AddressBook;
use crate::config::{LimitSettings, Settings};
use crate::security::Peering;
use crate::store::Candidate;
use crate::types::{NodeId, NodeName};

/// What a node's Raft is started with.
#[derive(Debug, Clone)]
pub struct RaftOptions {
    /// The cluster's id.
    pub cluster: String,
    /// This node.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// The log's directory.
    pub dir: PathBuf,
    /// Where runs of other voters that were met are noted.
    pub peers_file: PathBuf,
    /// This run of the node.
    pub incarnation: Incarnation,
    /// HOST:PORT at which others reach its gRPC.
    pub addr: String,
    /// URL at which others reach its HTTP.
    pub http: String,
    /// Where other voters were found.
    pub book: AddressBook,
    /// How other voters are reached, and which are let in.
    pub peering: Peering,
    /// How a node without a log begins.
    pub beginning: Beginning,
    /// The other voters of the cluster that it founds.
    pub founders: Vec<Candidate>,
    /// Entries kept for those who follow, in bytes, the large change sets they name included.
    pub retention_bytes: u64,
    /// How long entries are kept for those who follow.
    pub retention: Duration,
    /// Disk space that is kept free: with little more than that left, the log is given up early.
    pub disk_reserve_bytes: u64,
    /// Size of a log segment in bytes.
    pub segment_bytes: u64,
    /// How long a proposal may be without fate before its outcome counts as unknown.
    pub commit_timeout: Duration,
    /// How often a leader says that it is there.
    pub heartbeat: Duration,
    /// Silence of the leader after which another one may be elected; each node waits this long and up to twice that.
    pub election_timeout: Duration,
}

/// How a node without a log begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// Not at all: the log must be there.
    Never,
    /// It founds a new cluster, of itself and the other founders.
    Found,
    /// It waits for a leader to send the log.
    Wait,
}

impl RaftOptions {
    /// The defaults for a node: 256 MiB or 24 h of entries kept, segments of 16 MiB, and the configuration's times.
    pub fn new(cluster: String, node: NodeId, name: NodeName, dir: PathBuf) -> Self {
        Self {
            cluster,
            node,
            name,
            peers_file: dir.with_file_name("peers"),
            dir,
            incarnation: Incarnation::default(),
            addr: String::new(),
            http: String::new(),
            book: AddressBook::default(),
            peering: Peering::default(),
            beginning: Beginning::Never,
            founders: Vec::new(),
            retention_bytes: LimitSettings::LOG_KEEP_BYTES,
            retention: LimitSettings::LOG_KEEP_AGE,
            disk_reserve_bytes: 0,
            segment_bytes: 16 << 20,
            commit_timeout: Settings::COMMIT_TIMEOUT,
            heartbeat: Settings::HEARTBEAT,
            election_timeout: Settings::ELECTION_TIMEOUT,
        }
    }

    /// Without word of a leader for longer there is none, and no election brings one: several of them fit into it.
    pub fn silence_max(&self) -> Duration {
        (self.lease() * 3).max(Duration::from_millis(1500))
    }

    /// For how long followers promise no vote to another one after they heard from their leader.
    pub fn lease(&self) -> Duration {
        self.election_timeout * 2
    }
}
