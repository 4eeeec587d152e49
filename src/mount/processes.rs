//! Which processes use a file system, by its device number.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::libc;

/// Processes, other than this one, that have a file of the device `0:minor` open, mapped, or as a directory; with `inodes`
/// only those that have a file with such a number.
///
/// Sees what this user may see: processes of other users and of other process namespaces may be missing. Those of other
/// process namespaces can do no harm on a dead mount, see [`PendingOpen::finish`](super::open::PendingOpen::finish).
pub(super) fn using(minor: u32, inodes: Option<&Range<u64>>) -> Vec<i32> {
    others(|pid| !is_guard(pid) && uses(pid, minor, inodes))
}

/// The same by inode: the processes that have it open, mapped, or as a directory.
pub(super) fn using_each(minor: u32, inodes: &Range<u64>) -> BTreeMap<u64, BTreeSet<i32>> {
    let mut users: BTreeMap<u64, BTreeSet<i32>> = BTreeMap::new();
    for pid in others(|pid| !is_guard(pid)) {
        let of_mount = |(device, inode): (u32, u64)| device == minor && inodes.contains(&inode);
        for (_, inode) in files_used(pid).filter(|file| of_mount(*file)) {
            users.entry(inode).or_default().insert(pid);
        }
    }
    users
}

/// Processes, other than this one, that have a file below `dir` open; `dir` as the kernel names it.
pub(super) fn using_below(dir: &Path) -> Vec<i32> {
    others(|pid| open_files(pid).any(|link| fs::read_link(link).is_ok_and(|path| path.starts_with(dir))))
}

/// Whether any application has a descriptor of the file with this inode number left that was opened as `flags` say: with the
/// same access mode, and `O_NOFOLLOW` or not. `None` where the descriptors of process `pid` cannot be seen.
pub(super) fn have_descriptor(pid: u32, inode: u64, flags: i32) -> Option<bool> {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid != 0)?;
    fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")).ok()?;
    let same = |link: PathBuf| {
        file_of(&link).is_some_and(|(_, number)| number == inode)
            && flags_of(&link).is_none_or(|found| (found ^ flags) & (libc::O_ACCMODE | libc::O_NOFOLLOW) == 0)
    };
    Some(!others(|pid| !is_guard(pid) && open_files(pid).any(same)).is_empty())
}

/// The `open(2)` flags of the descriptor behind the link `/proc/PID/fd/N`.
fn flags_of(link: &Path) -> Option<i32> {
    let number = link.file_name()?;
    let described = fs::read_to_string(link.parent()?.with_file_name("fdinfo").join(number)).ok()?;
    let flags = described.lines().find_map(|line| line.strip_prefix("flags:"))?;
    i32::from_str_radix(flags.trim(), 8).ok()
}

fn others(which: impl Fn(i32) -> bool) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let mut users: Vec<i32> = pids.filter(|&pid| pid != own && which(pid)).collect();
    users.sort_unstable();
    users
}

/// The links to what a process has open.
fn open_files(pid: i32) -> impl Iterator<Item = PathBuf> {
    let descriptors = Path::new("/proc").join(pid.to_string()).join("fd");
    fs::read_dir(descriptors).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

/// Name of the hidden command of the process that watches over a mount. It uses the mount only for its applications'
/// sake, and so is none of them.
pub const GUARD_COMMAND: &str = "guard-mount";

/// The guards of the connection with this number.
pub(super) fn guards_of(connection: u64) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let own = connection.to_string();
    pids.filter(|&pid| guarded(pid).is_some_and(|guarded| guarded == own)).collect()
}

fn is_guard(pid: i32) -> bool {
    guarded(pid).is_some()
}

/// The connection that a process guards, where it is a guard.
fn guarded(pid: i32) -> Option<String> {
    let words = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).ok()?;
    let mut words = words.split(|byte| *byte == 0).skip(1);
    (words.next()? == GUARD_COMMAND.as_bytes()).then_some(())?;
    let _parent = words.next()?;
    String::from_utf8(words.next()?.to_vec()).ok()
}

fn uses(pid: i32, minor: u32, inodes: Option<&Range<u64>>) -> bool {
    files_used(pid)
        .any(|(device, inode)| device == minor && inodes.is_none_or(|inodes| inodes.contains(&inode)))
}

/// Minor number of the device and inode of everything that a process has open, as a directory or mapped, of devices
/// without a major number.
fn files_used(pid: i32) -> impl Iterator<Item = (u32, u64)> {
    let process = Path::new("/proc").join(pid.to_string());
    let maps = process.join("maps");
    let places = ["cwd", "root", "exe"].into_iter().map(move |name| process.join(name));
    // Read only where the descriptors do not answer already.
    let mapped = std::iter::once_with(move || mapped_files(&maps)).flatten();
    open_files(pid).chain(places).filter_map(|link| file_of(&link)).chain(mapped)
}

/// Source: proc_pid_maps(5): address, permissions, offset, device as hexadecimal `major:minor`, inode, path.
fn mapped_files(path: &Path) -> Vec<(u32, u64)> {
    let file = |line: &str| {
        let mut fields = line.split_whitespace().skip(3);
        let (major, minor) = fields.next()?.split_once(':')?;
        let major = u32::from_str_radix(major, 16).ok()?;
        (major == 0).then_some((u32::from_str_radix(minor, 16).ok()?, fields.next()?.parse().ok()?))
    };
    fs::read_to_string(path).map(|maps| maps.lines().filter_map(file).collect()).unwrap_or_default()
}

/// The minor number of the device `path` is on, where its major number is 0 (no block device).
pub(super) fn minor_of(path: &Path) -> Option<u32> {
    file_of(path).map(|(minor, _)| minor)
}

/// The same, and the inode number there.
///
/// Asks the kernel only, never the file system: the daemon behind a mount may be dead, or be the caller.
fn file_of(path: &Path) -> Option<(u32, u64)> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut status = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `path` is a C string and `status` has room for the structure; both live through the call. An all-zero
    // `statx` is valid (integers only), so reading it is sound whatever the call has written.
    let status = unsafe {
        let answer = libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT,
            libc::STATX_TYPE | libc::STATX_INO,
            status.as_mut_ptr(),
        );
        (answer == 0).then(|| status.assume_init())?
    };
    (status.stx_dev_major == 0).then_some((status.stx_dev_minor, status.stx_ino))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_process_with_an_open_file_is_found_and_this_one_is_not_listed() {
        // `/proc` itself is a file system without a block device.
        let minor = minor_of(Path::new("/proc/version")).unwrap();
        let file = fs::File::open("/proc/version").unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").stdin(file).spawn().unwrap();
        let inode = fs::metadata("/proc/version").unwrap().ino();
        let (users, same) = (using(minor, None), using(minor, Some(&(inode..inode + 1))));
        let each = using_each(minor, &(inode..inode + 1));
        let others = using(minor, Some(&(inode + 1..inode + 2)));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(same.contains(&(child.id() as i32)) && !others.contains(&(child.id() as i32)));
        assert!(users.contains(&(child.id() as i32)));
        assert!(each.len() == 1 && each[&inode].contains(&(child.id() as i32)), "{each:?}");
        assert!(!users.contains(&(std::process::id() as i32)));
    }

    #[test]
    fn a_descriptor_is_told_from_others_of_the_same_file_by_how_it_was_opened() {
        let inode = fs::metadata("/proc/version").unwrap().ino();
        let file = fs::File::open("/proc/version").unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").stdin(file).spawn().unwrap();
        let found = |flags| have_descriptor(child.id(), inode, flags);
        let (reading, writing) = (found(libc::O_RDONLY), found(libc::O_WRONLY));
        let like_sqlite = found(libc::O_RDONLY | libc::O_NOFOLLOW);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((reading, writing, like_sqlite), (Some(true), Some(false), Some(false)));
        assert_eq!(have_descriptor(child.id(), inode, libc::O_RDONLY), None, "the process is gone");
        assert_eq!(have_descriptor(0, inode, libc::O_RDONLY), None);
    }

    #[test]
    fn a_file_that_does_not_exist_is_on_no_device() {
        assert_eq!(minor_of(Path::new("/no/such/file")), None);
    }
}
