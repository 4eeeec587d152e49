//! Simulations of several voters: the real Raft, log, state machine and store in one thread, in simulated time, over a
//! network, disks and clocks that fail by a seed.
//!
//! Nothing here knows the real clock, the real network or chance: the same seed gives the same run, line by line.
//! `SKEIN_SIM_SEEDS=17` or `SKEIN_SIM_SEEDS=0..5000` chooses seeds, `SKEIN_SIM_LOG=1` shows what happens;
//! see `scripts/sim`.
//!
//! A node's clock runs up to 5 % fast or slow: its times, not its clock, are made shorter or longer, which is the same.
//!
//! Left out: FUSE and the capture of transactions (applications propose change sets that SQLite made on a copy); a node
//! that stops while time passes for it alone (its messages are held back instead); what a dead primary's applications left
//! in a WAL; the search for a large change set that a voter lacks (it gets it from any disk at once).

mod application;
mod databases;
mod dice;
mod faults;
mod history;
mod invariants;
mod large;
mod links;
mod network;
mod node;
mod ordered_watch;
mod peers;
mod power_cut;
mod runs;
mod transaction;
mod world;

pub use dice::{Draws, is_simulated};
pub use ordered_watch::OrderedWatch;

/// Whether a person wants to see what happens.
fn is_loud() -> bool {
    std::env::var_os("SKEIN_SIM_LOG").is_some()
}
