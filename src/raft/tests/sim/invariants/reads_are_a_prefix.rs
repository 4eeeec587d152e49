//! Whatever is seen of a database on any node is a state that was committed.

use super::super::history::History;
use crate::ltx::page_checksum;
use crate::store::{Store, StoreError};
use crate::types::{Checksum, DbName, LogIndex, Pgno, Pos};

/// A position is one of the committed history: nothing that could still be lost is seen.
pub fn position(history: &History, node: u64, db: &DbName, pos: Pos) -> Result<(), String> {
    if pos.txid.is_none() || history.stood_at(db, pos, LogIndex::ZERO) {
        return Ok(());
    }
    Err(format!("{db} on n{node} is at {pos}, which nothing committed leads to"))
}

/// What a reader gets are the pages of a committed position.
pub fn read(history: &History, node: u64, db: &DbName, store: &Store) -> Result<(), String> {
    let mut view = match store.snapshot(db) {
        Ok(view) => view,
        Err(StoreError::NotFound(_)) => return Ok(()),
        Err(error) => return Err(format!("{db} on n{node} cannot be read: {error}")),
    };
    let header = view.header();
    position(history, node, db, header.pos)?;
    let mut page = vec![0; header.page_size.len()];
    let mut sum = Checksum::EMPTY;
    for pgno in (1..=header.commit.get()).filter_map(Pgno::new) {
        view.read_page(pgno, &mut page).map_err(|error| error.to_string())?;
        sum = sum ^ page_checksum(pgno, &page);
    }
    if sum == header.pos.checksum {
        return Ok(());
    }
    Err(format!("a reader of {db} on n{node} at {} gets pages with checksum {sum}", header.pos))
}
