//! The directories of a node.

use std::path::{Path, PathBuf};

use nix::sys::statfs::{self, FsType, statfs};

use super::Finding;
use crate::config::{LimitSettings, Partial};
use crate::io::free_space::Space;

/// Free space below which an operator should know, in bytes.
const COMFORTABLE_BYTES: u64 = 1 << 30;
/// File systems that lose locks or syncs, or are not this machine's alone.
///
/// Source: statfs(2).
const REMOTE: [(FsType, &str); 4] = [
    (statfs::NFS_SUPER_MAGIC, "NFS"),
    (statfs::SMB_SUPER_MAGIC, "SMB"),
    (statfs::FUSE_SUPER_MAGIC, "FUSE"),
    (FsType(0xff53_4d42), "CIFS"),
];

pub(super) fn examine(settings: &Partial, running: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(data) = &settings.data {
        findings.push(directory("data directory", data, "--data"));
        findings.push(disk(data, LimitSettings::resolve(&settings.limits).disk_reserve_bytes));
    }
    if let Some(mount) = &settings.mount {
        findings.push(mount_point(mount, running));
    }
    findings
}

/// The nearest directory that exists.
fn existing(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn directory(check: &'static str, path: &Path, option: &str) -> Finding {
    let (shown, nearest) = (path.display(), existing(path));
    if path.exists() && !path.is_dir() {
        return Finding::failure(
            check,
            format!("{shown} is no directory"),
            format!("choose another {option}"),
        );
    }
    match tempfile::tempfile_in(&nearest) {
        Ok(_) if path.is_dir() => Finding::ok(check, format!("{shown} is writable")),
        Ok(_) => Finding::ok(check, format!("{shown} can be made")),
        Err(error) => Finding::failure(
            check,
            format!("{} is not writable: {error}", nearest.display()),
            format!("make it writable for this user, or choose another {option}"),
        ),
    }
}

fn disk(data: &Path, configured: u64) -> Finding {
    const CHECK: &str = "disk";
    let nearest = existing(data);
    let kind = statfs(&nearest).map(|asked| asked.filesystem_type());
    if let Ok(kind) = kind
        && let Some((_, name)) = REMOTE.iter().find(|(remote, _)| *remote == kind)
    {
        return Finding::failure(
            CHECK,
            format!("{} is on {name}", data.display()),
            "put --data on a local disk",
        );
    }
    match Space::of(&nearest) {
        Ok(space) => of_space(space, space.reserve(configured)),
        Err(error) => {
            Finding::failure(CHECK, format!("{}: {error}", nearest.display()), "repair the file system")
        }
    }
}

fn of_space(space: Space, reserve: u64) -> Finding {
    const CHECK: &str = "disk";
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let seen = format!("{} free of {}, {} kept in reserve", mib(space.free), mib(space.total), mib(reserve));
    match space.free {
        free if free < reserve => Finding::failure(CHECK, seen, "free some space: commits are refused now"),
        free if free < COMFORTABLE_BYTES => Finding::warning(CHECK, seen, "free some space soon"),
        _ => Finding::ok(CHECK, seen),
    }
}

fn mount_point(mount: &Path, running: bool) -> Finding {
    const CHECK: &str = "mount point";
    if running {
        return Finding::ok(CHECK, format!("{}, used by the node that runs", mount.display()));
    }
    if let Err(error) = std::fs::metadata(mount)
        && error.raw_os_error() == Some(nix::libc::ENOTCONN)
    {
        let remedy = "a start takes its place; what programs still have open there can be opened when they have closed it, see --stale-mount";
        return Finding::warning(CHECK, "the mount of a node that died is in its place", remedy);
    }
    if std::fs::read_dir(mount).is_ok_and(|mut entries| entries.next().is_some()) {
        let shown = mount.display();
        let seen = format!(
            "{shown} is not empty: a new node does not start there, one that was mounted there puts that into {shown}.stray"
        );
        return Finding::warning(CHECK, seen, "move it away; skein db import takes databases in");
    }
    directory(CHECK, mount, "--mount")
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;

    #[test]
    fn a_disk_is_judged_by_what_is_left_beyond_the_reserve() {
        let health = |free| of_space(Space { free, total: 1 << 40 }, 64 << 20).health;
        assert_eq!(health(1 << 39), Health::Ok);
        assert_eq!(health(500 << 20), Health::Warning);
        assert_eq!(health(10 << 20), Health::Failure);
    }

    #[test]
    fn directories_are_found_usable_or_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(mount_point(&dir.path().join("new/mnt"), false).health, Health::Ok);
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert_eq!(directory("data directory", &file, "--data").health, Health::Failure);
        assert_eq!(mount_point(dir.path(), false).health, Health::Warning);
        assert_eq!(mount_point(dir.path(), true).health, Health::Ok);
    }
}
