//! The machine: FUSE, kernel, rights, clock.

use std::fs::File;
use std::path::Path;

use nix::libc;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::utsname::uname;

use super::Finding;

/// The first kernel that passes reads and writes through to the backing file.
const PASSTHROUGH_SINCE: (u32, u32) = (6, 9);
/// Fewer open files are too few for many databases.
const FILES_MIN: u64 = 4096;
/// Number of the capability to mount, and to pass files through.
///
/// Source: `include/uapi/linux/capability.h`, `CAP_SYS_ADMIN`.
const CAP_SYS_ADMIN: u32 = 21;

pub(super) fn examine() -> Vec<Finding> {
    let admin = has_capability(CAP_SYS_ADMIN);
    vec![fuse(), rights(admin), kernel(admin), open_files(), clock()]
}

fn fuse() -> Finding {
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Finding::ok("fuse", "/dev/fuse can be opened"),
        Err(error) => Finding::failure(
            "fuse",
            format!("/dev/fuse cannot be opened: {error}"),
            "modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN",
        ),
    }
}

fn rights(admin: bool) -> Finding {
    let in_path = |dir: std::path::PathBuf| dir.join("fusermount3").exists();
    let path = std::env::var_os("PATH").unwrap_or_default();
    match (admin, std::env::split_paths(&path).any(in_path)) {
        (true, _) => Finding::ok("rights", "this user may mount"),
        (false, true) => Finding::ok("rights", "this user mounts through fusermount3"),
        (false, false) => Finding::failure(
            "rights",
            "no CAP_SYS_ADMIN, and fusermount3 is not installed",
            "run as root, or install the package fuse3; in a container: --cap-add SYS_ADMIN",
        ),
    }
}

fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
        .is_some_and(|all| all >> number & 1 == 1)
}

fn kernel(admin: bool) -> Finding {
    let release = uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    match (version(&release) >= Some(PASSTHROUGH_SINCE), admin) {
        (true, true) => Finding::ok("kernel", format!("Linux {release}: passthrough is possible")),
        (true, false) => Finding::warning(
            "kernel",
            format!("Linux {release}: no passthrough without CAP_SYS_ADMIN, so writes are slower"),
            "run as root, or with CAP_SYS_ADMIN",
        ),
        (false, _) => Finding::warning(
            "kernel",
            format!("Linux {release}: no passthrough, so writes are slower"),
            "use Linux 6.9 or newer",
        ),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn open_files() -> Finding {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, _)) if soft >= FILES_MIN => Finding::ok("open files", format!("at most {soft}")),
        Ok((soft, _)) => Finding::warning(
            "open files",
            format!("at most {soft}; each database in use takes several"),
            "ulimit -n 65536, or LimitNOFILE=65536 in the systemd unit",
        ),
        Err(error) => Finding::warning("open files", format!("the limit is not known: {error}"), ""),
    }
}

fn clock() -> Finding {
    let synchronized =
        Path::new("/run/systemd/timesync/synchronized").exists() || kernel_clock_is_synchronized();
    match synchronized {
        true => Finding::ok("clock", "synchronized"),
        false => Finding::warning(
            "clock",
            "not synchronized: times in events, logs and lag will be wrong; nothing else depends on it",
            "start systemd-timesyncd, chrony or ntpd",
        ),
    }
}

/// Source: adjtimex(2), `STA_UNSYNC`.
#[allow(unsafe_code)]
fn kernel_clock_is_synchronized() -> bool {
    // SAFETY: all-zero bytes are a valid `timex` (numbers only), with `modes` 0 the call changes nothing, and it writes
    // into the structure it is given and nowhere else.
    let (state, times) = unsafe {
        let mut times: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&mut times), times)
    };
    state >= 0 && times.status & libc::STA_UNSYNC == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_compared_as_numbers() {
        assert_eq!(version("6.18.5-fc"), Some((6, 18)));
        assert!(version("6.10.0") > Some(PASSTHROUGH_SINCE) && version("5.15") < Some(PASSTHROUGH_SINCE));
        assert_eq!(version("odd"), None);
    }

    #[test]
    fn every_finding_that_is_not_well_has_a_remedy() {
        for finding in examine() {
            assert!(finding.health == super::super::Health::Ok || !finding.remedy.is_empty(), "{finding:?}");
        }
    }
}
