//! A cluster of three nodes, each in a network namespace of its own, in rounds of kills, stops and cuts.
//!
//! In each round applications write and read on every node's mount while a fault comes and goes. Then all nodes
//! must agree, and agree with everything the applications were told; `checker.rs` says what that means.
//! `SKEIN_CLUSTER_ROUNDS` is the number of rounds, `SKEIN_CLUSTER_SEED` the seed of the first one. With
//! `SKEIN_CLUSTER_KEEP=1` the directories of a failed round are kept; with `SKEIN_CLUSTER_GO_ON=1` the next round
//! after a failure begins with a new cluster. `scripts/cluster` makes many rounds.

#[path = "../harness/mod.rs"]
mod harness;

mod book;
mod checker;
#[cfg(test)]
mod checker_tests;
mod client;
mod discarded;
mod faults;
mod history;
mod netns;
mod nodes;
mod rounds;
mod watch;

use nodes::Shape;
use rounds::Run;

/// Rounds of a cluster, as many as were asked for; `default` where nobody asked.
fn rounds(test: &str, shape: Shape, passthrough: bool, default: u64) {
    let mut first = harness::number("SKEIN_CLUSTER_SEED", 0);
    let seeds = first..first + harness::number("SKEIN_CLUSTER_ROUNDS", default);
    let Some(mut run) = Run::start(shape, passthrough) else { return };
    let mut failed = Vec::new();
    for seed in seeds {
        let Err(error) = run.round(seed).map(|summary| eprintln!("SKEIN_CLUSTER_SEED={seed}: {summary}"))
        else {
            continue;
        };
        let report = format!(
            "{error}{}\nrepeat this round: SKEIN_CLUSTER_SEED={seed} scripts/cluster 1 {test}\n\
             with those before it: SKEIN_CLUSTER_SEED={first} scripts/cluster {} {test}",
            run.last_words(),
            seed - first + 1
        );
        if harness::number("SKEIN_CLUSTER_GO_ON", 0) == 0 {
            panic!("{report}");
        }
        eprintln!("SKEIN_CLUSTER_SEED={seed} failed: {report}");
        failed.push(seed);
        first = seed + 1;
        drop(run);
        run = Run::start(shape, passthrough).expect("could be had before");
    }
    run.look_back().unwrap_or_else(|error| panic!("{error}"));
    assert!(failed.is_empty(), "rounds of these seeds failed: {failed:?}");
}

#[test]
fn three_voters_with_passthrough_agree_after_every_fault() {
    let test = "three_voters_with_passthrough_agree_after_every_fault";
    rounds(test, Shape::ThreeVoters, true, faults::KINDS_COUNT);
}

#[test]
fn three_voters_without_passthrough_agree_after_every_fault() {
    let test = "three_voters_without_passthrough_agree_after_every_fault";
    rounds(test, Shape::ThreeVoters, false, faults::KINDS_COUNT / 2);
}

#[test]
fn one_voter_and_two_replicas_agree_after_every_fault() {
    rounds("one_voter_and_two_replicas_agree_after_every_fault", Shape::OneVoterTwoReplicas, true, 4);
}
