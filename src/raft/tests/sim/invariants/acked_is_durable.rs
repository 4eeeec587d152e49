//! What was acknowledged is in the final history, exactly once.

use super::super::history::{Fate, History};
use crate::store::Store;

/// A node that becomes primary has every acknowledged transaction.
pub fn at_promotion(history: &History, node: u64, store: &Store) -> Result<(), String> {
    for (number, proposed) in history.proposals() {
        if !matches!(proposed.fate, Fate::Acknowledged(_)) {
            continue;
        }
        for db in &proposed.dbs {
            let step = history.steps(db).find(|step| step.proposal == *number);
            let Some(step) = step else {
                return Err(format!("proposal {number} was acknowledged and is not in the history of {db}"));
            };
            let pos = store.get(db).map_or(0, |database| database.pos().txid_or_zero());
            if pos < step.pos.txid_or_zero() {
                return Err(format!(
                    "n{node} is primary with {db} at {pos:x}, and proposal {number} at {} was acknowledged",
                    step.pos
                ));
            }
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
