//! The HTTP proxy in front of the application: reads are served here, writes where the primary is.
//!
//! Owns what a request is (read or write), the cookie by which clients read what they wrote, where writes go and when
//! they wait, and the gate that a planned move of the primary closes. Never looks into a database, and never sends a
//! request twice that may have been sent. Knows its node only as [`Site`]. Called by `node`.

mod access_log;
mod answer;
mod body;
mod cookie;
mod forward;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gate;
mod headers;
mod node_connector;
mod read;
mod rules;
mod server;
mod service;
mod site;
#[cfg(test)]
mod tests;
mod upgrade;
mod upstream;
mod write;
mod write_targets;

pub use cookie::seen_in_cookie;
pub use gate::{GateState, Passage, Pause, WriteGate};
pub use node_connector::{NodeConnector, innermost, node_client};
pub use server::serve;
pub use site::{NodeSite, Site};
