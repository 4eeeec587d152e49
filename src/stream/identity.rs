use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::StreamError;
use crate::types::{NodeId, NodeName, Role};

/// Version of the wire that this program speaks; a peer with a newer one is refused.
pub const PROTOCOL_VERSION: u32 = 1;

/// Identity of a cluster, drawn when it is founded: 1 to 64 letters, digits or `-`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClusterId(Arc<str>);

/// A text that cannot identify a cluster.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("cluster id {0:?} is not 1 to 64 letters, digits or '-'")]
pub struct InvalidClusterId(pub String);

impl ClusterId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterId {
    type Err = InvalidClusterId;

    fn from_str(text: &str) -> Result<Self, InvalidClusterId> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidClusterId(text.chars().take(100).collect()))
        }
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a node is, as it tells a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerIdentity {
    /// Its cluster.
    pub cluster: ClusterId,
    /// The node for life.
    pub node: NodeId,
    /// The operator's name for it.
    pub name: NodeName,
    /// The wire it speaks.
    pub protocol_version: u32,
    /// What it is configured as.
    pub role: Role,
    /// URL of its HTTP, empty where it is not told.
    pub http: String,
    /// URL of the proxy in front of its application, empty where it has none.
    pub proxy: String,
}

/// Refuses a peer whose wire is newer than this program's.
///
/// # Errors
/// [`StreamError::Protocol`] where `theirs` is above [`PROTOCOL_VERSION`] or is 0.
pub fn check_version(theirs: u32) -> Result<(), StreamError> {
    if (1..=PROTOCOL_VERSION).contains(&theirs) {
        Ok(())
    } else {
        Err(StreamError::Protocol { theirs, ours: PROTOCOL_VERSION })
    }
}
