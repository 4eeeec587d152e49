use std::time::Duration;

use crate::types::{NodeName, Role};

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
}
