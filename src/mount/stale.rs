//! Mounts of an earlier run of this node that died: who still uses them, and getting rid of them.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::{MntFlags, umount2};

use super::mark::MountMark;
use super::mount_table;
use super::processes;

/// Where the kernel lists FUSE connections, one directory per number; empty where fusectl is not mounted.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// A mount of an earlier run that still lives in the processes that use it.
///
/// Their reads and commits go on against the same files (design: passthrough descriptors outlive a killed daemon), and
/// their locks are invisible to a new mount: nothing may be served before they have ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StaleMount {
    /// Number of the FUSE connection.
    pub connection: u64,
    /// Processes that use it, as far as this process may see.
    pub pids: Vec<i32>,
}

/// Looks for the mount an earlier run of this node left behind, whose FUSE connection number was `connection`, and whose mark
/// is known unless that was an earlier version. A dead mount that nobody uses is removed from `mount_point` on the way, and
/// is no stale mount any more.
pub fn stale_mount(connection: u64, mount_point: &Path, mark: Option<&MountMark>) -> Option<StaleMount> {
    if mark.is_some_and(MountMark::is_of_an_earlier_boot) {
        return None;
    }
    let minor = u32::try_from(connection).ok()?;
    let mounted = mount_table::all().into_iter().find(|mounted| mounted.device == (0, minor));
    if let Some(mounted) = &mounted
        && (mounted.mount_point != mount_point || !mounted.kind.starts_with("fuse"))
    {
        // Numbers are given out again: this one is another file system's now.
        return None;
    }
    let listed = fs::read_dir(CONNECTIONS).is_ok_and(|mut entries| entries.next().is_some());
    let lives = Path::new(CONNECTIONS).join(connection.to_string()).exists();
    if mounted.is_none() && listed && !lives {
        return None;
    }
    let inodes = mark.map(MountMark::inodes);
    let pids = processes::using(minor, inodes.as_ref());
    if pids.is_empty() {
        // Nobody is left to be fenced.
        dismiss_guards(connection);
        if mounted.is_some() {
            clean_up(mount_point);
        } else if lives {
            tracing::warn!(
                connection,
                "the FUSE connection of the last run still exists, but no process seems to use it"
            );
        }
        return None;
    }
    Some(StaleMount { connection, pids })
}

/// Whether applications still use the file system with this connection number; the process that watches over it does
/// not count.
pub fn is_used(connection: u64) -> bool {
    u32::try_from(connection).is_ok_and(|minor| !processes::using(minor, None).is_empty())
}

/// Ends the processes that fenced a mount nobody uses any more.
fn dismiss_guards(connection: u64) {
    for pid in processes::guards_of(connection) {
        // It may be gone by itself.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Whether a mount is at `mount_point` whose daemon has died.
pub(super) fn is_dead(mount_point: &Path) -> bool {
    // Unlike the attributes of its root, the kernel never remembers these numbers.
    nix::sys::statvfs::statvfs(mount_point) == Err(nix::errno::Errno::ENOTCONN)
}

/// Removes a dead mount at `mount_point`.
fn clean_up(mount_point: &Path) {
    if !is_dead(mount_point) {
        return;
    }
    match detach(mount_point) {
        Ok(()) => {
            tracing::info!(mount_point = %mount_point.display(), "removed the dead mount of an earlier run")
        }
        Err(error) => tracing::warn!(
            mount_point = %mount_point.display(),
            "cannot remove the dead mount of an earlier run: {error}; try: fusermount3 -u -z {}",
            mount_point.display()
        ),
    }
}

/// Ends all requests of the mount at `mount_point` whose connection was `connection`, and with them whoever waits for
/// its dead daemon. Does nothing where that mount is gone. The mount goes too, unless somebody uses it: the caller may.
///
/// # Errors
/// Where the kernel refuses.
pub fn abort_dead_mount(mount_point: &Path, connection: u64) -> io::Result<()> {
    let is_it = |mounted: mount_table::Mounted| u64::from(mounted.device.1) == connection;
    if !mount_table::at(mount_point).is_some_and(is_it) {
        return Ok(());
    }
    // The flag aborts the connection before it is known whether the mount can go.
    match umount2(mount_point, MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EBUSY | nix::errno::Errno::EINVAL) => Ok(()),
        // Without CAP_SYS_ADMIN: the file belongs to the user who mounted.
        Err(nix::errno::Errno::EPERM) => abort(connection),
        Err(errno) => Err(errno.into()),
    }
}

/// Ends all requests of a connection, and the connection with them.
pub(super) fn abort(connection: u64) -> io::Result<()> {
    fs::write(Path::new(CONNECTIONS).join(connection.to_string()).join("abort"), "1")
}

/// Takes a mount out of the tree at once; it ends when the last process stops using it.
pub(super) fn detach(mount_point: &Path) -> io::Result<()> {
    match umount2(mount_point, MntFlags::MNT_DETACH) {
        Ok(()) => Ok(()),
        // Without CAP_SYS_ADMIN: the setuid program that mounted it.
        Err(nix::errno::Errno::EPERM) => {
            let status = std::process::Command::new("fusermount3")
                .args(["-u", "-z", "--"])
                .arg(mount_point)
                .status()?;
            if status.success() { Ok(()) } else { Err(io::Error::other(format!("fusermount3: {status}"))) }
        }
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_never_was_is_not_stale() {
        assert_eq!(stale_mount(999_999_999, Path::new("/no/such/mount"), None), None);
        assert_eq!(stale_mount(u64::MAX, Path::new("/no/such/mount"), None), None);
    }

    #[test]
    fn strangers_who_use_a_number_again_are_no_applications_of_the_old_mount() {
        // A FUSE mount of somebody else cannot be had in a unit test; a file of /proc has a device without a major number, too.
        let minor = processes::minor_of(Path::new("/proc/version")).unwrap();
        let file = fs::File::open("/proc/version").unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").stdin(file).spawn().unwrap();
        let mark = MountMark::draw();
        let users = processes::using(minor, Some(&mark.inodes()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(users, Vec::<i32>::new());
        let earlier = MountMark { boot_id: "another".into(), ..mark };
        assert_eq!(stale_mount(u64::from(minor), Path::new("/proc"), Some(&earlier)), None);
    }

    #[test]
    fn a_number_that_another_file_system_has_now_is_not_stale() {
        let proc = mount_table::at(Path::new("/proc")).unwrap();
        assert_eq!(stale_mount(u64::from(proc.device.1), Path::new("/mnt/skein"), None), None);
    }
}
