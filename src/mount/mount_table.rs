//! `/proc/self/mountinfo`: what is mounted where.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mounted file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mounted {
    /// Major and minor number of its device.
    pub device: (u32, u32),
    /// Where.
    pub mount_point: PathBuf,
    /// Its type, such as `fuse`.
    pub kind: String,
    /// What was mounted, such as `skein`.
    pub source: String,
}

/// Everything mounted in this mount namespace; empty where `/proc` is missing.
pub(super) fn all() -> Vec<Mounted> {
    fs::read_to_string("/proc/self/mountinfo")
        .map(|text| text.lines().filter_map(parse).collect())
        .unwrap_or_default()
}

/// What is mounted at `path`, the uppermost. Does not touch the path itself, which may hang or fail on a dead mount.
pub(super) fn at(path: &Path) -> Option<Mounted> {
    all().into_iter().rfind(|mounted| mounted.mount_point == path)
}

/// Source: proc_pid_mountinfo(5): id, parent, major:minor, root, mount point, options, fields up to `-`, type, source.
fn parse(line: &str) -> Option<Mounted> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(2);
    let (major, minor) = front.next()?.split_once(':')?;
    let mount_point = unescape(front.nth(1)?);
    let mut back = back.split(' ');
    Some(Mounted {
        device: (major.parse().ok()?, minor.parse().ok()?),
        mount_point,
        kind: back.next()?.to_owned(),
        source: back.next()?.to_owned(),
    })
}

/// Blanks and backslashes are written as `\` and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, tail @ ..] = rest {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok()))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_optional_fields_and_a_blank_in_the_path_is_read() {
        let line = r"36 35 0:52 / /mnt/my\040dbs rw,noatime shared:1 master:2 - fuse skein rw,user_id=0";
        let expected = Mounted {
            device: (0, 52),
            mount_point: "/mnt/my dbs".into(),
            kind: "fuse".into(),
            source: "skein".into(),
        };
        assert_eq!(parse(line), Some(expected));
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(at(Path::new("/")).is_some());
        assert_eq!(at(Path::new("/no/such/place")), None);
    }
}
