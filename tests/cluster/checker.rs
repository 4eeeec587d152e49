//! The one definition of correct: a history of operations, and the state the cluster agreed on in the end.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::discarded::Kept;
use super::history::{Action, Op, Outcome, Row, Seen, State, content, digests, marker};
use super::watch::Claim;

/// What a database promises its writers.
#[derive(Clone, Copy, Debug)]
pub enum Promise<'a> {
    /// `synchronous=FULL`, or a rollback journal: what is acknowledged stays, and nobody sees what does not stay.
    Stays,
    /// WAL with `synchronous=NORMAL`: what is lost is found, by its marker, in `discarded/` of some node.
    Traceable(&'a Kept),
}

/// An operation's client and number.
pub type Id = (String, u64);

/// A broken rule and where.
#[derive(Clone, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Violation {
    /// Acknowledged and not in the final state.
    Lost(Id),
    /// Acknowledged under NORMAL, not in the final state, and not kept in any `discarded/`.
    Vanished(Id),
    /// More than once in the final state.
    Twice(Id),
    /// In the final state, though its client was told that it failed.
    FailedButThere(Id),
    /// In the final state, though no client wrote it, or not so.
    Invented(Id),
    /// A read whose rows are not the first ones of the final state.
    NotAPrefix(Id),
    /// A read that shows less than an earlier one of the same client.
    WentBack(Id),
    /// A read that lacks what the same client had written before.
    OwnWriteMissing(Id),
    /// Two reads of which each shows something that the other does not.
    TwoHistories(Id, Id),
    /// A read whose balances are not what its transfers make of them.
    MoneyInRead(Id),
    /// The same of the final state.
    MoneyInTheEnd,
    /// An operation that found the database damaged.
    Corrupt(Id, String),
    /// Nodes that were primary in the same term.
    TwoPrimaries { term: u64, names: Vec<String> },
    /// A node that called itself primary after another one had, in a later term.
    StalePrimary { term: u64, name: String, later: (u64, String), for_at_least: Duration },
}

impl Violation {
    /// The operations it is about.
    pub fn operations(&self) -> Vec<&Id> {
        match self {
            Self::Lost(id)
            | Self::Vanished(id)
            | Self::Twice(id)
            | Self::FailedButThere(id)
            | Self::Invented(id)
            | Self::NotAPrefix(id)
            | Self::WentBack(id)
            | Self::OwnWriteMissing(id)
            | Self::MoneyInRead(id)
            | Self::Corrupt(id, _) => vec![id],
            Self::TwoHistories(one, other) => vec![one, other],
            Self::MoneyInTheEnd | Self::TwoPrimaries { .. } | Self::StalePrimary { .. } => Vec::new(),
        }
    }
}

/// Everything that is wrong with one database; the operations of each client in its order.
pub fn check(history: &[Op], end: &State, promise: Promise<'_>) -> Vec<Violation> {
    let places = Places::of(end);
    let mut broken = presence(history, &places, promise);
    broken.extend(origins(history, end));
    if end.balances != end.owed() {
        broken.push(Violation::MoneyInTheEnd);
    }
    let reads: Vec<_> = reads(history).collect();
    broken.extend(
        reads
            .iter()
            .filter(|(_, seen)| seen.balances != seen.owed)
            .map(|(op, _)| Violation::MoneyInRead(id(op))),
    );
    // Under NORMAL, what will be cut off may be seen before; where nothing was, the same rules hold.
    let nothing_cut = match promise {
        Promise::Stays => true,
        Promise::Traceable(kept) => kept.files == 0,
    };
    if nothing_cut {
        broken.extend(prefixes(&reads, end));
        broken.extend(one_history(&reads));
        broken.extend(order_of_clients(history, &places));
    }
    broken.extend(history.iter().filter_map(|op| match &op.outcome {
        Outcome::Corrupt(why) => Some(Violation::Corrupt(id(op), why.clone())),
        _ => None,
    }));
    broken
}

/// What is wrong with who called itself primary, and when.
pub fn check_claims(claims: &[Claim]) -> Vec<Violation> {
    let mut terms = BTreeMap::<u64, BTreeSet<&String>>::new();
    for claim in claims {
        terms.entry(claim.term).or_default().insert(&claim.name);
    }
    let two = terms.into_iter().filter(|(_, names)| names.len() > 1);
    let mut broken: Vec<_> = two
        .map(|(term, names)| Violation::TwoPrimaries { term, names: names.into_iter().cloned().collect() })
        .collect();
    for old in claims {
        let later = |new: &&Claim| new.term > old.term && new.name != old.name && new.first < old.last;
        broken.extend(claims.iter().find(later).map(|new| Violation::StalePrimary {
            term: old.term,
            name: old.name.clone(),
            later: (new.term, new.name.clone()),
            for_at_least: old.last - new.first,
        }));
    }
    broken
}

/// Where in the final state each operation is.
struct Places {
    /// How often, and the numbers of rows of the log and of transfers up to and including the first time.
    found: HashMap<Id, (usize, usize, usize)>,
}

impl Places {
    fn of(end: &State) -> Self {
        let mut found = HashMap::new();
        let log = end.log.iter().enumerate().map(|(index, row)| (row, index + 1, 0));
        let transfers = end.transfers.iter().enumerate().map(|(index, row)| (row, 0, index + 1));
        for (row, log, transfers) in log.chain(transfers) {
            found.entry((row.client.clone(), row.seq)).or_insert((0, log, transfers)).0 += 1;
        }
        Self { found }
    }
}

fn id(op: &Op) -> Id {
    (op.client.clone(), op.seq)
}

fn reads(history: &[Op]) -> impl Iterator<Item = (&Op, &Seen)> {
    history.iter().filter_map(|op| match &op.outcome {
        Outcome::Saw(seen) => Some((op, seen)),
        _ => None,
    })
}

/// What was acknowledged is there, what failed is not, nothing is there twice.
fn presence(history: &[Op], places: &Places, promise: Promise<'_>) -> Vec<Violation> {
    let mut broken = Vec::new();
    for op in history.iter().filter(|op| op.action != Action::Read) {
        let times = places.found.get(&id(op)).map_or(0, |(times, ..)| *times);
        match (&op.outcome, times) {
            (_, 2..) => broken.push(Violation::Twice(id(op))),
            (Outcome::Failed(_), 1) => broken.push(Violation::FailedButThere(id(op))),
            (Outcome::Ok, 0) => match promise {
                Promise::Stays => broken.push(Violation::Lost(id(op))),
                Promise::Traceable(kept) if kept.markers.contains(&marker(&op.client, op.seq)) => {}
                Promise::Traceable(_) => broken.push(Violation::Vanished(id(op))),
            },
            _ => {}
        }
    }
    broken
}

/// Every row is what some client wrote.
fn origins(history: &[Op], end: &State) -> Vec<Violation> {
    let actions: HashMap<(&str, u64), &Action> =
        history.iter().map(|op| ((op.client.as_str(), op.seq), &op.action)).collect();
    let is_written = |row: &Row, in_log: bool| {
        let written = match actions.get(&(row.client.as_str(), row.seq)) {
            Some(Action::Append) => in_log && row.moved.is_none(),
            Some(Action::Transfer { source, target, amount }) => {
                !in_log && row.moved == Some((*source, *target, *amount))
            }
            Some(Action::Read) | None => false,
        };
        written && row.content == content(&row.client, row.seq)
    };
    let rows = end.log.iter().map(|row| (row, true)).chain(end.transfers.iter().map(|row| (row, false)));
    rows.filter(|(row, in_log)| !is_written(row, *in_log))
        .map(|(row, _)| Violation::Invented((row.client.clone(), row.seq)))
        .collect()
}

/// Each read shows the first rows of the final state, of both tables.
fn prefixes(reads: &[(&Op, &Seen)], end: &State) -> Vec<Violation> {
    let (log, transfers) = (digests(&end.log), digests(&end.transfers));
    let is_prefix = |seen: &Seen| {
        log.get(seen.log.rows) == Some(&seen.log.digest)
            && transfers.get(seen.transfers.rows) == Some(&seen.transfers.digest)
    };
    reads.iter().filter(|(_, seen)| !is_prefix(seen)).map(|(op, _)| Violation::NotAPrefix(id(op))).collect()
}

/// Of any two reads, on whatever nodes, one shows all that the other does.
fn one_history(reads: &[(&Op, &Seen)]) -> Vec<Violation> {
    let mut sorted = reads.to_vec();
    sorted.sort_by_key(|(_, seen)| (seen.log.rows, seen.transfers.rows));
    let crossed = sorted.windows(2).filter(|pair| pair[0].1.transfers.rows > pair[1].1.transfers.rows);
    crossed.map(|pair| Violation::TwoHistories(id(pair[0].0), id(pair[1].0))).collect()
}

/// What a client has seen or written it sees from then on.
fn order_of_clients(history: &[Op], places: &Places) -> Vec<Violation> {
    let mut broken = Vec::new();
    // Rows of the log and of transfers that the client has seen, and that include what it has written.
    let mut known = HashMap::<&str, [(usize, usize); 2]>::new();
    for op in history {
        let [seen, written] = known.entry(op.client.as_str()).or_default();
        match &op.outcome {
            Outcome::Saw(now) => {
                let (log, transfers) = (now.log.rows, now.transfers.rows);
                if log < seen.0 || transfers < seen.1 {
                    broken.push(Violation::WentBack(id(op)));
                }
                if log < written.0 || transfers < written.1 {
                    broken.push(Violation::OwnWriteMissing(id(op)));
                }
                *seen = (log, transfers);
            }
            Outcome::Ok => {
                if let Some((_, log, transfers)) = places.found.get(&id(op)) {
                    *written = (written.0.max(*log), written.1.max(*transfers));
                }
            }
            _ => {}
        }
    }
    broken
}
