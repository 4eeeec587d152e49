//! Simulations of several voters: the real Raft, log, state machine and store in one thread, in simulated time, over a
//! network, disks and clocks that fail by a seed.
//!
//! Nothing here knows the real clock, the real network or chance: the same seed gives the same run, line by line.
//! `SKEIN_SIM_SEEDS=17` or `SKEIN_SIM_SEEDS=0..5000` chooses seeds, `SKEIN_SIM_LOG=1` shows what happens;
//! see `scripts/sim`.
//!
//! A node's clock runs up to 5 % fast or slow: its times, not its clock, are made shorter or longer, which is the same.
//!
//! That it would notice was tried by breaking the product on purpose; the number of seeds it took, of 100 at most:
//!
//! | broken | seeds |
//! |---|---|
//! | the log is not synced; an entry is acknowledged when it is appended; databases count as durable before they are | 1 |
//! | an append counts before it is on disk | 18 |
//! | a vote is not written down; written and not synced | 4; none |
//! | no lease of the primary; one counted from now on; one of twice the length | 7; 7; 10 |
//! | a primary begins before its first entry is applied | 1 |
//! | a late proposal counts as refused; a lost one is not told so | 2; 30 |
//! | an entry is applied again by a database that has it | 1 |
//! | the log is purged behind what is applied instead of what is durable | 15 |
//! | large change sets are not shipped; not synced; not held by those who are to vote | 1; 1; 11 |
//!
//! None of 100 seeds noticed entries applied before they are on the own disk, a node that votes at once after a restart,
//! clocks 20 % wrong instead of 5 %, quorums counted from openraft's late answers (tests/cluster finds that one by
//! stopping processes), and checks of the bytes left out, where nothing damages bytes: chance hardly brings together what
//! each of them needs.
//!
//! Applications commit to one database or to two at once, drop databases and rename them, also over others; names are taken
//! again. What is seen of that: an entry that is applied to the wrong one of several databases that had a name, in redo after
//! a crash or a power cut, in a fetch by difference, or before its turn; a node that becomes primary and lacks something, or
//! whose databases are not what its log says of them (`store/proof.rs`).
//!
//! Left out: FUSE and the capture of transactions (applications propose change sets that SQLite made on a copy, and drops
//! and renames without a claim), so also what `synchronous=OFF` leaves beyond the log, readers that keep an entry waiting, and
//! a rename over a database that is open; a crash in the middle of a drop or rename (`tests/it/history.rs`); a node
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
