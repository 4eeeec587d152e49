use std::io;

use super::identity::ClusterId;
use super::{Globs, RecentLog};
use crate::types::{NodeId, NodeName};

/// Stores the id of the cluster this node joined, before anything of it is applied.
pub type AdoptCluster = Box<dyn Fn(&ClusterId) -> io::Result<()> + Send + Sync>;

/// Whom to follow, and as whom.
pub struct FollowOptions {
    /// HOST:PORT of nodes of the cluster; any that can be reached is followed.
    pub upstreams: Vec<String>,
    /// This node.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// HOST:PORT of its own gRPC, empty where it serves nobody.
    pub advertise: String,
    /// Its cluster; `None` before it joined one.
    pub cluster: Option<ClusterId>,
    /// Called when it joins.
    pub adopt: AdoptCluster,
    /// The databases it wants.
    pub globs: Globs,
    /// Entries kept for nodes that follow this one, in bytes.
    pub recent_bytes_max: usize,
    /// Entries that may wait for slow databases, in bytes; above it, they are fetched by difference.
    pub queue_bytes_max: usize,
}

impl FollowOptions {
    /// The defaults for a node that follows every database of any of `upstreams`.
    pub fn new(upstreams: Vec<String>, node: NodeId, name: NodeName) -> Self {
        Self {
            upstreams,
            node,
            name,
            advertise: String::new(),
            cluster: None,
            adopt: Box::new(|_| Ok(())),
            globs: Globs::all(),
            recent_bytes_max: RecentLog::BYTES_MAX,
            queue_bytes_max: 64 << 20,
        }
    }
}
