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
//! Readers keep the commits of a database waiting on voters (`held.rs`); the node goes on with all others, may become primary
//! meanwhile, or die. What is seen of that: an entry of that database applied before its turn, or durable before it is
//! applied; a primary that writes a database that lacks entries; a node that does not catch up.
//!
//! Left out: FUSE and the capture of transactions (applications propose change sets that SQLite made on a copy, and drops
//! and renames without a claim), so also what `synchronous=OFF` leaves beyond the log, and a rename over a database that is
//! open; a crash in the middle of a drop or rename (`tests/it/history.rs`); a node that stops while time passes for it alone
//! (its messages are held back instead); what a dead primary's applications left in a WAL; the search for a large change
//! set that a voter lacks (it gets it from any disk at once); two nodes that wait for one another.
//!
//! What clients that are not kind (`tests/torture`) once broke, and whether a simulation would see it now:
//!
//! | broken | seen here | else by |
//! |---|---|---|
//! | redo drops a database because nobody could be asked yet, and ignores its later commits | what redo makes of drops and names taken again; not a start without peers | `tests/it/history.rs` |
//! | a follower that is ahead fetches backwards from a primary that lags | yes: at promotion and by `pos_monotonic` | |
//! | a rename over a database is redone with the old index | yes | |
//! | a drop or rename waits for the kernel's lock of the inode, which waits for the daemon | no: no kernel | `tests/it/capture.rs` |
//! | a primary without quorum acknowledges past its lease | the lease, not SQLite's locks | `tests/it/fence.rs` |
//! | a temporary file keeps a node from starting | no: a file appears whole | `tests/it/interrupted_starts.rs` |
//! | large change sets are kept without bound | no: minutes only | `tests/it/bounded_log.rs` |
//! | exports of a WAL that has begun anew, or of a follower after a change of journal mode | no: no WAL | `tests/it/capture.rs` |
//! | reads go back after a crash under `NORMAL` | no: no WAL | `tests/it/returning_nodes.rs` |
//! | a removed voter cannot come back | no: voters are demoted and promoted only | `tests/it/returning_nodes.rs` |
//! | a transaction over two databases is in one of them | yes: one entry of two databases, one of them held | |
//! | two voters wait for one another with a database that was dropped meanwhile | no | `src/stream/lanes/tests.rs` |

mod application;
mod databases;
mod dice;
mod faults;
mod held;
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
