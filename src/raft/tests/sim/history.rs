//! What was proposed, what became of it, and the history the nodes agreed on.

use std::collections::{BTreeMap, BTreeSet};

use crate::store::{Change, ChangeKind};
use crate::types::{DbName, LogIndex, Pos};

/// What the application was told of a proposal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Nothing yet, or nothing ever because its node died.
    Open,
    /// It is durable.
    Acknowledged(LogIndex),
    /// It never will be.
    Refused,
    /// It may be or not.
    Unknown,
}

/// A transaction that an application proposed.
#[derive(Clone, Debug)]
pub struct Proposed {
    /// The node and its run.
    pub by: (u64, u64),
    /// The databases it changes.
    pub dbs: Vec<DbName>,
    /// What its proposer was told.
    pub fate: Fate,
}

/// A committed transaction of one database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// The position it leads to.
    pub pos: Pos,
    /// The entry.
    pub index: LogIndex,
    /// The number of the proposal.
    pub proposal: u64,
}

/// Everything that happened, as an observer of all nodes sees it.
#[derive(Default)]
pub struct History {
    proposals: BTreeMap<u64, Proposed>,
    /// By entry: the number of its proposal.
    entries: BTreeMap<LogIndex, u64>,
    /// By database and TXID.
    steps: BTreeMap<DbName, BTreeMap<u64, Step>>,
    committed: BTreeSet<u64>,
    /// The primary of each term.
    pub writers: BTreeMap<u64, u64>,
    /// The last position seen of a database in one run of a node.
    pub seen: BTreeMap<(u64, u64, DbName), u64>,
    /// What was acknowledged before all nodes voted.
    pub early: Vec<(LogIndex, Change)>,
    /// Sum of a database's bytes at a position.
    pub bytes: BTreeMap<(DbName, u64, u64), u64>,
}

impl History {
    /// A number for the next proposal.
    pub fn propose(&mut self, by: (u64, u64), dbs: Vec<DbName>) -> u64 {
        let number = self.proposals.len() as u64 + 1;
        self.proposals.insert(number, Proposed { by, dbs, fate: Fate::Open });
        number
    }

    /// The proposer is told.
    pub fn tell(&mut self, number: u64, fate: Fate) {
        if let Some(proposed) = self.proposals.get_mut(&number) {
            proposed.fate = fate;
        }
    }

    /// A proposal of one run of a node whose proposer has been told nothing yet.
    pub fn open_of(&self, by: (u64, u64)) -> Option<u64> {
        let mut open = self.proposals.iter().filter(|(_, new)| new.by == by && new.fate == Fate::Open);
        open.next().map(|(number, _)| *number)
    }

    /// All proposals by number.
    pub fn proposals(&self) -> &BTreeMap<u64, Proposed> {
        &self.proposals
    }

    /// The committed steps of a database.
    pub fn steps(&self, db: &DbName) -> impl Iterator<Item = &Step> {
        self.steps.get(db).into_iter().flat_map(BTreeMap::values)
    }

    /// The committed step that leads to a TXID.
    pub fn step(&self, db: &DbName, txid: u64) -> Option<&Step> {
        self.steps.get(db)?.get(&txid)
    }

    /// Whether a proposal is committed.
    pub fn is_committed(&self, number: u64) -> bool {
        self.committed.contains(&number)
    }

    /// A node applies entry `index`: the first one makes it history, the others have to agree.
    pub fn committed(&mut self, index: LogIndex, change: &Change) -> Result<(), String> {
        let number = change.origin.seq;
        if let Some(known) = self.entries.get(&index) {
            let differs = format!("entry {index} is proposal {known} on one node and {number} on another");
            return if *known == number { Ok(()) } else { Err(differs) };
        }
        self.entries.insert(index, number);
        if !self.committed.insert(number) {
            return Err(format!("proposal {number} is committed twice, again by entry {index}"));
        }
        if self.proposals.get(&number).is_some_and(|proposed| proposed.fate == Fate::Refused) {
            return Err(format!("proposal {number} was refused and is committed by entry {index}"));
        }
        let ChangeKind::Commit(sets) = &change.kind else { return Ok(()) };
        for set in sets {
            let steps = self.steps.entry(set.db.clone()).or_default();
            let last = steps.last_key_value().map(|(_, step)| step.pos);
            let (before, after) = (last.unwrap_or(Pos::ZERO), set.pos());
            if before.next_txid() != set.range.min() || before.checksum != set.pre {
                return Err(format!("entry {index} does not continue {} at {before}: {after}", set.db));
            }
            steps.insert(after.txid_or_zero(), Step { pos: after, index, proposal: number });
        }
        Ok(())
    }
}
