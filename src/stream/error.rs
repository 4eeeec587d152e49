use std::io;

use crate::store::{LogReadError, StoreError};
use crate::types::LogIndex;

/// What can go wrong between two nodes, a variant per reaction.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The entries asked for are gone: take a snapshot.
    #[error("log entry {from} is purged on the upstream node, its oldest is {first}")]
    Purged {
        /// What was asked for.
        from: LogIndex,
        /// What is left.
        first: LogIndex,
    },
    /// The peer belongs to another cluster: never touch its data or ours.
    #[error(
        "node belongs to cluster {theirs}, not to {ours}: join a node of the same cluster, or use an empty data directory"
    )]
    ForeignCluster {
        /// The cluster of the one who reports.
        ours: String,
        /// The cluster of the peer.
        theirs: String,
    },
    /// The peer speaks a wire this program does not know.
    #[error("peer speaks replication protocol {theirs}, this program up to {ours}: upgrade the older node")]
    Protocol {
        /// The peer's version.
        theirs: u32,
        /// This program's version.
        ours: u32,
    },
    /// The peer does not let this node in: asking again does not help until an operator acts.
    #[error("{0}")]
    Denied(String),
    /// The peer has no such database, blob or entry (any more).
    #[error("{0} is not there")]
    NotFound(String),
    /// The peer sent or asked for something that breaks the protocol.
    #[error("peer broke the protocol: {0}")]
    Invalid(String),
    /// The peer cannot be reached or the connection broke: try again, or another one.
    #[error("{0}")]
    Unavailable(String),
    /// The node itself is ending.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// This node's databases failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl StreamError {
    /// Whether asking the same peer again cannot help until an operator acts.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            StreamError::ForeignCluster { .. } | StreamError::Protocol { .. } | StreamError::Denied(_)
        )
    }
}

impl From<LogReadError> for StreamError {
    fn from(error: LogReadError) -> Self {
        match error {
            LogReadError::Purged { from, first } => StreamError::Purged { from, first },
            LogReadError::Io(source) => StreamError::Io { what: "reading the log".into(), source },
        }
    }
}
