//! Kills: of the daemon, the application, the replica, at random moments and at each labelled call.
//!
//! After each round every acknowledged commit (all rounds commit with FULL or a rollback journal) must be there,
//! `integrity_check` be ok, no money be lost, and the replica end at the same checksum.
//! `SKEIN_CRASH_ROUNDS` (default 16) is the number of rounds of each of the two tests; `SKEIN_CRASH_SEED` repeats one.

#[path = "../harness/mod.rs"]
mod harness;

mod power;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use harness::sql::{self, JOURNAL_MODES};
use harness::{App, Cluster, Node, Options, is_plain};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

const DATABASES: usize = 2;
const ACCOUNTS: i64 = 20;

/// What applications were told, per database and client: the last acknowledged sequence number.
type Acknowledged = BTreeMap<(String, String), i64>;

fn rounds() -> u64 {
    harness::number("SKEIN_CRASH_ROUNDS", 16)
}

fn first_seed() -> u64 {
    harness::number("SKEIN_CRASH_SEED", 1)
}

/// Two databases in a journal mode, several writers on each, a reader on each node.
struct Traffic {
    writers: Vec<(String, App)>,
    watchers: Vec<App>,
}

impl Traffic {
    fn start(cluster: &Cluster, journal: &str, seed: u64) -> Self {
        let seed = seed.to_string();
        let mut writers = Vec::new();
        let mut watchers = Vec::new();
        for number in 0..DATABASES {
            let db = format!("{journal}-{number}.db");
            for client in ["a", "b"] {
                let note = if client == "a" { "40" } else { "900" };
                let arguments = [
                    "--id",
                    client,
                    "--journal",
                    journal,
                    "--seed",
                    &seed,
                    "--note",
                    note,
                    "--page-size",
                    "1024",
                ];
                writers.push((db.clone(), App::transfer(&cluster.primary.path(&db), &arguments)));
            }
            let nodes = std::iter::once(&cluster.primary).chain(&cluster.replicas);
            watchers.extend(nodes.map(|node| App::transfer(&node.path(&db), &["--watch"])));
        }
        Self { writers, watchers }
    }

    fn commits(&self) -> usize {
        self.writers.iter().map(|(_, app)| app.count("commit")).sum()
    }

    /// Waits until the applications committed something, or all have given up.
    fn warm_up(&mut self, commits: usize, limit: Duration) {
        let _ = harness::within(limit, || {
            let ended = self.writers.iter_mut().all(|(_, app)| app.has_ended());
            (ended || self.commits() >= commits).then_some(())
        });
    }

    /// Ends the readers, none of which may have seen half a transaction.
    fn stop_watching(&mut self) {
        for mut watcher in self.watchers.drain(..) {
            let said = watcher.kill9();
            let broken = said.iter().find(|line| line.starts_with("broken"));
            assert!(broken.is_none(), "a reader saw {broken:?}");
        }
    }

    /// Ends all of it and adds up what was acknowledged.
    fn kill(mut self, acknowledged: &mut Acknowledged) {
        self.stop_watching();
        for (db, app) in &mut self.writers {
            for line in app.kill9() {
                if let Some((client, sequence)) =
                    line.strip_prefix("commit ").and_then(|rest| rest.split_once(' '))
                {
                    // A line cut short by the kill acknowledges nothing.
                    let Ok(sequence) = sequence.parse::<i64>() else { continue };
                    let last = acknowledged.entry((db.clone(), client.to_owned())).or_default();
                    *last = (*last).max(sequence);
                }
            }
        }
    }
}

/// Everything that must hold of one node's mount.
fn check_node(node: &Node, acknowledged: &Acknowledged, context: &str) {
    let databases: BTreeSet<_> = acknowledged.keys().map(|(db, _)| db).collect();
    for db in databases {
        let connection = sql::open(&node.path(db));
        assert_eq!(
            sql::text(&connection, "PRAGMA integrity_check"),
            "ok",
            "{context}: {db} on {}",
            node.settings.name
        );
        let sum = sql::number(&connection, "SELECT sum(balance) FROM account");
        assert_eq!(sum, ACCOUNTS * 1000, "{context}: {db} on {}", node.settings.name);
        for ((_, client), last) in acknowledged.iter().filter(|((of, _), _)| of == db) {
            let sql = format!("SELECT coalesce(max(seq), 0) FROM ledger WHERE client = '{client}'");
            let (kept, count) = (
                sql::number(&connection, &sql),
                sql::number(&connection, &sql.replace("coalesce(max(seq), 0)", "count(*)")),
            );
            assert!(
                kept >= *last,
                "{context}: {db} of {client}: {last} acknowledged, {kept} kept on {}",
                node.settings.name
            );
            assert_eq!(kept, count, "{context}: {db} of {client} has a gap on {}", node.settings.name);
        }
    }
}

/// Brings every node back and checks all of them.
fn settle(cluster: &mut Cluster, acknowledged: &Acknowledged, context: &str) {
    for node in std::iter::once(&mut cluster.primary).chain(&mut cluster.replicas) {
        if !node.is_running() {
            node.kill9();
            if let Err(error) = node.start() {
                panic!("{context}: {error}");
            }
        }
    }
    check_node(&cluster.primary, acknowledged, context);
    let databases: BTreeSet<_> = acknowledged.keys().map(|(db, _)| db.clone()).collect();
    for db in databases {
        eprintln!("{context}: {db} converges");
        cluster.converge(&db);
    }
    for replica in &cluster.replicas {
        check_node(replica, acknowledged, context);
    }
}

/// Waits until the node has noticed that nobody uses its earlier mounts any more.
fn wait_until_nothing_is_held(node: &Node) {
    if is_plain() {
        return;
    }
    harness::eventually("nobody holds a database through an earlier mount", || {
        let status = node.status().ok()?;
        let held = status["databases"].as_array()?.iter().any(|db| db.get("held_by").is_some());
        (!held).then_some(())
    });
}

fn crash_at_random_moments(options: &Options) {
    let Some(mut cluster) = Cluster::start(options) else { return };
    let mut acknowledged = Acknowledged::new();
    for seed in first_seed()..first_seed() + rounds().div_ceil(2) {
        let mut random = StdRng::seed_from_u64(seed);
        let journal = *JOURNAL_MODES.choose(&mut random).unwrap();
        let victim = *["daemon", "daemon only", "application", "both", "replica", "all", "replica twice"]
            .choose(&mut random)
            .unwrap();
        let context = format!(
            "SKEIN_CRASH_SEED={seed} ({journal}, kill {victim}, passthrough {})",
            options.passthrough
        );
        let mut traffic = Traffic::start(&cluster, journal, seed);
        traffic.warm_up(20, Duration::from_secs(20));
        assert!(traffic.commits() > 0, "{context}: nobody could commit: {:?}", traffic.writers[0].1.end());
        // The moment of the kill is what this test draws.
        std::thread::sleep(Duration::from_micros(random.random_range(0..300_000)));
        match victim {
            "application" => traffic.kill(&mut acknowledged),
            "daemon" | "both" => {
                cluster.primary.kill9();
                if victim == "daemon" {
                    // The applications meet the dead mount before they go.
                    std::thread::sleep(Duration::from_millis(20));
                }
                traffic.kill(&mut acknowledged);
            }
            "daemon only" => {
                cluster.primary.kill9();
                // It comes back beside the applications, which keep what they have open until they are killed.
                cluster.primary.must_start();
                traffic.kill(&mut acknowledged);
                wait_until_nothing_is_held(&cluster.primary);
            }
            "all" => {
                cluster.replicas[0].kill9();
                cluster.primary.kill9();
                traffic.kill(&mut acknowledged);
            }
            _ => {
                let times = if victim == "replica" { 1 } else { 2 };
                for _ in 0..times {
                    cluster.replicas[0].kill9();
                    traffic.stop_watching();
                    cluster.replicas[0].must_start();
                    traffic.warm_up(traffic.commits() + 10, Duration::from_secs(5));
                }
                traffic.kill(&mut acknowledged);
            }
        }
        settle(&mut cluster, &acknowledged, &context);
        eprintln!("{context}: {} commits kept", acknowledged.values().sum::<i64>());
    }
}

#[test]
fn acknowledged_commits_survive_kills_at_random_moments() {
    crash_at_random_moments(&Options::replicas(1));
}

#[test]
fn acknowledged_commits_survive_kills_at_random_moments_without_passthrough() {
    crash_at_random_moments(&Options::replicas(1).without_passthrough());
}

/// The labels that a node passes while it starts, works and ends in order; of the primary and of the replica.
fn labels(options: &Options) -> Option<Vec<(bool, String)>> {
    let mut cluster = Cluster::start(&Options { replicas: 0, ..options.clone() })?;
    cluster.add_replica();
    let mut traced = Vec::new();
    for node in std::iter::once(&mut cluster.primary).chain(&mut cluster.replicas) {
        node.terminate();
        let trace = node.data().with_extension("trace");
        node.settings.env = vec![("SKEIN_FAULT_TRACE".into(), trace.to_str().unwrap().into())];
        traced.push((node.settings.role == "voter", trace));
        node.must_start();
    }
    for journal in JOURNAL_MODES {
        let mut traffic = Traffic::start(&cluster, journal, 1);
        traffic.warm_up(60, Duration::from_secs(20));
        traffic.kill(&mut Acknowledged::new());
        cluster.converge(&format!("{journal}-0.db"));
    }
    let mut found = Vec::new();
    for (primary, trace) in traced {
        let said = std::fs::read_to_string(&trace).unwrap_or_default();
        found.extend(said.lines().map(|label| (primary, label.to_owned())));
    }
    Some(found)
}

#[test]
fn acknowledged_commits_survive_a_failure_at_each_labelled_call() {
    if is_plain() {
        harness::skip("a plain directory has no labelled calls");
        return;
    }
    let options = Options::replicas(1);
    let Some(labels) = labels(&options) else { return };
    assert!(labels.len() >= 4, "hardly any call is labelled: {labels:?}");
    let mut plan: Vec<_> = labels
        .iter()
        .flat_map(|(primary, label)| {
            ["kill", "error", "full"].map(|action| (*primary, label.as_str(), action))
        })
        .collect();
    let mut random = StdRng::seed_from_u64(first_seed());
    rand::seq::SliceRandom::shuffle(&mut plan[..], &mut random);
    let wanted = usize::try_from(rounds()).unwrap();
    let mut cluster = Cluster::start(&options).expect("could be mounted before");
    let mut acknowledged = Acknowledged::new();
    // Few rounds take some of the plan; many rounds take all of it, at other passes each time.
    for (round, (primary, label, action)) in plan.iter().cycle().take(wanted).enumerate() {
        let nth = if round < plan.len() {
            *[1, 2, 3, 10].choose(&mut random).unwrap()
        } else {
            random.random_range(1..60)
        };
        let journal = *JOURNAL_MODES.choose(&mut random).unwrap();
        let fault = format!("{label}:{nth}:{action}");
        let passthrough = random.random_bool(0.5);
        let context = format!(
            "SKEIN_CRASH_SEED={} round {round}: SKEIN_FAULT={fault} on the {} ({journal}, passthrough {passthrough})",
            first_seed(),
            if *primary { "primary" } else { "replica" }
        );
        eprintln!("{context}");
        let victim = if *primary { &mut cluster.primary } else { &mut cluster.replicas[0] };
        victim.terminate();
        victim.settings.passthrough = passthrough;
        victim.settings.env = vec![("SKEIN_FAULT".into(), fault)];
        // It may die while it starts: that is one of the moments.
        if victim.start().is_ok() {
            let mut traffic = Traffic::start(&cluster, journal, round as u64);
            traffic.warm_up(80, Duration::from_secs(4));
            let victim = if *primary { &mut cluster.primary } else { &mut cluster.replicas[0] };
            // A node that survived its failure is killed too: what it holds then must be enough.
            victim.kill9();
            victim.settings.env.clear();
            traffic.kill(&mut acknowledged);
        } else {
            victim.settings.env.clear();
        }
        settle(&mut cluster, &acknowledged, &context);
    }
}
