//! Carries the stream between nodes over gRPC.
//!
//! Owns the listener's settings, the wire's limits and the mapping of errors to gRPC statuses; decides nothing about
//! what is sent. Called by `node`.

mod accept;
mod cluster;
mod compress;
mod convert;
mod founding;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod status;

mod client;
mod server;
#[cfg(test)]
mod tests;

pub use accept::Elsewhere;
pub use client::{Compression, GrpcConnector, describe, endpoint};
pub use cluster::{ClusterServer, OtherVoter, RemoteCluster};
pub use founding::{Answer, Meeting, Met, founding_routes, meet};
pub use server::{ReplicationService, Services, routes, serve};
pub use status::{from_status, to_status};

/// Messages of the wire, generated from `proto/replication.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod wire {
    tonic::include_proto!("skein.replication.v1");
}

/// Largest message accepted from a peer, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;
