//! The program that judges the histories of `scripts/torture` accepts true ones and rejects false ones.

use std::path::Path;
use std::process::Command;

use crate::harness;

fn passes(program: &str) {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/torture").join(program);
    let Ok(output) = Command::new("python3").arg(tests).output() else {
        harness::skip("python3 is not installed");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("\nOK"), "{said}");
}

#[test]
fn the_checker_of_the_torture_rejects_every_kind_of_false_history() {
    passes("test_checker.py");
}

#[test]
fn the_torture_sees_threads_that_hang_and_no_others_and_counts_rounds() {
    passes("test_run.py");
}
