//! What was acknowledged is in the final history, exactly once.

use super::super::history::{Fate, History};
use super::super::large;
use super::super::world::World;
use crate::store::{Change, Store};
use crate::types::{LogIndex, Pos};

/// A node that becomes primary has every acknowledged transaction, but for those that wait for a reader: nobody writes those
/// databases until it has let go.
pub fn at_promotion(history: &History, node: u64, store: &Store) -> Result<(), String> {
    for (number, proposed) in history.proposals() {
        let Fate::Acknowledged(index) = proposed.fate else { continue };
        for db in &proposed.dbs {
            if store.get(db).is_some_and(|database| database.is_behind()) {
                continue;
            }
            let pos = store.get(db).map_or(Pos::ZERO, |database| database.pos());
            if !history.stood_at(db, pos, index) {
                return Err(format!(
                    "n{node} is primary with {db} at {pos}, and proposal {number} at entry {index} was acknowledged"
                ));
            }
        }
    }
    match store.disagreeing().first() {
        Some((db, why)) => Err(format!("n{node} becomes primary, and {db} is not what its log says: {why}")),
        None => Ok(()),
    }
}

/// What entry `index`, just acknowledged, keeps beside the log is on the disks of a majority.
pub fn blobs(world: &World, index: LogIndex, change: &Change) -> Result<(), String> {
    let nodes = world.nodes().len();
    // A node whose databases have it needs it no more.
    let past = |id: &u64| world.live(*id).is_some_and(|live| live.store.durable_index() >= index);
    for blob in change.blobs() {
        let mut holders = large::holders(world, blob);
        holders.extend(world.nodes().into_iter().filter(past));
        holders.sort_unstable();
        holders.dedup();
        if holders.len() * 2 <= nodes {
            return Err(format!("entry {index} was acknowledged and only {holders:?} hold blob {blob}"));
        }
    }
    Ok(())
}

/// In the end each is committed, and none that was refused is. That none is committed twice is seen when it happens.
pub fn at_the_end(history: &History) -> Result<(), String> {
    for (number, proposed) in history.proposals() {
        let committed = history.is_committed(*number);
        match proposed.fate {
            Fate::Acknowledged(index) if !committed => {
                return Err(format!("proposal {number} was acknowledged at entry {index} and is lost"));
            }
            Fate::Refused if committed => {
                return Err(format!("proposal {number} was refused and is committed"));
            }
            _ => {}
        }
    }
    Ok(())
}
