//! What a node tells its operator: the log on stderr, and the metrics.
//!
//! Owns the names of all metrics and the form of the log. Never opens a port: `http` shows the metrics.

mod log;
pub mod metrics;

pub use log::init_log;
pub use metrics::Exposition;
