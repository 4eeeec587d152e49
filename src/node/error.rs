use std::path::PathBuf;

use crate::security::SecurityError;
use crate::store::StoreError;

/// Why a node cannot start or go on; each names the subject and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory is not usable.
    #[error("data directory {} {why}", path.display())]
    Data {
        /// The directory.
        path: PathBuf,
        /// What is wrong, and the remedy.
        why: String,
    },
    /// The node's identity is not usable.
    #[error("{} {why}", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong, and the remedy.
        why: String,
    },
    /// The node's place in a cluster contradicts how it is started.
    #[error("{0}")]
    Cluster(String),
    /// An address cannot be listened at.
    #[error("--{option} {addr}: {why}")]
    Listen {
        /// The option the address comes from.
        option: &'static str,
        /// The address.
        addr: String,
        /// What is wrong, and the remedy.
        why: String,
    },
    /// Certificates are not usable.
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// The mount is not possible.
    #[error("mount {}: {why}", path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// What is wrong, and the remedy.
        why: String,
    },
    /// The databases cannot be served.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The program to run cannot be run.
    #[error("command {command:?}: {why}")]
    Command {
        /// Its name.
        command: String,
        /// What is wrong.
        why: String,
    },
    /// The backup cannot be made as it is configured.
    #[error("{0}")]
    Backup(String),
    /// The log or the stream from another node failed for good.
    #[error("{0}")]
    Replication(String),
    /// The system refuses something that it always gives.
    #[error("{0}")]
    System(String),
}
