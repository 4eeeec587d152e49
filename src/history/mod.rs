//! Local history: what databases were in the last hour, and how to read it.
//!
//! Owns `history/` in the data directory: for each database a base (a copy of its pages at the oldest point) and the change
//! sets since then. Follows the committed log as a replica does, so no commit waits for it and none fails with it: what
//! cannot be written is a gap, which is told. Never writes to a database. Called by `mount` and `node`.
//!
//! ```text
//! history/cursor                                 the last log entry that is in here
//! history/DB/.history/INDEX/generation           text: what the base is, where the points begin, how it ended
//! history/DB/.history/INDEX/base                 pages at the oldest point
//! history/DB/.history/INDEX/MIN.sets             following change sets, one LTX file behind the other
//! history/DB/.history/INDEX/MIN-MAX.ltx          the same merged into one LTX file
//! ```
//!
//! A generation (`INDEX`: the log entry it begins with) is an unbroken chain of transactions. A drop, a lost entry or a full disk
//! ends it; the next one begins with a base of its own.

mod base;
mod directory;
mod error;
mod generation;
mod keeper;
mod limits;
mod merge;
mod meta;
mod options;
mod point;
mod points;
mod segment;
mod service;
#[cfg(test)]
mod tests;

pub use error::HistoryError;
pub use options::HistoryOptions;
pub use point::{Point, PointHeader, PointId};
pub use points::{Gap, Known, Transactions};
pub use segment::Transaction;
pub use service::History;
