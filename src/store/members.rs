use std::time::Duration;

use crate::types::{NodeId, NodeName, Role};

/// One node of the cluster as `skein status` shows it.
#[derive(Clone, PartialEq, Debug)]
pub struct Member {
    /// Its name.
    pub name: NodeName,
    /// What it is.
    pub role: Role,
    /// HOST:PORT of its gRPC.
    pub addr: String,
    /// Whether it was heard of lately.
    pub healthy: bool,
    /// How long ago it had everything; `None` where unknown.
    pub lag: Option<Duration>,
    /// Entries it still lacks.
    pub lag_entries: u64,
    /// Its part in quorums.
    pub standing: Standing,
}

/// Whether what an application needs done once for each release, before it starts, has been done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Preparation {
    /// The release; empty where it has no name.
    pub release: String,
    /// Nothing is left to do for it.
    pub done: bool,
}

/// What a node's part in quorums is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It counts.
    Votes,
    /// It receives the log, and shall count once it is close behind and makes the number of voters an odd one.
    Joining,
    /// It receives the log and does not count, by an operator's wish.
    Standby,
    /// It follows the stream only.
    Follows,
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Standing::Votes => "votes",
            Standing::Joining => "joining",
            Standing::Standby => "standby",
            Standing::Follows => "follows",
        })
    }
}

/// A node that wants to be a member of the Raft group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// HOST:PORT of its gRPC.
    pub addr: String,
    /// URL of its HTTP.
    pub http: String,
    /// It has been a member before, so that not to know it means that it was removed.
    pub returning: bool,
}

/// An operator's wish.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MemberChange {
    /// A voter leaves the group for good.
    Remove(NodeName),
    /// A standby shall vote.
    Promote(NodeName),
    /// A voter shall only receive the log.
    Demote(NodeName),
}

/// Why the cluster does not do what it is asked to, a variant per reaction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// Ask this node's primary instead: HOST:PORT of its gRPC where it is known.
    #[error("{}", match .0 { Some(addr) => format!("the primary is at {addr}"), None => "no primary is known; try again".to_owned() })]
    NotPrimary(Option<String>),
    /// Never; the text names the remedy.
    #[error("{0}")]
    Refused(String),
    /// It was a member and was removed; the text says how it is let in again.
    #[error("{0}")]
    Removed(String),
    /// Too few voters answer; the text says how many.
    #[error("no quorum: {0}")]
    NoQuorum(String),
    /// Not now: try again.
    #[error("{0}")]
    Unavailable(String),
}
