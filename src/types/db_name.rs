use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Name of a database: its path below the mount, components joined by `/`.
///
/// Holds: relative, 1 to 1024 bytes, no empty, `.` or `..` component, no control character, no component
/// over 247 bytes, no component that starts with `.`, and not one of SQLite's side files (`-wal`, `-shm`, `-journal`, `-pos`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DbName(Arc<str>);

/// A path that cannot name a database.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("database name {name:?} {why}")]
pub struct InvalidDbName {
    name: String,
    why: &'static str,
}

impl DbName {
    /// A name from a path below the mount.
    ///
    /// # Errors
    /// Where the path breaks one of the rules above; names come from peers and clients too.
    pub fn new(name: &str) -> Result<Self, InvalidDbName> {
        let refuse = |why| Err(InvalidDbName { name: name.chars().take(200).collect(), why });
        if name.is_empty() || name.len() > 1024 {
            return refuse("must have 1 to 1024 bytes");
        }
        for component in name.split('/') {
            if component.is_empty() || component.starts_with('.') {
                return refuse("has an empty component or one that starts with a dot");
            }
            if component.len() > 255 - "-journal".len() {
                return refuse("has a component of more than 247 bytes");
            }
        }
        if name.contains(char::is_control) {
            return refuse("contains a control character");
        }
        if ["-wal", "-shm", "-journal", "-pos"].iter().any(|suffix| name.ends_with(suffix)) {
            return refuse("is the name of one of SQLite's side files");
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Maps with names as keys can be asked for a text; order and equality are the text's.
impl std::borrow::Borrow<str> for DbName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DbName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DbName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for DbName {
    type Err = InvalidDbName;

    fn from_str(text: &str) -> Result<Self, InvalidDbName> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_mount_are_refused() {
        for name in [
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            ".primary",
            "a\0b",
            "a\nb",
            "\u{1b}[2J",
            "x-wal",
            "x-journal",
        ] {
            assert!(DbName::new(name).is_err(), "{name:?}");
        }
        assert_eq!(DbName::new("tenants/7/app.db").unwrap().as_str(), "tenants/7/app.db");
    }
}
