//! The set of databases of a node, and the traits through which the layers below it meet.

mod change;
mod commit_sink;
mod committed_log;
mod layout;
mod members;

pub use change::{Change, ChangeError, ChangeKind, Origin};
pub use commit_sink::CommitSink;
pub use committed_log::{CommittedLog, LogReadError};
pub use layout::Layout;
pub use members::Member;

mod error;
#[allow(clippy::module_inception)]
mod store;
pub use error::StoreError;
pub use store::{DbStatus, PrimaryInfo, Store, StoreEvent, StoreOptions, Upload};
