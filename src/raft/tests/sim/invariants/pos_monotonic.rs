//! What a name stands for only moves on in the log while its node runs.

use super::super::history::History;
use crate::types::{DbName, LogIndex};

/// `index` is the entry that a database stands at now in run `run` of node `node`.
pub fn check(
    history: &mut History,
    (node, run): (u64, u64),
    db: &DbName,
    index: LogIndex,
) -> Result<(), String> {
    if index == LogIndex::ZERO {
        // It is just being made: the first entry comes with the first transaction.
        return Ok(());
    }
    let seen = history.seen.entry((node, run, db.clone())).or_default();
    let before = std::mem::replace(seen, index);
    if before > index {
        return Err(format!("{db} on n{node} went back from entry {before} to {index}"));
    }
    Ok(())
}
