//! `skein run`: a command on the primary, and its exit code.

use std::process::Output;

use crate::harness::{Cluster, Node, Voters, skein, sql};

fn run(node: &Node, words: &[&str]) -> Output {
    skein().arg("run").args(words).env("SKEIN_URL", format!("http://{}", node.http)).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_command_runs_on_the_primary_and_its_exit_code_is_passed_on() {
    let Some(voters) = Voters::three() else { return };
    let (primary, other) = (voters.primary(), voters.follower());
    let (here, there) = (&voters.nodes[primary], &voters.nodes[other]);
    for place in ["--on-primary", "--if-primary", "--promote"] {
        let output = run(here, &[place, "--", "sh", "-c", "echo \"$0\"; exit 7", "said"]);
        assert_eq!(output.status.code(), Some(7), "{place}: {}", said(&output));
        assert_eq!(output.stdout, b"said\n");
    }
    let skipped = run(there, &["--if-primary", "--", "sh", "-c", "exit 7"]);
    assert_eq!(skipped.status.code(), Some(0));
    assert!(
        said(&skipped).contains(&format!("({} is): nothing is run", here.settings.name)),
        "{}",
        said(&skipped)
    );
    let late = run(there, &["--on-primary", "--timeout", "300ms", "--", "true"]);
    assert_eq!(late.status.code(), Some(3));
    assert!(said(&late).contains("--promote"), "{}", said(&late));
    let promoted = run(there, &["--promote", "--", "sh", "-c", "exit 8"]);
    assert_eq!(promoted.status.code(), Some(8), "{}", said(&promoted));
    // What runs then may write: it is primary.
    assert_eq!(voters.primary(), other);
    sql::run(&sql::create(&there.path("app.db"), "wal", 4096), "CREATE TABLE t(v)");
}

#[test]
fn a_command_that_cannot_run_says_why() {
    let Some(cluster) = Cluster::primary_and_replicas(1) else { return };
    let missing = run(&cluster.primary, &["--on-primary", "--", "no-such-program-here"]);
    assert_eq!(missing.status.code(), Some(127), "{}", said(&missing));
    let replica = run(&cluster.replicas[0], &["--on-primary", "--", "true"]);
    assert_eq!(replica.status.code(), Some(4), "{}", said(&replica));
    assert!(said(&replica).contains("use a voter"), "{}", said(&replica));
    for words in [&["--", "true"][..], &["--on-primary", "--promote", "--", "true"], &["--on-primary"]] {
        assert_eq!(run(&cluster.primary, words).status.code(), Some(2), "{words:?}");
    }
}
