//! What the black-box tests and the benchmark share: nodes as processes, their HTTP interface, applications
//! as processes, SQL.
//!
//! `SKEIN_TEST_PLAIN=1` replaces every mount by a plain directory (a replica's is the primary's): what fails
//! then is a mistake of the test, not of the filesystem.
#![allow(dead_code, unused_imports, reason = "each program uses its part")]

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

mod app;
pub mod certs;
mod cluster;
pub mod delay;
pub mod hrana;
pub mod http;
mod leftovers;
mod node;
mod small_disk;
pub mod sql;
mod voters;

pub use app::{App, example};
pub use cluster::{Cluster, Options, wait};
pub use node::{NO_OTHER_GUARD, Node, Settings, free_address, skein, unmount};
pub use small_disk::SmallDisk;
pub use voters::Voters;

/// How long anything that must happen may take before the test calls it a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Whether the mounts are plain directories, to prove the tests themselves.
pub fn is_plain() -> bool {
    std::env::var_os("SKEIN_TEST_PLAIN").is_some_and(|value| value != "0")
}

/// Says aloud, past the test runner's capture, that a test did not run.
pub fn skip(reason: &str) {
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    // One write: the runner's own lines may come from other threads.
    let line = format!("skipped: {test}: {reason}\n");
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// Whether a test that needs the real filesystem can run; says so where not.
pub fn can_mount() -> bool {
    if is_plain() {
        return true;
    }
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    leftovers::clean_once();
    match device {
        Ok(_) if nix::unistd::geteuid().is_root() || has_fusermount() => true,
        Ok(_) => {
            skip("not root and fusermount3 is not installed (package fuse3)");
            false
        }
        Err(error) => {
            skip(&format!("/dev/fuse cannot be opened: {error} (--device /dev/fuse --cap-add SYS_ADMIN)"));
            false
        }
    }
}

/// As [`can_mount`], for tests that mean nothing on a plain directory.
pub fn needs_skein() -> bool {
    if is_plain() {
        skip("asks for what a plain directory does not do");
        return false;
    }
    can_mount()
}

/// A library below the directories where systems keep them.
pub fn find_library(name: &str) -> Option<PathBuf> {
    let arch = std::env::consts::ARCH;
    let places = [format!("/usr/lib/{arch}-linux-gnu"), "/usr/lib64".into(), "/usr/lib".into()];
    places.iter().map(|place| PathBuf::from(place).join(name)).find(|path| path.exists())
}

fn has_fusermount() -> bool {
    std::process::Command::new("fusermount3").arg("--version").output().is_ok()
}

/// The program under test: of this cargo run, or `SKEIN_TEST_BIN`, or beside the running executable.
pub fn skein_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("SKEIN_TEST_BIN") {
        return path.into();
    }
    if let Some(path) = option_env!("CARGO_BIN_EXE_skein") {
        return path.into();
    }
    target_dir().join("skein")
}

/// `target/debug` or `target/release`, whichever this executable is of.
pub fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("the kernel knows the running executable");
    exe.parent().and_then(|dir| dir.parent()).expect("executables are in deps/ or examples/").to_owned()
}

/// Polls until `probe` gives something; panics with `what` after [`PATIENCE`].
pub fn eventually<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, probe).unwrap_or_else(|| panic!("not within {PATIENCE:?}: {what}"))
}

/// Polls until `probe` gives something, for at most `limit`.
pub fn within<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if start.elapsed() >= limit {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// A number from the environment, or `default`.
pub fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}
