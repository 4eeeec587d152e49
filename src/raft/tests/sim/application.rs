//! The applications of one node: while it is primary they change databases, one change of each at a time.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::dice;
use super::history::Fate;
use super::invariants::acked_is_durable;
use super::large;
use super::node::file_of;
use super::transaction::{self, Kind, kinds};
use super::world::{Live, World};
use crate::db::CommitError;
use crate::ltx::ChangeSet;
use crate::store::{Change, ChangeKind, Origin};
use crate::types::{Access, DbName, LogIndex, NodeId};

type Busy = Arc<Mutex<BTreeSet<DbName>>>;

/// Changes databases until the run of the node ends.
pub async fn run(world: Arc<World>, live: Arc<Live>) {
    let busy = Busy::default();
    // Some nodes' applications are in a hurry.
    let pause = if dice::one_in(3) { 20 } else { 150 };
    loop {
        tokio::time::sleep(dice::millis(1, pause)).await;
        if !world.runs(live.id, live.run) {
            return;
        }
        let idle = world.quiet.load(Ordering::SeqCst) || world.links().waits(live.id, live.id);
        if idle || live.store.access() != Access::Write {
            continue;
        }
        let free: Vec<Kind> = kinds().into_iter().filter(|kind| is_free(&live, &busy, &kind.db)).collect();
        let Some(plan) = plan(&live, &free) else { continue };
        if let Err(error) = propose(&world, &live, &busy, plan) {
            world.broken(format!("n{} cannot make a transaction: {error}", live.id));
        }
    }
}

/// What an application does next.
enum Plan {
    /// A transaction of one database, or of two.
    Write(Vec<Kind>),
    Drop(DbName),
    Rename(DbName, DbName),
}

impl Plan {
    fn databases(&self) -> Vec<DbName> {
        match self {
            Plan::Write(kinds) => kinds.iter().map(|kind| kind.db.clone()).collect(),
            Plan::Drop(db) => vec![db.clone()],
            Plan::Rename(from, to) => vec![from.clone(), to.clone()],
        }
    }
}

fn plan(live: &Live, free: &[Kind]) -> Option<Plan> {
    let first = dice::pick(free)?;
    let other = dice::pick(free).filter(|other| other.db != first.db);
    let exists = live.store.get(&first.db).is_some_and(|database| database.pos().txid.is_some());
    Some(match (dice::below(40), other) {
        (0, _) if exists => Plan::Drop(first.db),
        (1, Some(other)) if exists => Plan::Rename(first.db, other.db),
        (2..7, Some(other)) => Plan::Write(vec![first, other]),
        _ => Plan::Write(vec![first]),
    })
}

fn is_free(live: &Live, busy: &Busy, db: &DbName) -> bool {
    !live.target.is_undecided(db) && !live.target.is_held(db) && !busy.lock().unwrap().contains(db)
}

fn propose(world: &Arc<World>, live: &Arc<Live>, busy: &Busy, plan: Plan) -> Result<(), String> {
    let dbs = plan.databases();
    let number = world.history().propose((live.id, live.run), dbs.clone());
    let (kind, text) = match plan {
        Plan::Write(kinds) => {
            let sets = transactions(world, live, number, &kinds)?;
            let text: Vec<String> = sets.iter().map(|set| format!("{} to {}", set.db, set.pos())).collect();
            (ChangeKind::Commit(sets), text.join(", "))
        }
        Plan::Drop(db) => (ChangeKind::Drop(db.clone()), format!("the end of {db}")),
        Plan::Rename(from, to) => {
            let text = format!("to call {from} {to}");
            (ChangeKind::Rename { from, to }, text)
        }
    };
    world.note(format!("n{} proposes {number}: {text}", live.id));
    let origin = Origin { node: NodeId::new(live.id), run: live.run, seq: number };
    let change = Change { origin, timestamp_ms: world.now_ms() as i64, kind };
    busy.lock().unwrap().extend(dbs.iter().cloned());
    let (world, told, busy, own) = (world.clone(), live.clone(), busy.clone(), change.clone());
    let done = Box::new(move |fate| {
        tell(&world, &told, &own, &dbs, fate);
        let mut busy = busy.lock().unwrap();
        busy.retain(|db| !dbs.contains(db));
    });
    live.raft.sink().propose(change, done);
    Ok(())
}

fn transactions(
    world: &Arc<World>,
    live: &Live,
    number: u64,
    kinds: &[Kind],
) -> Result<Vec<ChangeSet>, String> {
    let scratch = world.root.join("scratch");
    let mut sets = Vec::new();
    for kind in kinds {
        let database = live.store.get(&kind.db);
        let image = match &database {
            Some(_) => std::fs::read(file_of(&live.store, &kind.db)).map_err(|error| error.to_string())?,
            None => Vec::new(),
        };
        let pos = database.map_or(crate::types::Pos::ZERO, |database| database.pos());
        let mut set = transaction::make(kind, pos, &image, number, &scratch)?;
        large::move_out(live.store.blobs(), &mut set)?;
        sets.push(set);
    }
    Ok(sets)
}

/// The fate of a proposal: a transaction that is in the log goes into the node's own databases at once, nothing else does;
/// what ends or renames a database takes its turn there as on all other nodes.
fn tell(
    world: &Arc<World>,
    live: &Live,
    change: &Change,
    dbs: &[DbName],
    fate: Result<LogIndex, CommitError>,
) {
    if !world.runs(live.id, live.run) {
        return;
    }
    let number = change.origin.seq;
    let fate = match fate {
        Ok(index) => {
            let known = world.history().committed(index, change);
            world.check(known);
            if world.founded.load(Ordering::SeqCst) {
                world.check(acked_is_durable::blobs(world, index, change));
            } else {
                world.history().early.push((index, change.clone()));
            }
            if matches!(change.kind, ChangeKind::Commit(_)) {
                let applied = live.store.apply(index, change);
                world.check(
                    applied.map_err(|error| format!("n{} cannot apply its own {number}: {error}", live.id)),
                );
                live.target.check_positions();
            }
            Fate::Acknowledged(index)
        }
        Err(CommitError::Refused(_)) => Fate::Refused,
        Err(CommitError::Unknown(_)) => {
            live.target.set_undecided(dbs);
            Fate::Unknown
        }
    };
    world.note(format!("n{} is told {number}: {fate:?}", live.id));
    let mut history = world.history();
    if fate == Fate::Refused && history.is_committed(number) {
        world.broken(format!("proposal {number} is refused after it was committed"));
    }
    history.tell(number, fate);
}
