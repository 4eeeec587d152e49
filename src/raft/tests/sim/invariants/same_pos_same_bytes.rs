//! Equal positions mean equal bytes, on whatever node and at whatever time.

use super::super::history::History;
use crate::types::{DbName, Pos};

/// `bytes` are the database file of a node that stands at `pos`.
pub fn check(history: &mut History, node: u64, db: &DbName, pos: Pos, bytes: &[u8]) -> Result<(), String> {
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64GoIso, bytes);
    let key = (db.clone(), pos.txid_or_zero(), pos.checksum.get());
    let known = *history.bytes.entry(key).or_insert(sum);
    if known == sum {
        return Ok(());
    }
    Err(format!("{db} at {pos} has other bytes on n{node} than were seen before"))
}
