//! Ships committed change sets to replicas, and follows them.
//!
//! Owns the logic of both ends: what is sent from where ([`Serving`]), and how a replica stays in step
//! ([`Follower`]). Never touches the network: `rpc` carries [`Upstream`] over gRPC. Called by `rpc` and `node`.

mod backoff;
mod error;
mod followers;
mod frame;
mod identity;
mod source;
mod target;
mod upstream;

mod recent;
mod send_snapshot;
mod serve;

mod applier;
mod fetch;
mod follow;
mod follow_options;
mod lanes;
mod relay;
mod resync;
mod session;
mod status;

pub use crate::types::{Globs, InvalidGlob};
pub use error::StreamError;
pub use followers::Followers;
pub use frame::{Frame, Heartbeat, Hello, ListedDatabase, Listing, PrimaryView};
pub use identity::{ClusterId, InvalidClusterId, PROTOCOL_VERSION, PeerIdentity};
pub use recent::RecentLog;
pub use send_snapshot::{SnapshotPiece, open_blob, send_blob, send_snapshot};
pub use serve::{FollowSession, NamesTaken, Serving};
pub use source::{PageSource, SnapshotSource};
pub use status::FollowStatus;
pub use target::{BlobSink, ReplicaTarget};
pub use upstream::{Acks, Connector, PageStream, Upstream};

pub use applier::{Applier, ApplierOptions, Sources};
pub use follow::Follower;
pub use follow_options::{AdoptCluster, FollowOptions};

/// Largest piece of a blob, of a log entry or of a run of pages in one message, in bytes.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Largest log entry a follower puts together, in bytes.
pub const ENTRY_BYTES_MAX: usize = 256 << 20;
