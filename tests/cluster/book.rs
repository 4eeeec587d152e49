//! A database that clients use in some rounds: what they did to it, and what became of it.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::checker::{self, Promise, Violation};
use super::client::{Client, Inspection, Orders, Task};
use super::discarded::Kept;
use super::history::{Op, Outcome, Record, State};
use super::nodes::Nodes;
use crate::harness::{PATIENCE, within};

/// How long a node may take to keep what it drops.
const KEEPING_MAX: Duration = Duration::from_secs(10);
/// How often each rule's breaking is shown of one database.
const SHOWN_MAX: usize = 4;

/// How a database is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    pub name: &'static str,
    pub journal: &'static str,
    pub synchronous: &'static str,
    /// Client processes on each node.
    pub clients: usize,
}

/// The kinds that are written side by side.
pub const KINDS: [Kind; 3] = [
    Kind { name: "full", journal: "wal", synchronous: "FULL", clients: 2 },
    Kind { name: "normal", journal: "wal", synchronous: "NORMAL", clients: 1 },
    Kind { name: "delete", journal: "delete", synchronous: "FULL", clients: 1 },
];

/// One database.
pub struct Book {
    pub db: String,
    pub kind: Kind,
    ops: Vec<Op>,
    /// Operations that were there when the round began.
    old_ops: usize,
    end: Option<State>,
}

impl Book {
    /// A database that is not there yet.
    pub fn new(kind: Kind, number: usize) -> Self {
        Self { db: format!("{}-{number}.db", kind.name), kind, ops: Vec::new(), old_ops: 0, end: None }
    }

    /// Orders for a client of this database on a node.
    pub fn orders(&self, nodes: &Nodes, node: usize, number: u64, task: Task) -> Orders {
        let client = format!("{}c{number}", nodes.name(node));
        // A settling client waits until everything before its transaction is decided.
        let synchronous = if task == Task::Settle { "FULL" } else { self.kind.synchronous };
        Orders {
            task,
            database: nodes.path(node, &self.db),
            synchronous: synchronous.to_owned(),
            record: nodes.dir().join(format!("{client}.record")),
            seconds: 0.0,
            seed: number,
            client,
        }
    }

    /// Adds what a client did.
    pub fn keep(&mut self, orders: &Orders) {
        for (client, record) in orders.records() {
            self.ops.extend(Record::read(&record, &client));
        }
    }

    /// Compares all nodes with one another and with everything the clients were told. Nobody writes meanwhile.
    ///
    /// # Errors
    /// Everything that is not as it must be.
    pub fn judge(&mut self, nodes: &Nodes) -> Result<(), String> {
        let end = state(nodes, &self.db)?;
        let mut wrong: Vec<_> =
            (0..nodes.len()).filter_map(|node| self.inspect(nodes, node, &end).err()).collect();
        if self.kind.synchronous == "FULL" {
            wrong.extend(self.report(&checker::check(&self.ops, &end, Promise::Stays)).err());
        } else {
            let mut said = Ok(());
            let _ = within(KEEPING_MAX, || {
                said = Kept::of(nodes, &self.db).and_then(|kept| {
                    self.report(&checker::check(&self.ops, &end, Promise::Traceable(&kept)))
                });
                said.is_ok().then_some(())
            });
            wrong.extend(said.err());
        }
        self.end = Some(end);
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    }

    /// What nobody has written since it was judged is as it was.
    ///
    /// # Errors
    /// Where it is not.
    pub fn look_back(&self, nodes: &Nodes) -> Result<(), String> {
        let Some(end) = &self.end else { return Ok(()) };
        if state(nodes, &self.db)? == *end {
            Ok(())
        } else {
            Err(format!("{} changed after its last round", self.db))
        }
    }

    /// A node's mount shows the state that all nodes export, and SQLite finds it in order.
    fn inspect(&self, nodes: &Nodes, node: usize, end: &State) -> Result<(), String> {
        let mut orders = self.orders(nodes, node, 0, Task::Inspect);
        orders.client = format!("{}-{}-inspection", nodes.name(node), self.db);
        orders.record = nodes.dir().join(&orders.client);
        Client::start(orders.clone()).end(PATIENCE)?;
        let found: Inspection = serde_json::from_slice(&std::fs::read(&orders.record).unwrap()).unwrap();
        let of = format!("{} on the mount of {}", self.db, nodes.name(node));
        if found.integrity != "ok" {
            return Err(format!("{of}: integrity_check: {}", found.integrity));
        }
        if found.seen == end.seen() {
            Ok(())
        } else {
            Err(format!("{of} shows {:?}, but all nodes export {:?}", found.seen, end.seen()))
        }
    }

    fn report(&self, broken: &[Violation]) -> Result<(), String> {
        if broken.is_empty() {
            return Ok(());
        }
        let mut said = format!("{}: rules broken {} times", self.db, broken.len());
        let mut shown = HashMap::new();
        for violation in broken {
            let times = shown.entry(std::mem::discriminant(violation)).or_insert(0);
            *times += 1;
            if *times > SHOWN_MAX {
                continue;
            }
            said += &format!("\n  {violation:?}");
            for (client, seq) in violation.operations() {
                if let Some(op) = self.ops.iter().find(|op| op.client == *client && op.seq == *seq) {
                    said += &format!("\n    {:?}: {:?}", op.action, op.outcome);
                }
            }
        }
        Err(said)
    }

    /// What this round's clients were told, in a few words.
    pub fn summary(&mut self) -> String {
        let new = &self.ops[std::mem::replace(&mut self.old_ops, self.ops.len())..];
        let count = |is: fn(&Outcome) -> bool| new.iter().filter(|op| is(&op.outcome)).count();
        format!(
            "{}: {} ok, {} failed, {} unknown, {} reads",
            self.kind.name,
            count(|outcome| matches!(outcome, Outcome::Ok)),
            count(|outcome| matches!(outcome, Outcome::Failed(_))),
            count(|outcome| matches!(outcome, Outcome::Unknown(_))),
            count(|outcome| matches!(outcome, Outcome::Saw(_))),
        )
    }
}

/// What all nodes export.
fn state(nodes: &Nodes, db: &str) -> Result<State, String> {
    let copy = nodes.dir().join("export.db");
    std::fs::write(&copy, nodes.same_bytes(db)?).map_err(|error| error.to_string())?;
    let read = |path: &Path| State::read(&mut Connection::open(path)?);
    read(&copy).map_err(|error| format!("the export of {db}: {error}"))
}
