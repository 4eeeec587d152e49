//! SQL over HTTP as the daemon sees it: who asks, of which database, how fresh, and which node does it.
//!
//! Owns the routes, the wait for transactions that clients have seen, and the way to the primary. Never opens a database,
//! and never sends a request twice that may have been sent. Knows its node only as [`SqlSite`]. Called by `node`.

mod ask;
mod document;
mod engine_link;
mod freshness;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod refusal;
mod remote;
mod router;
mod service;
mod site;
mod target;

pub use router::{Gateway, router};
pub use site::{NodeAddress, SqlSite};
