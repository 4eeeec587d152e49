//! Whole simulations, and the tests that run them.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::history::Fate;
use super::invariants::{acked_is_durable, integrity_check_ok, reads_are_a_prefix, same_pos_same_bytes};
use super::transaction::kinds;
use super::world::{Live, World};
use super::{dice, faults, node};
use crate::raft::Beginning;
use crate::types::{Access, Pos};

/// Seeds of an ordinary test run.
const SEEDS: Range<u64> = 0..50;
/// Simulated time until a repaired cluster has to work.
const LIVE_WITHIN: Duration = Duration::from_secs(20);

/// What came of a simulation.
struct Outcome {
    trace: String,
    broken: Option<String>,
}

/// On a thread of its own, so that one that panics is no more than a seed that fails.
fn simulate(seed: u64) -> Outcome {
    let thread = std::thread::Builder::new().name(format!("seed-{seed}"));
    let ended = thread.spawn(move || simulate_here(seed)).unwrap().join();
    ended.unwrap_or_else(|_| Outcome { trace: String::new(), broken: Some("it panics".into()) })
}

fn simulate_here(seed: u64) -> Outcome {
    dice::seed(Some(seed));
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() };
    let root = tempfile::Builder::new().prefix("skein-sim").tempdir_in(base).unwrap();
    let aside = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let outcome = runtime.block_on(async {
        let nodes = if dice::one_in(5) { 5 } else { 3 };
        let world = World::new(root.path().to_path_buf(), nodes, aside.handle().clone());
        live_through(&world).await;
        Outcome { trace: world.trace(), broken: world.verdict() }
    });
    drop(runtime);
    dice::seed(None);
    aside.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// One simulation from the founding of the cluster to the comparison of what is left of it.
async fn live_through(world: &Arc<World>) {
    found(world).await;
    if world.verdict().is_none() {
        tokio::spawn(look(world.clone()));
        world.links().loses_one_in = dice::pick(&[0, 0, 300, 60]).unwrap_or(0);
        faults::run(world, Duration::from_secs(8 + dice::below(12))).await;
    }
    if world.verdict().is_none() {
        recover(world).await;
    }
    if world.verdict().is_none() {
        compare(world).await;
    }
    let (history, messages) = (world.history().proposals().len(), world.messages());
    world.note(format!("{history} proposals; sum of messages {messages:016x}"));
    world.over.store(true, Ordering::SeqCst);
    for live in world.all_live() {
        world.leave(live.id);
        node::bury(&live);
    }
    // What was told to end ends.
    tokio::time::sleep(Duration::from_secs(5)).await;
}

async fn found(world: &Arc<World>) {
    let started = |id, beginning| async move {
        // A panic inside is one of the simulation's tasks; nothing works then.
        let _ = node::start(world.clone(), id, beginning).await;
    };
    started(1, Beginning::Found).await;
    for id in world.nodes().into_iter().skip(1) {
        started(id, Beginning::Wait).await;
        node::join(world, 1, id).await;
    }
    let all = world.nodes().len();
    let votes = |live: Arc<Live>| {
        let voting = live.raft.members().into_iter();
        voting.filter(|member| member.standing == crate::store::Standing::Votes).count()
    };
    eventually(world, "all vote", || world.live(1).is_some_and(|live| votes(live) == all)).await;
    world.founded.store(true, Ordering::SeqCst);
    // What fewer voters once acknowledged is held by a majority of those who vote now.
    let early = std::mem::take(&mut world.history().early);
    for (index, change) in early {
        world.check(acked_is_durable::blobs(world, index, &change));
    }
}

async fn eventually(world: &World, what: &str, mut look: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + LIVE_WITHIN;
    while !look() {
        if tokio::time::Instant::now() > end {
            return world.broken(format!("never happens: {what}"));
        }
        if world.verdict().is_some() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Looks at nodes as their readers do, at any time.
async fn look(world: Arc<World>) {
    loop {
        tokio::time::sleep(dice::millis(20, 400)).await;
        let (Some(live), Some(kind)) = (dice::pick(&world.all_live()), dice::pick(&kinds())) else {
            continue;
        };
        if !live.target.is_replayed() {
            continue;
        }
        live.target.check_positions();
        let read = reads_are_a_prefix::read(&world.history(), live.id, &kind.db, &live.store);
        world.check(read);
        compare_bytes(&world, &live);
    }
}

fn compare_bytes(world: &World, live: &Live) {
    for kind in kinds() {
        let Some(database) = live.store.get(&kind.db) else { continue };
        let Ok(bytes) = std::fs::read(node::file_of(&live.store, &kind.db)) else { continue };
        let mut history = world.history();
        world.check(same_pos_same_bytes::check(&mut history, live.id, &kind.db, database.pos(), &bytes));
    }
}

/// After the last repair there is a primary soon, and every database can be written.
async fn recover(world: &Arc<World>) {
    let since = world.history().proposals().len() as u64;
    eventually(world, "a primary after the repair", || {
        world.all_live().iter().any(|live| live.store.access() == Access::Write)
    })
    .await;
    eventually(world, "every database is written after the repair", || {
        let history = world.history();
        kinds().iter().all(|kind| {
            let mut new = history.proposals().range(since + 1..);
            new.any(|(_, new)| matches!(new.fate, Fate::Acknowledged(_)) && new.dbs.contains(&kind.db))
        })
    })
    .await;
    world.quiet.store(true, Ordering::SeqCst);
}

fn positions(live: &Live) -> Vec<Pos> {
    let pos = |kind: super::transaction::Kind| live.store.get(&kind.db).map(|database| database.pos());
    kinds().into_iter().map(|kind| pos(kind).unwrap_or(Pos::ZERO)).collect()
}

/// All nodes come to the same end, which has everything that was acknowledged.
async fn compare(world: &Arc<World>) {
    let all = world.nodes().len();
    eventually(world, "all databases are alike", || {
        let live = world.all_live();
        let ready = live.len() == all && live.iter().all(|live| live.target.is_replayed());
        ready && live.windows(2).all(|pair| positions(&pair[0]) == positions(&pair[1]))
    })
    .await;
    for live in world.all_live() {
        live.target.check_positions();
        compare_bytes(world, &live);
        for kind in kinds() {
            if world.history().content(&kind.db).is_empty() {
                // It was dropped last; that it is at no position here is seen above.
                continue;
            }
            let copy = world.root.join(format!("final-n{}-{}", live.id, kind.db.as_str().replace('/', "-")));
            let copied = std::fs::copy(node::file_of(&live.store, &kind.db), &copy);
            world.check(copied.map(drop).map_err(|error| error.to_string()));
            world.check(integrity_check_ok::check(&world.history(), &kind.db, &copy));
        }
    }
    let ended = acked_is_durable::at_the_end(&world.history());
    world.check(ended);
}

/// The seeds to run.
fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("SKEIN_SIM_SEEDS") else { return SEEDS };
    let number = |text: &str| text.parse().expect("SKEIN_SIM_SEEDS is SEED or START..END");
    match text.split_once("..") {
        Some((start, end)) => number(start)..number(end),
        None => number(&text)..number(&text) + 1,
    }
}

#[test]
fn voters_keep_their_promises_whatever_fails() {
    if super::is_loud() {
        // Another test may have done it.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .without_time()
            .try_init();
    }
    let (next, failed) = (Mutex::new(seeds()), Mutex::new(Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    // A simulation needs one thread; several of them know nothing of each other.
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(seed) = { next.lock().unwrap().next() } {
                    if let Some(broken) = simulate(seed).broken {
                        eprintln!("seed {seed}: {broken}");
                        eprintln!("  repeat it: SKEIN_SIM_SEEDS={seed} SKEIN_SIM_LOG=1 scripts/sim");
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap();
    failed.sort_unstable();
    assert!(failed.is_empty(), "seeds that fail: {failed:?}");
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_one_another() {
    let first = simulate(7);
    let again = simulate(7);
    let differs = first.trace.lines().zip(again.trace.lines()).find(|(a, b)| a != b);
    assert_eq!(differs, None, "the first line that differs");
    assert_eq!(first.trace, again.trace);
    assert_ne!(first.trace, simulate(8).trace);
}
