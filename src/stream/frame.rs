use bytes::Bytes;

use super::{ClusterId, Globs};
use crate::store::{NameList, PrimaryInfo};
use crate::types::{DbName, LogIndex, NodeId, NodeName, Pos};

/// What a follower says first.
#[derive(Clone, PartialEq, Debug)]
pub struct Hello {
    /// The cluster it believes to follow.
    pub cluster: ClusterId,
    /// The wire it speaks.
    pub protocol_version: u32,
    /// Its node.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// HOST:PORT of its own gRPC, empty where it serves nobody.
    pub addr: String,
    /// The first entry it lacks.
    pub from: LogIndex,
    /// The databases it wants.
    pub globs: Globs,
}

/// One message to a follower: entries in order, a sign of life, or both.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Frame {
    /// Consecutive entries; empty bytes where the entry concerns no database of the follower.
    pub entries: Vec<(LogIndex, Bytes)>,
    /// The sender's last applied entry when the frame was made.
    pub applied: LogIndex,
    /// Who is primary, repeated while idle.
    pub heartbeat: Option<Heartbeat>,
}

/// A sign of life.
#[derive(Clone, PartialEq, Debug)]
pub struct Heartbeat {
    /// The cluster as the sender sees it.
    pub view: PrimaryView,
    /// The sender's clock, in milliseconds since 1970.
    pub timestamp_ms: i64,
}

/// The cluster's primary as a node knows it, and how it came to know.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PrimaryView {
    /// The primary; `None` where unknown.
    pub primary: Option<PrimaryInfo>,
    /// The Raft term it is primary in.
    pub term: u64,
    /// The nodes this node follows, nearest first; empty on a voter. A node that finds itself here follows itself.
    pub path: Vec<NodeId>,
    /// HOST:PORT of the voters: where to go when the node that is followed is lost.
    pub voters: Vec<String>,
}

/// The databases of a node.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Listing {
    /// All databases are at least as new as this entry.
    pub applied: LogIndex,
    /// Those with content, by name.
    pub databases: Vec<ListedDatabase>,
    /// Attributes, directories and databases without content; `None` from a node of a version without them.
    pub names: Option<NameList>,
}

/// One of them.
#[derive(Clone, PartialEq, Debug)]
pub struct ListedDatabase {
    /// Its name.
    pub name: DbName,
    /// Where it stood.
    pub pos: Pos,
    /// Its size in bytes; 0 where that is not told.
    pub size_bytes: u64,
}
