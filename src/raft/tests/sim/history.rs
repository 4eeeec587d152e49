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
    /// The number of the proposal.
    pub proposal: u64,
}

/// Everything that happened, as an observer of all nodes sees it.
#[derive(Default)]
pub struct History {
    proposals: BTreeMap<u64, Proposed>,
    /// By entry: the number of its proposal.
    entries: BTreeMap<LogIndex, u64>,
    /// The transactions that made what a name stands for now.
    contents: BTreeMap<DbName, Vec<Step>>,
    /// Where a name stood after each entry that concerned it; before the first transaction where it ended.
    states: BTreeMap<DbName, BTreeMap<LogIndex, Pos>>,
    committed: BTreeSet<u64>,
    /// The primary of each term.
    pub writers: BTreeMap<u64, u64>,
    /// The last entry that a database was seen at in one run of a node.
    pub seen: BTreeMap<(u64, u64, DbName), LogIndex>,
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

    /// The transactions that made what a name stands for now.
    pub fn content(&self, db: &DbName) -> &[Step] {
        self.contents.get(db).map_or(&[], Vec::as_slice)
    }

    /// Whether a name stood there after some entry from `first` on.
    pub fn stood_at(&self, db: &DbName, pos: Pos, first: LogIndex) -> bool {
        let states = self.states.get(db).into_iter().flat_map(|states| states.range(first..));
        states.into_iter().any(|(_, state)| *state == pos)
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
        match &change.kind {
            ChangeKind::Commit(sets) => {
                for set in sets {
                    let steps = self.contents.entry(set.db.clone()).or_default();
                    let (before, after) = (steps.last().map_or(Pos::ZERO, |step| step.pos), set.pos());
                    if before.next_txid() != set.range.min() || before.checksum != set.pre {
                        return Err(format!(
                            "entry {index} does not continue {} at {before}: {after}",
                            set.db
                        ));
                    }
                    steps.push(Step { pos: after, proposal: number });
                    self.stands(&set.db, index, after);
                }
            }
            ChangeKind::Drop(db) => {
                self.contents.remove(db);
                self.stands(db, index, Pos::ZERO);
            }
            ChangeKind::Rename { from, to } => {
                let Some(moved) = self.contents.remove(from) else {
                    return Err(format!("entry {index} renames {from}, which does not exist"));
                };
                let pos = moved.last().map_or(Pos::ZERO, |step| step.pos);
                self.contents.insert(to.clone(), moved);
                self.stands(from, index, Pos::ZERO);
                self.stands(to, index, pos);
            }
            other => return Err(format!("entry {index} is of a kind that nobody proposes: {other:?}")),
        }
        Ok(())
    }

    fn stands(&mut self, db: &DbName, index: LogIndex, pos: Pos) {
        self.states.entry(db.clone()).or_default().insert(index, pos);
    }
}
