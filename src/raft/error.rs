use std::io;
use std::path::PathBuf;

use super::segment_log::LogError;

/// Why Raft did not start or ended.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// Neither a cluster nor the wish for one.
    #[error("{0} holds no cluster; found one with --bootstrap, or join one with --join HOST:PORT")]
    NoCluster(PathBuf),
    /// The data directory went back in time.
    #[error("{0}")]
    Outdated(String),
    /// The log's files.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Raft itself.
    #[error("raft: {0}")]
    Raft(String),
    /// A system call failed.
    #[error("starting raft: {0}")]
    Io(#[from] io::Error),
}
