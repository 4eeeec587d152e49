use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Name of the hidden command that is the engine.
pub const ENGINE_COMMAND: &str = "sql-engine";

/// What the engine is told at its start, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EngineOptions {
    /// The node's name, which its batons begin with.
    pub node: String,
    /// Where the databases are.
    pub mount: PathBuf,
    /// Connections to one database at a time.
    pub connections_max: usize,
    /// Streams at a time that wait for their clients.
    pub streams_max: usize,
    /// How long a stream waits for its client.
    pub stream_idle_max: Duration,
    /// How long a transaction may take.
    pub transaction_max: Duration,
    /// How long a statement may take.
    pub statement_max: Duration,
    /// How long a statement waits for another writer, or for a connection.
    pub busy_timeout: Duration,
    /// Rows of one answer.
    pub rows_max: u64,
    /// Bytes of one answer, of a statement, and of a value.
    pub bytes_max: usize,
}
