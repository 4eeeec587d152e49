//! PLACEHOLDER for `crate::raft`, to be deleted with the merge of the log: the same names, and a start that refuses.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::NodeError;
use crate::io::blobs::BlobStore;
use crate::store::{CommitSink, CommittedLog, Member, PrimaryInfo, Store};
use crate::types::{NodeId, NodeName};

/// What the log is opened with.
#[allow(dead_code, reason = "the real log reads them")]
pub(super) struct RaftOptions {
    pub(super) dir: PathBuf,
    pub(super) cluster: String,
    pub(super) node: NodeId,
    pub(super) name: NodeName,
    pub(super) advertise: String,
    pub(super) advertise_http: String,
    /// Found the cluster where the log is empty.
    pub(super) bootstrap: bool,
}

/// Who is primary, as the log knows it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct PrimaryState {
    /// The primary, also where it is this node.
    pub(super) primary: Option<PrimaryInfo>,
    /// Whether this node is primary: leader, everything applied, within its lease.
    pub(super) is_self: bool,
    /// The term.
    pub(super) term: u64,
}

/// This node's part in the Raft group.
pub(super) enum RaftNode {}

impl RaftNode {
    pub(super) async fn start(
        _options: RaftOptions,
        _target: Arc<Store>,
        _blobs: Arc<BlobStore>,
    ) -> Result<Self, NodeError> {
        Err(NodeError::Replication(
            "this build has no log, so no voter can run; start with --role replica".into(),
        ))
    }

    pub(super) fn sink(&self) -> Arc<dyn CommitSink> {
        match *self {}
    }

    pub(super) fn log(&self) -> Arc<dyn CommittedLog> {
        match *self {}
    }

    pub(super) fn watch_primary(&self) -> watch::Receiver<PrimaryState> {
        match *self {}
    }

    pub(super) fn members(&self) -> Vec<Member> {
        match *self {}
    }

    pub(super) fn term(&self) -> u64 {
        match *self {}
    }

    pub(super) async fn shutdown(&self) {
        match *self {}
    }
}
