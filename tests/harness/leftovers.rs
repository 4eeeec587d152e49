//! Mounts that killed test runs left behind.

use std::path::Path;
use std::sync::Once;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

/// How the directories of tests begin.
const PREFIXES: [&str; 3] = ["skein-test-", "skein-voters-", "skein-cluster-"];

/// Removes dead mounts below the directories of earlier tests, once a process. Those of tests under way are not dead:
/// their daemons answer, or are started again by their test, which does not mind.
pub fn clean_once() {
    static CLEANED: Once = Once::new();
    CLEANED.call_once(|| {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        let of_tests =
            mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|mount| is_of_test(mount));
        for mount in of_tests.filter(|mount| nix::sys::statvfs::statvfs(*mount) == Err(Errno::ENOTCONN)) {
            if !has_test(mount) {
                // Best effort: a test that cannot use the place says so itself.
                let _ = umount2(mount, MntFlags::MNT_DETACH);
            }
        }
    });
}

fn is_of_test(mount: &str) -> bool {
    let below = Path::new(mount).strip_prefix(std::env::temp_dir()).ok();
    let first = below.and_then(|below| below.iter().next()).and_then(|name| name.to_str());
    first.is_some_and(|name| PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
}

/// Whether any process names the mount on its command line: the guard of a node that a test has killed for a moment.
fn has_test(mount: &str) -> bool {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
        .any(|command| command.split(|byte| *byte == 0).any(|argument| argument == mount.as_bytes()))
}
