//! Wiring: what a node consists of, the order it starts and stops in.
//!
//! Owns the data directory's lock and identity, the tasks between the layers, and the supervised program. Knows
//! every layer; none knows it. Called by `cli`.

mod error;
mod identity;

pub use error::NodeError;
pub use identity::{DataDir, FORMAT_VERSION, Identity, draw_cluster_id};
