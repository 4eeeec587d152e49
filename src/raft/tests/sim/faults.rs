//! What goes wrong in a simulation, and when.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::dice;
use super::node::{crash, start};
use super::peers::address;
use super::power_cut::Death;
use super::transaction::kinds;
use super::world::{Live, World};
use crate::io::power;
use crate::raft::Beginning;
use crate::store::{Layout, MemberChange, Standing};
use crate::types::{Access, NodeName};

/// Makes things go wrong for `length`, then repairs everything.
pub async fn run(world: &Arc<World>, length: Duration) {
    let end = tokio::time::Instant::now() + length;
    while tokio::time::Instant::now() < end && world.verdict().is_none() {
        tokio::time::sleep(dice::millis(50, 1500)).await;
        one(world);
        revive(world);
    }
    world.links().loses_one_in = 0;
    world.links().heal();
    world.nodes().into_iter().for_each(|id| world.links().hold(id, false));
    world.note("all is repaired");
    tokio::spawn(restart_all(world.clone()));
}

/// Starts whatever does not run, also what ends by itself because of a disk that broke before the repair.
async fn restart_all(world: Arc<World>) {
    while !world.over.load(Ordering::SeqCst) {
        for id in world.dead() {
            start(world.clone(), id, Beginning::Never);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Nodes that have been dead get started again by somebody, sooner or later.
fn revive(world: &Arc<World>) {
    for id in world.dead() {
        if dice::one_in(3) {
            start(world.clone(), id, Beginning::Never);
        }
    }
}

fn one(world: &Arc<World>) {
    let nodes = world.nodes();
    let live = world.all_live();
    let Some(victim) = dice::pick(&live) else { return };
    match dice::below(20) {
        0..3 => {
            crash(world, victim.id, Death::PowerCut);
        }
        3 => {
            crash(world, victim.id, Death::Killed);
        }
        4 if dice::one_in(3) => {
            // Everybody, as when the building loses its power.
            for node in live {
                crash(world, node.id, Death::PowerCut);
            }
        }
        5..9 => isolate(world, &nodes, victim.id),
        9 => {
            let Some(other) = dice::pick(&nodes).filter(|other| *other != victim.id) else { return };
            world.note(format!("nothing passes from n{} to n{other}", victim.id));
            world.links().cut(victim.id, other);
        }
        10 => {
            world.note(format!("n{} is slow to reach", victim.id));
            let slow = 20 + dice::below(400);
            for other in nodes {
                world.links().slow(victim.id, other, slow);
                world.links().slow(other, victim.id, slow);
            }
        }
        11..14 => drop(tokio::spawn(hand_over(world.clone()))),
        14 => drop(tokio::spawn(hold(world.clone(), victim.id))),
        15 if dice::one_in(2) => {
            world.note(format!("the disk of n{} breaks", victim.id));
            power::break_disk(&Layout::new(victim.dir.clone()).raft());
        }
        16 => drop(tokio::spawn(change_members(world.clone()))),
        17 => drop(tokio::spawn(read_long(world.clone(), victim))),
        _ => {
            world.note("the network is repaired");
            world.links().heal();
        }
    }
}

fn isolate(world: &World, nodes: &[u64], victim: u64) {
    let way = dice::below(4);
    world.note(format!("n{victim} is cut off, way {way}"));
    let mut links = world.links();
    for other in nodes.iter().filter(|other| **other != victim) {
        if way != 1 {
            links.cut(victim, *other);
        }
        if way != 2 {
            links.cut(*other, victim);
        }
    }
}

/// A node that is stopped for a while: its messages wait, its applications, too.
async fn hold(world: Arc<World>, id: u64) {
    world.note(format!("n{id} is stopped"));
    world.links().hold(id, true);
    tokio::time::sleep(dice::millis(100, 2500)).await;
    world.links().hold(id, false);
    world.note(format!("n{id} goes on"));
}

/// A node's reader keeps the commits of a database waiting for a while; the node may become primary meanwhile, or die.
async fn read_long(world: Arc<World>, live: Arc<Live>) {
    let Some(db) = dice::pick(&kinds()).map(|kind| kind.db) else { return };
    // On the primary the reader would keep the writer waiting, before there is a commit.
    if live.store.access() == Access::Write || !live.target.is_replayed() || live.target.is_held(&db) {
        return;
    }
    world.note(format!("n{} has a long read of {db}", live.id));
    live.target.hold(&db);
    tokio::time::sleep(dice::millis(100, 4000)).await;
    if world.runs(live.id, live.run) {
        live.target.release();
        world.note(format!("n{} has no long read any more", live.id));
    }
}

/// The node that applications may write on.
fn primary(world: &World) -> Option<Arc<Live>> {
    world.all_live().into_iter().find(|live| live.store.access() == Access::Write)
}

/// An operator has a node vote no more, and after a while again, repeated until the cluster takes it.
async fn change_members(world: Arc<World>) {
    let Some(leader) = primary(&world) else { return };
    // No more than one at a time: all the invariants count on a majority of all nodes.
    if leader.raft.members().iter().any(|member| member.standing != Standing::Votes) {
        return;
    }
    let others: Vec<u64> = world.nodes().into_iter().filter(|id| *id != leader.id).collect();
    let Some(id) = dice::pick(&others) else { return };
    if world.changing.swap(true, Ordering::SeqCst) {
        return;
    }
    let name: NodeName = address(id).parse().unwrap();
    let demoted = leader.raft.change_member(MemberChange::Demote(name.clone())).await;
    world.note(format!("n{id} is to vote no more: {}", demoted.is_ok()));
    while !world.over.load(Ordering::SeqCst) {
        tokio::time::sleep(dice::millis(50, 3000)).await;
        let Some(leader) = primary(&world) else { continue };
        if leader.raft.change_member(MemberChange::Promote(name.clone())).await.is_ok() {
            world.note(format!("n{id} is to vote again"));
            break;
        }
    }
    world.changing.store(false, Ordering::SeqCst);
}

/// A planned move of the primary: fenced first, then another one leads, or this one goes on.
async fn hand_over(world: Arc<World>) {
    let Some(live) = primary(&world) else { return };
    if live.handing_over.swap(true, Ordering::SeqCst) {
        return;
    }
    world.note(format!("n{} hands over", live.id));
    if let Err(error) = live.store.hand_over() {
        world.broken(format!("n{} cannot hand over: {error}", live.id));
    }
    let moved = live.raft.transfer(None).await;
    live.handing_over.store(false, Ordering::SeqCst);
    if world.runs(live.id, live.run) {
        world.note(format!("n{} has handed over: {}", live.id, moved.is_ok()));
    }
}
