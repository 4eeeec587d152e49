//! The types openraft is instantiated with.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::runtime::Runtime;

/// An encoded change, opaque to Raft.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(pub Bytes);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A member of the Raft group as its membership entries name it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Peer {
    /// The node's name.
    pub name: String,
    /// HOST:PORT of its gRPC.
    pub addr: String,
    /// URL of its HTTP.
    pub http: String,
    /// It is a voter or shall become one when it is close behind; otherwise it only receives the log.
    #[serde(default = "yes")]
    pub votes: bool,
}

/// Members written before there were others voted all.
fn yes() -> bool {
    true
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.addr)
    }
}

openraft::declare_raft_types!(
    /// Skein's Raft: one leader per term, changes as payload.
    pub TypeConfig:
        D = Payload,
        R = (),
        NodeId = u64,
        Node = Peer,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
        AsyncRuntime = Runtime,
);

/// Position of an entry: term and index.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// The leader of a term, as log ids name it.
pub type CommittedLeaderId = openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>;
/// Position of an openraft index in our log: openraft counts from 0, we from 1, so that 0 stands before the first.
pub const fn position(index: u64) -> u64 {
    index + 1
}

/// A vote.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// An entry.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// The members together with the entry that made them so.
pub type Members = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
