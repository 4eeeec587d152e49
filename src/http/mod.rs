//! The API over HTTP: the server of a node, and the client of the command line.
//!
//! Owns routes, JSON forms, and the mapping of errors to statuses. Knows a node only as [`Api`], so it is tested
//! without one. Bodies are streamed: nothing here holds a whole database.

mod api;
mod backup;
mod client;
mod cluster;
mod context;
mod dashboard;
mod documents;
mod events;
mod export;
mod gauges;
mod history;
mod import;
mod litefs_events;
mod problem;
mod protect;
mod router;
mod serve;
#[cfg(test)]
mod tests;
mod verify;
mod wait;

pub use api::{Api, Details, ExportSink, Import, Overview};
pub use axum::Router;
pub use client::{Client, ClientError, Credentials, escape_name};
pub use cluster::{AddRequest, HandoffDocument, HandoffRequest, NewestDocument};
pub use documents::{
    CopiedDocument, CopyDocument, DatabaseDocument, MemberDocument, PrimaryDocument, StatusDocument,
};
pub use history::{
    BranchRequest, DiffDocument, GapDocument, HistoryDocument, RewindRequest, TransactionDocument,
};
pub use problem::Reason;
pub use protect::{Protection, protect};
pub use router::router;
pub use serve::{serve, serve_peers};
pub use verify::{CheckDocument, NodeDocument};
