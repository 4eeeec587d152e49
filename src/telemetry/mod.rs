//! What a node tells its operator: the log on stderr, the metrics, and traces where they are wanted.
//!
//! Owns the names of all metrics, the form of the log, and the export of traces. Never opens a port: `http` shows the
//! metrics.

mod commit_times;
mod log;
pub mod metrics;
pub mod traces;

pub use commit_times::CommitTimes;
pub use log::init_log;
pub use metrics::Exposition;
pub use traces::{Traces, send_traces};
