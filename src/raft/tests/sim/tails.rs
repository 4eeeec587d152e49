//! Tails: what applications of a primary had written under `synchronous=NORMAL` when it died, and no log has.

use std::path::{Path, PathBuf};

use super::dice;
use super::node::file_of;
use super::transaction::{Kind, kinds};
use super::world::{Live, World};
use crate::db::FileKind;
use crate::store::Layout;

/// Numbers of transactions that are no proposals.
const FIRST: u64 = 1 << 40;

/// A transaction in the WAL that a node left behind.
#[derive(Clone, Debug)]
pub struct Tail {
    /// The node.
    pub node: u64,
    /// What the transaction wrote.
    pub text: String,
}

/// Puts a WAL with a transaction beside a database of a node that dies as primary; `next` is what its next run begins
/// with.
pub fn leave(world: &World, live: &Live, next: &Layout) -> Result<(), String> {
    if !next.primary_since().exists() || dice::one_in(2) {
        return Ok(());
    }
    let may = |kind: &Kind| {
        let committed = live.store.get(&kind.db).is_some_and(|database| database.pos().txid.is_some());
        let there = next.database(&kind.db).path(FileKind::Database).exists();
        kind.mode == 2 && committed && there
    };
    let Some(kind) = dice::pick(&kinds().into_iter().filter(may).collect::<Vec<_>>()) else { return Ok(()) };
    let number = FIRST + world.history().tails.len() as u64;
    let text = format!("tail-{number:016x}-end");
    let image = std::fs::read(file_of(&live.store, &kind.db)).map_err(|error| error.to_string())?;
    let wal = wal_of(&image, number, &text, &world.root.join("tail")).map_err(|error| error.to_string())?;
    std::fs::write(next.database(&kind.db).path(FileKind::Wal), wal).map_err(|error| error.to_string())?;
    world.note(format!("n{} leaves {text} in the log of {}", live.id, kind.db));
    world.history().tails.push(Tail { node: live.id, text });
    Ok(())
}

/// The WAL that SQLite writes for a transaction on `image`.
fn wal_of(
    image: &[u8],
    number: u64,
    text: &str,
    scratch: &Path,
) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    std::fs::write(scratch, image)?;
    let connection = rusqlite::Connection::open(scratch)?;
    connection.execute_batch("PRAGMA synchronous = OFF; PRAGMA wal_autocheckpoint = 0;")?;
    connection.execute("INSERT INTO done VALUES (?1, ?2)", (number as i64, text.as_bytes()))?;
    let wal = std::fs::read(PathBuf::from(format!("{}-wal", scratch.display())))?;
    drop(connection);
    Ok(wal)
}
