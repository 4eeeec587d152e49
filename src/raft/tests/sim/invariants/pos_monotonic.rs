//! A database's position only grows while its node runs.

use super::super::history::History;
use crate::types::{DbName, Pos};

/// `pos` is where a database stands now in run `run` of node `node`.
pub fn check(history: &mut History, (node, run): (u64, u64), db: &DbName, pos: Pos) -> Result<(), String> {
    let seen = history.seen.entry((node, run, db.clone())).or_default();
    let before = std::mem::replace(seen, pos.txid_or_zero());
    if before > pos.txid_or_zero() {
        return Err(format!("{db} on n{node} went back from {before:x} to {pos}"));
    }
    Ok(())
}
