//! The life of one simulated node: start, primary or not, crash.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::databases::{Shared, SimTarget};
use super::invariants::{acked_is_durable, one_writer_per_term};
use super::network::SimNetwork;
use super::peers::address;
use super::power_cut::{Death, copy_tree, tear, tear_databases};
use super::world::{Live, World};
use super::{application, dice};
use crate::io::blobs::BlobStore;
use crate::io::power;
use crate::raft::acks::Acks;
use crate::raft::incarnations::Incarnations;
use crate::raft::start::{Surroundings, run};
use crate::raft::{Beginning, PrimaryState, RaftNode, RaftOptions};
use crate::store::{Candidate, Layout, Store, StoreOptions};
use crate::types::{Access, NodeId};

/// Simulated time a node's Raft may take to start, its waiting for old promises included.
const START_MAX: Duration = Duration::from_secs(20);

/// How far clocks may go wrong; leases, given up after four fifths, bear 11 %.
const DRIFT_PERCENT_MAX: u64 = 5;

fn dir_of(world: &World, id: u64, run: u64) -> PathBuf {
    world.root.join(format!("n{id}")).join(format!("run{run}"))
}

/// Where a node's files are: those of its run, or those its next run begins with.
pub fn layout_of(world: &World, id: u64) -> Layout {
    Layout::new(dir_of(world, id, world.run_on_disk(id)))
}

/// The rate of a node's clock in percent: what it takes for a second is another time than what its neighbour does.
fn clock_percent() -> u32 {
    (100 - DRIFT_PERCENT_MAX + dice::below(2 * DRIFT_PERCENT_MAX + 1)) as u32
}

fn options(id: u64, layout: &Layout, beginning: Beginning) -> RaftOptions {
    let percent = clock_percent();
    let on_its_clock = |time: Duration| time * 100 / percent;
    let name = address(id).parse().unwrap();
    let mut options =
        RaftOptions::new(super::peers::cluster().to_string(), NodeId::new(id), name, layout.raft());
    options.addr = address(id);
    options.beginning = beginning;
    options.segment_bytes = 64 << 10;
    options.retention_bytes = 96 << 10;
    options.commit_timeout = on_its_clock(Duration::from_secs(2));
    options.heartbeat = on_its_clock(options.heartbeat);
    options.election_timeout = on_its_clock(options.election_timeout);
    options
}

/// Starts the next run of a node on what its directory holds, and lets it live. What is returned ends when it runs.
pub fn start(world: Arc<World>, id: u64, beginning: Beginning) -> tokio::task::JoinHandle<()> {
    let run = world.begin_run(id);
    world.note(format!("n{id} starts, run {run}"));
    tokio::spawn(begin(world, id, run, beginning))
}

async fn begin(world: Arc<World>, id: u64, run: u64, beginning: Beginning) {
    match try_start(&world, id, run, beginning).await {
        Ok(live) => {
            world.note(format!("n{id} runs"));
            world.enter(live.clone());
            tokio::spawn(watch_role(world.clone(), live.clone()));
            tokio::spawn(checkpoint(world.clone(), live.clone()));
            tokio::spawn(application::run(world, live));
        }
        Err(error) if world.runs(id, run) => world.broken(format!("n{id} cannot start: {error}")),
        Err(_) => {}
    }
}

async fn try_start(
    world: &Arc<World>,
    id: u64,
    run_no: u64,
    beginning: Beginning,
) -> Result<Arc<Live>, String> {
    let dir = dir_of(world, id, run_no);
    let layout = Layout::new(dir.clone());
    let made = std::fs::create_dir_all(layout.raft()).and_then(|()| BlobStore::open(layout.blobs()));
    let blobs = Arc::new(made.map_err(|error| error.to_string())?);
    let store = StoreOptions {
        layout: layout.clone(),
        node: NodeId::new(id),
        access: Access::Fenced,
        blobs: blobs.clone(),
        held_files: Default::default(),
    };
    let store = Store::open(store).map_err(|error| error.to_string())?;
    let (ill, slow) = (dice::one_in(5), dice::one_in(4));
    power::plug(&layout.raft(), move || match dice::below(100) {
        0..2 if ill => dice::millis(200, 1500),
        0..90 if slow => dice::millis(0, 60),
        0..50 => dice::millis(0, 8),
        _ => Duration::ZERO,
    });
    power::plug(&layout.blobs(), || Duration::ZERO);
    let stop = CancellationToken::new();
    let synced = dir.with_file_name(format!("synced{run_no}"));
    copy_tree(&layout.dbs(), &synced).map_err(|error| error.to_string())?;
    let target = SimTarget::new(world.clone(), (id, run_no), store.clone(), synced, stop.clone());
    let options = options(id, &layout, beginning);
    let acks = Acks::default();
    let network = SimNetwork {
        world: world.clone(),
        from: id,
        run: run_no,
        patience: options.lease(),
        acks: acks.clone(),
    };
    let (told, started) = oneshot::channel();
    let incarnations = Incarnations::open(options.incarnation, options.peers_file.clone());
    let incarnations = incarnations.map_err(|error| error.to_string())?;
    let target_of_log = Arc::new(Shared(target.clone()));
    let around = Surroundings { target: target_of_log, blobs, network, acks, incarnations };
    tokio::spawn(run(options.clone(), around, stop.clone(), told));
    let started = tokio::time::timeout(START_MAX, started).await.map_err(|_| "it takes too long")?;
    let started = started.map_err(|_| "its task ended")?.map_err(|error| error.to_string())?;
    let raft = RaftNode::around(options, started, stop.clone(), None);
    store.set_sink(raft.sink());
    let handing_over = AtomicBool::new(false);
    Ok(Arc::new(Live { id, run: run_no, dir, raft, store, target, stop, handing_over }))
}

/// Makes a new node a member.
pub async fn join(world: &World, founder: u64, id: u64) {
    let Some(founder) = world.live(founder) else { return world.broken("the founder is dead") };
    let candidate = Candidate {
        node: NodeId::new(id),
        name: address(id).parse().unwrap(),
        addr: address(id),
        http: String::new(),
        returning: false,
    };
    if let Err(error) = founder.raft.enlist(candidate).await {
        world.broken(format!("n{id} cannot join: {error}"));
    }
}

/// Ends a run of a node as a crash does, and prepares the directory of its next run.
pub fn crash(world: &Arc<World>, id: u64, death: Death) -> bool {
    let Some(live) = world.leave(id) else { return false };
    world.note(format!("n{id} dies: {death:?}"));
    // Before anything of the dead run writes on: it ends in its old directory, and nobody hears of it.
    if let Err(error) = leave_behind(world, &live, death) {
        world.broken(format!("the simulation itself: {error}"));
    }
    bury(&live);
    true
}

fn leave_behind(world: &World, live: &Live, death: Death) -> io::Result<()> {
    let next = dir_of(world, live.id, live.run + 1);
    copy_tree(&live.dir, &next)?;
    let (old, new) = (Layout::new(live.dir.clone()), Layout::new(next));
    let (unsynced, blobs) = (power::unplug(&old.raft()), power::unplug(&old.blobs()));
    if death == Death::PowerCut {
        let lost: usize = unsynced.iter().map(|write| write.before.len()).sum();
        world.note(format!("n{} had {lost} bytes of its log not synced", live.id));
        tear(&new.raft(), unsynced)?;
        tear(&new.blobs(), blobs)?;
        tear_databases(&new.dbs(), live.target.synced())?;
    }
    Ok(())
}

/// Lets what is left of a run end.
pub fn bury(live: &Live) {
    live.stop.cancel();
    live.target.stop();
    // Of a dead run nothing matters any more.
    let _ = live.store.close();
}

/// Lets databases be written exactly while the node is primary, as the node's own task does.
async fn watch_role(world: Arc<World>, live: Arc<Live>) {
    let mut states = live.raft.watch_primary();
    loop {
        let state = states.borrow_and_update().clone();
        if !world.runs(live.id, live.run) {
            return;
        }
        if let Some(why) = &state.failed {
            world.note(format!("n{} ends by itself: {why}", live.id));
            crash(&world, live.id, Death::PowerCut);
            return;
        }
        enter(&world, &live, &state);
        let now = tokio::time::Instant::now().into_std();
        let deadline = state.until.filter(|until| state.is_self && *until > now);
        tokio::select! {
            biased;
            changed = states.changed() => if changed.is_err() { return },
            () = until(deadline) => {}
        }
    }
}

async fn until(deadline: Option<std::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn enter(world: &Arc<World>, live: &Live, state: &PrimaryState) {
    let now = tokio::time::Instant::now().into_std();
    let primary = state.is_self && state.until.is_none_or(|until| until > now);
    let may = primary && !live.handing_over.load(Ordering::SeqCst);
    let access = live.store.access();
    let changed = match (may, access) {
        (true, Access::Write) | (false, Access::Fenced) => Ok(()),
        (true, _) => {
            promoted(world, live, state.term);
            live.store.set_access(Access::Write)
        }
        (false, _) => {
            world.note(format!("n{} is fenced", live.id));
            live.store.set_access(Access::Fenced)
        }
    };
    let own = address(live.id);
    let follows = state.resolved && state.primary.as_ref().is_some_and(|primary| primary.name != own);
    let settled = changed.and_then(|()| if follows { live.store.follow_history() } else { Ok(()) });
    world.check(settled.map_err(|error| format!("n{} cannot change its role: {error}", live.id)));
}

fn promoted(world: &World, live: &Live, term: u64) {
    world.note(format!("n{} is primary in term {term}", live.id));
    let writers = world.all_live().into_iter().filter(|other| other.id != live.id);
    let writers = writers.filter(|other| other.store.access() == Access::Write).map(|other| other.id);
    let writers: Vec<u64> = writers.collect();
    let mut history = world.history();
    world.check(one_writer_per_term::check(&mut history, live.id, term, &writers));
    world.check(acked_is_durable::at_promotion(&history, live.id, &live.store));
}

/// Makes databases durable now and then, so that the log can be purged.
async fn checkpoint(world: Arc<World>, live: Arc<Live>) {
    loop {
        tokio::time::sleep(dice::millis(300, 3000)).await;
        if !world.runs(live.id, live.run) {
            return;
        }
        world.check(live.target.checkpoint());
    }
}

/// The database file as it is.
pub fn file_of(store: &Store, db: &crate::types::DbName) -> PathBuf {
    let path: &Path = &store.layout().dbs();
    path.join(db.as_str()).join("database")
}
