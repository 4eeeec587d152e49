//! Order: the cluster's log over Raft. Every change of every database goes through it.
//!
//! Owns the log's files and openraft; never touches a database itself: entries go to a [`LogTarget`]. Words of Raft
//! (leader, follower) stay inside this module.

mod acks;
mod codec;
mod committed;
mod driver;
mod error;
mod first_committed;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod handle;
mod holders;
mod incarnations;
mod introduce;
mod log_store;
mod membership;
mod node;
mod options;
mod pending;
mod primary;
mod promotion;
mod recover;
mod retention;
mod runtime;
mod segment_log;
mod sink;
mod start;
mod state_machine;
mod target;
#[cfg(test)]
mod tests;
mod transport;
mod types;

pub use error::RaftError;
pub use incarnations::Incarnation;
pub use node::RaftNode;
pub use options::{Beginning, RaftOptions};
pub use primary::PrimaryState;
pub use promotion::VOTERS_MAX;
pub use recover::{Survivor, SurvivorLog};
pub use target::LogTarget;
pub use transport::{AddressBook, RaftServer};
