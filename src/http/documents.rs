use serde::{Deserialize, Serialize};

use super::Overview;
use crate::store::{DbStatus, Member, PrimaryInfo};

/// `GET /v1/status`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StatusDocument {
    /// Name of the node that answers.
    pub node: String,
    /// `voter` or `replica`.
    pub role: String,
    /// The primary; `null` where unknown.
    pub primary: Option<PrimaryDocument>,
    /// Why nothing can be written; left out while there is a quorum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_quorum: Option<String>,
    /// The Raft term; 0 where unknown.
    pub term: u64,
    /// Last log entry applied.
    pub index: u64,
    /// The databases by name.
    pub databases: Vec<DatabaseDocument>,
    /// The nodes of the cluster this node knows.
    pub members: Vec<MemberDocument>,
}

/// Who is primary.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PrimaryDocument {
    /// Its name.
    pub name: String,
    /// The URL of its API.
    pub http: String,
}

/// One database.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DatabaseDocument {
    /// Its name.
    pub name: String,
    /// Its last transaction, 16 hex digits; zeros before the first.
    pub txid: String,
    /// Checksum of its pages, 16 hex digits.
    pub checksum: String,
    /// `wal` or `rollback`; `null` while it is empty.
    pub mode: Option<String>,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Whether applications of this node have it open.
    pub attached: bool,
}

/// One node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MemberDocument {
    /// Its name.
    pub name: String,
    /// `voter` or `replica`.
    pub role: String,
    /// HOST:PORT of its gRPC.
    pub addr: String,
    /// Whether it was heard of lately.
    pub healthy: bool,
    /// For how long it has been behind, in milliseconds; `null` where unknown.
    pub lag_ms: Option<u64>,
    /// Log entries it still lacks.
    pub lag_entries: u64,
    /// `votes`; `joining`: gets the log and votes when it is close behind; `standby`: gets the log and does not vote;
    /// `follows`: a replica.
    #[serde(default)]
    pub standing: String,
}

impl StatusDocument {
    /// The document of a node.
    pub fn new(overview: &Overview, databases: Vec<DbStatus>, members: Vec<Member>) -> Self {
        Self {
            node: overview.name.to_string(),
            role: overview.role.to_string(),
            primary: overview.primary.clone().map(PrimaryDocument::from),
            no_quorum: overview.no_quorum.clone(),
            term: overview.term,
            index: overview.index.get(),
            databases: databases.into_iter().map(DatabaseDocument::from).collect(),
            members: members.into_iter().map(MemberDocument::from).collect(),
        }
    }
}

impl From<PrimaryInfo> for PrimaryDocument {
    fn from(primary: PrimaryInfo) -> Self {
        Self { name: primary.name, http: primary.http }
    }
}

impl From<DbStatus> for DatabaseDocument {
    fn from(db: DbStatus) -> Self {
        Self {
            name: db.name.to_string(),
            txid: format!("{:016x}", db.pos.txid_or_zero()),
            checksum: db.pos.checksum.to_string(),
            mode: db.mode.map(|mode| mode.to_string()),
            size_bytes: db.size_bytes,
            attached: db.attached,
        }
    }
}

impl From<Member> for MemberDocument {
    fn from(member: Member) -> Self {
        Self {
            name: member.name.to_string(),
            role: member.role.to_string(),
            addr: member.addr,
            healthy: member.healthy,
            lag_ms: member.lag.map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX)),
            lag_entries: member.lag_entries,
            standing: member.standing.to_string(),
        }
    }
}
