//! The set of databases of a node, and the traits through which the layers below it meet.

mod apply;
mod apply_names;
mod behind;
mod change;
mod claims;
mod commit_sink;
mod committed_log;
mod control;
mod copies;
mod copying;
mod directory_claims;
mod durable_log;
mod earlier_mounts;
mod error;
mod event;
mod freshness;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod group;
mod holds;
mod layout;
mod lease;
mod log_positions;
mod members;
mod names;
mod namespace;
mod node_facts;
mod open;
mod proof;
mod rename;
mod roles;
mod run_sink;
mod scrub;
#[allow(clippy::module_inception)]
mod store;
mod upload;

pub use crate::db::Lease;
pub use change::{Change, ChangeError, ChangeKind, Origin};
pub use claims::{RenameDone, Renamed};
pub use commit_sink::CommitSink;
pub use committed_log::{CommittedLog, LogReadError};
pub use control::{ClusterAnswer, ClusterControl};
pub use copying::{CopyProgress, CopyUnderWay, Copying};
pub use error::StoreError;
pub use event::StoreEvent;
pub use freshness::LagSource;
pub use holds::{Hold, HoldError, PrimaryHolds};
pub use layout::Layout;
pub use members::{Candidate, ClusterError, Member, MemberChange, Preparation, Standing};
pub use names::{Child, NamesDone};
pub use namespace::{NameEntry, NameList, recorded_root};
pub use node_facts::{FactsSource, NodeFacts};
pub use store::{DbStatus, PrimaryInfo, Repair, Store, StoreOptions};
pub use upload::Upload;
