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
        let Some(first) = dice::pick(&free) else { continue };
        let mut chosen = vec![first];
        if dice::one_in(8)
            && let Some(other) = dice::pick(&free)
            && other.db != chosen[0].db
        {
            chosen.push(other);
        }
        if let Err(error) = propose(&world, &live, &busy, &chosen) {
            world.broken(format!("n{} cannot make a transaction: {error}", live.id));
        }
    }
}

fn is_free(live: &Live, busy: &Busy, db: &DbName) -> bool {
    !live.target.is_undecided(db) && !busy.lock().unwrap().contains(db)
}

fn propose(world: &Arc<World>, live: &Arc<Live>, busy: &Busy, kinds: &[Kind]) -> Result<(), String> {
    let dbs: Vec<DbName> = kinds.iter().map(|kind| kind.db.clone()).collect();
    let number = world.history().propose((live.id, live.run), dbs.clone());
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
    let text: Vec<String> = sets.iter().map(|set| format!("{} to {}", set.db, set.pos())).collect();
    world.note(format!("n{} proposes {number}: {}", live.id, text.join(", ")));
    let origin = Origin { node: NodeId::new(live.id), run: live.run, seq: number };
    let change = Change { origin, timestamp_ms: world.now_ms() as i64, kind: ChangeKind::Commit(sets) };
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

/// The fate of a proposal: what is in the log goes into the node's own databases at once, nothing else does.
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
            let applied = live.store.apply(index, change);
            world.check(
                applied.map_err(|error| format!("n{} cannot apply its own {number}: {error}", live.id)),
            );
            live.target.check_positions();
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
