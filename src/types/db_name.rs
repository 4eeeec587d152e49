use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Name of a database: its path below the mount, components joined by `/`.
///
/// Holds: relative, 1 to 1024 bytes, no empty, `.` or `..` component, no control character, no component
/// over 247 bytes, no directory that starts with `.`, not one of SQLite's side files (`-wal`, `-shm`, `-journal`) or the
/// mount's (`-pos`, `-lock`), and not the name of a control file. The database's own name may start with a dot, as that of the temporary
/// file does that `rsync` renames to its target.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DbName(Arc<str>);

/// Names that the mount has for itself.
const RESERVED: [&str; 3] = [".primary", ".lag", ".history"];

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
        let mut components = name.split('/').peekable();
        while let Some(component) = components.next() {
            if component.is_empty() || matches!(component, "." | "..") {
                return refuse("has an empty component, or one that is a dot or two");
            }
            if component.starts_with('.') && components.peek().is_some() {
                return refuse("has a directory that starts with a dot");
            }
            if RESERVED.contains(&component) {
                return refuse("is the name of a control file");
            }
            if component.len() > 255 - "-journal".len() {
                return refuse("has a component of more than 247 bytes");
            }
        }
        if name.contains(char::is_control) {
            return refuse("contains a control character");
        }
        if ["-wal", "-shm", "-journal"].iter().any(|suffix| name.ends_with(suffix)) {
            return refuse("is the name of one of SQLite's side files");
        }
        if ["-pos", "-lock"].iter().any(|suffix| name.ends_with(suffix)) {
            return refuse("is the name of a control file");
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
            "a/.lag",
            ".",
            "a/..",
            ".app.db-litestream/generations",
            "a\0b",
            "a\nb",
            "\u{1b}[2J",
            "x-wal",
            "x-journal",
        ] {
            assert!(DbName::new(name).is_err(), "{name:?}");
        }
        for name in ["tenants/7/app.db", "a/.app.db.Xy12zQ"] {
            assert_eq!(DbName::new(name).unwrap().as_str(), name);
        }
    }
}
