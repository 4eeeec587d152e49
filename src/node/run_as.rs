//! The user that the supervised program runs as, and whether there is such a program at all.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, Gid, Uid, User, access, geteuid, getgrouplist};

use super::NodeError;
use crate::types::Attributes;

/// A user of this machine, with all groups.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct RunAs {
    /// The user's number.
    pub(super) uid: Uid,
    /// The user's own group.
    pub(super) gid: Gid,
    /// All groups, the own one among them.
    pub(super) groups: Vec<Gid>,
    /// What `USER` and `LOGNAME` are.
    pub(super) name: String,
    /// What `HOME` is.
    pub(super) home: PathBuf,
}

impl RunAs {
    /// The user of this name, or number; `None` where it is empty: the program runs as the daemon does.
    ///
    /// # Errors
    /// Where there is no such user, or the daemon may not become another one.
    pub(super) fn find(name: &str) -> Result<Option<Self>, String> {
        if name.is_empty() {
            return Ok(None);
        }
        let found = match name.parse() {
            Ok(number) => User::from_uid(Uid::from_raw(number)),
            Err(_) => User::from_name(name),
        };
        let user = match (found.map_err(|errno| format!("--exec-user {name}: {errno}"))?, name.parse()) {
            (Some(user), _) => Self::of(&user)?,
            // A number that the system has no name for, as in many containers.
            (None, Ok(number)) => Self {
                uid: Uid::from_raw(number),
                gid: Gid::from_raw(number),
                groups: vec![Gid::from_raw(number)],
                name: name.to_owned(),
                home: "/".into(),
            },
            (None, Err(_)) => return Err(format!("--exec-user {name}: there is no such user")),
        };
        if user.uid != geteuid() && !geteuid().is_root() {
            return Err(format!("--exec-user {name}: only root may run a program as somebody else"));
        }
        Ok(Some(user))
    }

    fn of(user: &User) -> Result<Self, String> {
        let failed = |why: String| format!("--exec-user {}: {why}", user.name);
        let name = CString::new(user.name.as_str()).map_err(|error| failed(error.to_string()))?;
        let groups = getgrouplist(&name, user.gid).map_err(|errno| failed(format!("its groups: {errno}")))?;
        Ok(Self { uid: user.uid, gid: user.gid, groups, name: user.name.clone(), home: user.dir.clone() })
    }

    /// Whether the user may make files in a directory with these attributes.
    pub(super) fn may_write_in(&self, directory: Attributes) -> bool {
        let Attributes { uid, gid, mode } = directory;
        // Writing and searching.
        let allowed = |shift: u32| (mode >> shift) & 0o3 == 0o3;
        if self.uid.is_root() {
            return true;
        }
        if self.uid.as_raw() == uid {
            return allowed(6);
        }
        if self.groups.iter().any(|group| group.as_raw() == gid) { allowed(3) } else { allowed(0) }
    }
}

/// Makes sure, before anything is mounted, that there is a program to run.
///
/// # Errors
/// [`NodeError::Command`] where there is none that can be executed.
pub(super) fn check_command(words: &[String]) -> Result<(), NodeError> {
    let Some(program) = words.first() else { return Ok(()) };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let executable = |file: &Path| file.is_file() && access(file, AccessFlags::X_OK).is_ok();
    let failed = |why: &str| Err(NodeError::Command { command: program.clone(), why: why.to_owned() });
    if program.contains('/') {
        let file = Path::new(program);
        return match file {
            _ if executable(file) => Ok(()),
            _ if file.exists() => failed("is not executable"),
            _ => failed("does not exist"),
        };
    }
    let found = std::env::split_paths(&path).any(|dir| executable(&dir.join(program)));
    if found { Ok(()) } else { failed("is not found in PATH") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32, groups: &[u32]) -> RunAs {
        let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
        RunAs { uid: Uid::from_raw(uid), gid: groups[0], groups, name: "app".into(), home: "/".into() }
    }

    #[test]
    fn the_most_specific_permission_counts_as_in_the_kernel() {
        let app = user(1000, &[1000, 50]);
        for (attributes, expected) in [
            (Attributes::new(1000, 0, 0o700), true),
            (Attributes::new(1000, 50, 0o070), false),
            (Attributes::new(0, 50, 0o2770), true),
            (Attributes::new(0, 50, 0o707), false),
            (Attributes::new(0, 0, 0o755), false),
            (Attributes::new(0, 0, 0o777), true),
        ] {
            assert_eq!(app.may_write_in(attributes), expected, "{attributes:?}");
        }
        assert!(user(0, &[0]).may_write_in(Attributes::new(1000, 0, 0)));
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(RunAs::find("").unwrap(), None);
        assert!(RunAs::find("no such user").unwrap_err().contains("no such user"));
        if geteuid().is_root() {
            let root = RunAs::find("root").unwrap().unwrap();
            assert_eq!((root.uid.as_raw(), root.home), (0, PathBuf::from("/root")));
            assert_eq!(RunAs::find("0").unwrap().unwrap().name, "root");
            assert_eq!(RunAs::find("54321").unwrap().unwrap().gid.as_raw(), 54321);
        }
    }

    #[test]
    fn a_program_that_cannot_be_run_is_known_beforehand() {
        let refusal = |program: &str| check_command(&[program.to_owned()]).unwrap_err().to_string();
        assert!(refusal("no-such-program-here").contains("PATH"));
        assert!(refusal("/no/such/program").contains("does not exist"));
        assert!(refusal("/etc/passwd").contains("not executable"));
        check_command(&["sh".to_owned(), "-c".to_owned()]).unwrap();
        check_command(&["/bin/sh".to_owned()]).unwrap();
        check_command(&[]).unwrap();
    }
}
