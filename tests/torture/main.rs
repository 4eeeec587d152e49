//! `scripts/torture` on fixed seeds: some minutes of applications that are not kind, for each shape of a cluster.
//!
//! The seeds were chosen for their faults: two rounds of each have every kind but one together.
//!
//! A shape that fails says which rule was broken and where the round's directory is kept; nothing is tried twice.
//! `SKEIN_TORTURE_ROUNDS` is the number of rounds of each shape, `SKEIN_TORTURE_SEED` another seed for all.

#[path = "../harness/mod.rs"]
mod harness;

use std::path::Path;
use std::process::Command;

/// Rounds of each shape; one takes some 20 seconds.
const ROUNDS: u64 = 1;
/// A run that takes longer hangs, seconds for each round.
const ROUND_SECONDS_MAX: u64 = 300;

fn torture(shape: &str, seed: u64) {
    if !harness::needs_skein() {
        return;
    }
    let rounds = harness::number("SKEIN_TORTURE_ROUNDS", ROUNDS);
    let seed = harness::number("SKEIN_TORTURE_SEED", seed);
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/torture/run.py");
    let limit = (rounds * ROUND_SECONDS_MAX).to_string();
    let mut command = Command::new("timeout");
    command.args(["--signal=TERM", "--kill-after=30", &limit, "python3"]).arg(program);
    // The seeds were chosen without this kind; tests/it/stopped_daemon.rs has it.
    command.args(["--without", "stop_primary"]);
    command.args(["--shape", shape, "--seed", &seed.to_string(), "--rounds", &rounds.to_string()]);
    command.arg("--skein").arg(harness::skein().get_program());
    let Ok(output) = command.output() else {
        harness::skip("timeout (coreutils) is not installed");
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout);
    for line in said.lines().filter_map(|line| line.strip_prefix("skipped: torture: ")) {
        harness::skip(line);
    }
    print!("{said}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "torture of shape {shape}, seed {seed}: {}\n{errors}", output.status);
}

#[test]
fn one_voter_and_a_replica() {
    torture("1r", 1);
}

#[test]
fn three_voters() {
    torture("3", 12);
}

#[test]
fn five_voters() {
    torture("5", 18);
}

#[test]
fn three_voters_and_two_replicas() {
    torture("3r2", 47);
}

#[test]
fn without_passthrough() {
    torture("nopass", 351);
}

#[test]
fn small_disks() {
    torture("small", 17);
}

#[test]
fn clocks_that_jump() {
    torture("clock", 697);
}
