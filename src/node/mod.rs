//! Wiring: what a node consists of, the order it starts and stops in.
//!
//! Owns the data directory's lock and identity, the tasks between the layers, and the supervised program. Knows
//! every layer; none knows it. Called by `cli`.

mod addresses;
mod assemble;
mod backup;
mod checkpoints;
mod child;
mod control;
mod copy_progress;
mod current_role;
mod descriptors;
mod disk_guard;
mod doctor;
mod earlier_mounts;
mod endpoint_security;
mod entering;
mod error;
mod event_counters;
mod followed;
mod followers_of_voters;
mod founding;
mod guard;
mod history;
mod hold_primary;
mod holds;
mod hook;
mod identity;
mod joining;
mod lag;
mod lifecycle;
mod member_facts;
mod preparing;
mod primary;
mod proxying;
mod quorum;
mod recover;
mod replication;
mod restore_from;
mod run_as;
mod scrubs;
mod signals;
mod sql_engine;
mod sql_site;
mod start_mode;
mod supervise;
mod systemd;
mod this_node;
mod view;
mod voter;
mod watch;
mod watchdog;

pub use crate::mount::GUARD_COMMAND;
pub use addresses::hostname;
pub use doctor::{Finding, Health, examine};
pub use error::NodeError;
pub use identity::{DataDir, FORMAT_VERSION, IdentityFile, NodeIdentity, draw_cluster_id};
pub use lifecycle::run;
pub use recover::Recovery;
pub use watch::guard_mount;

/// Runs work that blocks beside the runtime's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, NodeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| NodeError::System(format!("a task of the node ended early: {error}")))
}
