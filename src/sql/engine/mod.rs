//! The process that executes SQL: one more application on the node's mount.
//!
//! Owns connections, streams and their limits. Speaks HTTP/2 with the daemon over its standard input, and ends with it.
//! Knows nothing of the cluster: the daemon says with each request whether this node may write.

mod authorizer;
mod batch;
mod connection;
mod cursor;
mod error;
mod first_word;
mod interrupt;
mod options;
mod pipeline;
mod plan;
mod pool;
mod server;
mod session;
mod statement;
mod streams;

pub use options::{ENGINE_COMMAND, EngineOptions};
pub use server::{
    ABORT_PATH, CURSOR_PATH, PIPELINE_PATH, RIGHTS_HEADER, TXID_HEADER, WRITABLE_HEADER, serve_engine,
};
pub use streams::node_of;
