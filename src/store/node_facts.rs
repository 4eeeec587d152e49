use std::time::Duration;

/// What a node says of itself to those who operate the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeFacts {
    /// Version of its program.
    pub version: String,
    /// Since its process started.
    pub uptime: Duration,
    /// Bytes that are free below its data directory; `None` where that cannot be told.
    pub disk_free_bytes: Option<u64>,
    /// Whether its kernel reads and writes WAL databases itself.
    pub passthrough: bool,
    /// Bytes of its databases that are in place, and of all, while it fetches them.
    pub copying: Option<(u64, u64)>,
}

/// Gives a node's facts whenever they are asked for. May read the file system.
pub type FactsSource = Box<dyn Fn() -> NodeFacts + Send + Sync>;
