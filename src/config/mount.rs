use std::fmt;
use std::str::FromStr;

use nix::unistd::{Group, User};
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::types::ForcedAttributes;

/// A user or group: a number or a name of this machine; empty for none.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "NumberOrName", into = "String")]
pub struct Owner(String);

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrName {
    Number(u32),
    Name(String),
}

impl From<NumberOrName> for Owner {
    fn from(value: NumberOrName) -> Self {
        match value {
            NumberOrName::Number(number) => Self(number.to_string()),
            NumberOrName::Name(name) => Self(name),
        }
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> Self {
        owner.0
    }
}

impl FromStr for Owner {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl Owner {
    /// The number, by `lookup` where it is given by name; `None` where it is empty.
    fn number(
        &self,
        option: &str,
        lookup: impl Fn(&str) -> nix::Result<Option<u32>>,
    ) -> Result<Option<u32>, ConfigError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        if let Ok(number) = self.0.parse() {
            return Ok(Some(number));
        }
        let known = lookup(&self.0).ok().flatten();
        let unknown = || ConfigError::Invalid(format!("--{option} {:?}: nobody here has that name", self.0));
        known.map(Some).ok_or_else(unknown)
    }
}

/// Permissions as chmod(1) takes them: up to four octal digits; empty for none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileMode(Option<u32>);

impl FileMode {
    /// The permission bits.
    pub fn get(self) -> Option<u32> {
        self.0
    }
}

impl FromStr for FileMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o7777 && text.len() <= 5 => Ok(Self(Some(mode))),
            _ => Err(format!("{text:?} is no set of permissions such as 640 or 0750")),
        }
    }
}

impl TryFrom<String> for FileMode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<FileMode> for String {
    fn from(mode: FileMode) -> Self {
        mode.to_string()
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |mode| write!(f, "{mode:03o}"))
    }
}

/// What the settings force on this node's mount: owner and group, permissions of files and of directories.
///
/// # Errors
/// Where a name is nobody's.
pub(super) fn forced_attributes(
    (uid, gid): (Option<&Owner>, Option<&Owner>),
    (file_mode, dir_mode): (Option<FileMode>, Option<FileMode>),
) -> Result<ForcedAttributes, ConfigError> {
    let user = |name: &str| Ok(User::from_name(name)?.map(|user| user.uid.as_raw()));
    let group = |name: &str| Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()));
    let uid = uid.map(|owner| owner.number("mount-uid", user));
    let gid = gid.map(|owner| owner.number("mount-gid", group));
    Ok(ForcedAttributes {
        uid: uid.transpose()?.flatten(),
        gid: gid.transpose()?.flatten(),
        file_mode: file_mode.and_then(FileMode::get),
        dir_mode: dir_mode.and_then(FileMode::get),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_octal_text() {
        for (text, mode) in [("640", Some(0o640)), ("0750", Some(0o750)), ("2770", Some(0o2770)), ("", None)]
        {
            assert_eq!(text.parse::<FileMode>().unwrap().get(), mode);
        }
        assert_eq!("0640".parse::<FileMode>().unwrap().to_string(), "640");
        for text in ["rw-r-----", "888", "17777", "-1", "0o640"] {
            assert!(text.parse::<FileMode>().unwrap_err().contains("permissions"), "{text}");
        }
    }

    #[test]
    fn owners_are_numbers_or_names_of_this_machine() {
        let forced = |uid: &str| forced_attributes((uid.parse().ok().as_ref(), None), (None, None));
        assert_eq!(forced("1000").unwrap().uid, Some(1000));
        assert_eq!(forced("root").unwrap().uid, Some(0));
        assert_eq!(forced("").unwrap(), ForcedAttributes::default());
        let refused = forced("no such user").unwrap_err().to_string();
        assert!(refused.contains("--mount-uid"), "{refused}");
    }
}
