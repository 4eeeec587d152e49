//! What applications have written into the directory of the mount while nothing was mounted there.
//!
//! An application that goes on while the node does not, or that opens a database by its path in between, finds the empty
//! directory below and makes its own files there. They are no part of any database, and nothing may be lost: they are
//! put beside the mount point, where somebody can look at them, and the node starts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::processes;

/// Moves everything in `mount_point` into `MOUNT_POINT.stray/SECONDS`, and says so with the processes that still have
/// some of it open.
///
/// # Errors
/// Where something cannot be moved; what has been moved by then stays there.
pub(super) fn put_aside(mount_point: &Path) -> io::Result<()> {
    let names: Vec<_> =
        fs::read_dir(mount_point)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
    if names.is_empty() {
        return Ok(());
    }
    let aside = new_dir(mount_point)?;
    for name in &names {
        fs::rename(mount_point.join(name), aside.join(name))?;
    }
    let (files, pids) = (names.len(), processes::using_below(&aside));
    tracing::warn!(
        files, moved_to = %aside.display(), ?pids,
        "applications wrote into the mount's directory while nothing was mounted there; that is in no database, \
         and processes that have it open go on with it until they are restarted"
    );
    Ok(())
}

fn new_dir(mount_point: &Path) -> io::Result<PathBuf> {
    let mut parent = mount_point.as_os_str().to_owned();
    parent.push(".stray");
    fs::create_dir_all(&parent)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // More than one in a second.
    let mut number = now;
    loop {
        let dir = Path::new(&parent).join(number.to_string());
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            made => return made.map(|()| dir),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_put_aside_and_nothing_over_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let mount_point = dir.path().join("mnt");
        fs::create_dir(&mount_point).unwrap();
        put_aside(&mount_point).unwrap();
        assert!(!dir.path().join("mnt.stray").exists());
        for text in ["first", "second"] {
            fs::write(mount_point.join("app.db"), text).unwrap();
            fs::create_dir(mount_point.join("sub")).unwrap();
            put_aside(&mount_point).unwrap();
            assert_eq!(fs::read_dir(&mount_point).unwrap().count(), 0);
        }
        let mut kept: Vec<_> = fs::read_dir(dir.path().join("mnt.stray"))
            .unwrap()
            .map(|entry| fs::read_to_string(entry.unwrap().path().join("app.db")).unwrap())
            .collect();
        kept.sort();
        assert_eq!(kept, ["first", "second"]);
    }

    #[test]
    fn who_has_a_file_below_a_directory_open_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().canonicalize().unwrap();
        assert_eq!(processes::using_below(&below), Vec::<i32>::new());
        let file = fs::File::create(below.join("x")).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").stdin(file).spawn().unwrap();
        let found = processes::using_below(&below);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, [i32::try_from(child.id()).unwrap()]);
    }
}
