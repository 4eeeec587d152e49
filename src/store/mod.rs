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
mod error;
mod event;
mod freshness;
mod group;
mod layout;
mod lease;
mod members;
mod names;
mod namespace;
mod open;
mod rename;
mod roles;
mod run_sink;
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
pub use layout::Layout;
pub use members::{Candidate, ClusterError, Member, MemberChange, Standing};
pub use names::{Child, NamesDone};
pub use namespace::{NameEntry, NameList, recorded_root};
pub use store::{DbStatus, PrimaryInfo, Store, StoreOptions};
pub use upload::Upload;
