use super::DbName;

/// Owner, group and permissions of a file or directory of the mount, the same on every node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Attributes {
    /// User id of the owner.
    pub uid: u32,
    /// Id of the group.
    pub gid: u32,
    /// Permission bits, the lower twelve of `st_mode`.
    pub mode: u32,
}

/// The bits of `st_mode` that are permissions.
const PERMISSIONS: u32 = 0o7777;

impl Attributes {
    /// Attributes with the permission bits of `mode`; its other bits, the kind of file, are dropped.
    pub fn new(uid: u32, gid: u32, mode: u32) -> Self {
        Self { uid, gid, mode: mode & PERMISSIONS }
    }

    /// These attributes after a change.
    #[must_use]
    pub fn changed(self, change: AttributesChange) -> Self {
        let AttributesChange { uid, gid, mode } = change;
        Self::new(uid.unwrap_or(self.uid), gid.unwrap_or(self.gid), mode.unwrap_or(self.mode))
    }
}

/// What chown(2) or chmod(2) changes; `None` stays as it is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct AttributesChange {
    /// The new owner.
    pub uid: Option<u32>,
    /// The new group.
    pub gid: Option<u32>,
    /// The new permission bits.
    pub mode: Option<u32>,
}

impl AttributesChange {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What the mount of one node shows instead of what the log says, field by field.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ForcedAttributes {
    /// Owner of everything.
    pub uid: Option<u32>,
    /// Group of everything.
    pub gid: Option<u32>,
    /// Permissions of databases and their side files.
    pub file_mode: Option<u32>,
    /// Permissions of directories.
    pub dir_mode: Option<u32>,
}

impl ForcedAttributes {
    /// The attributes as they are shown.
    pub fn over(&self, attributes: Attributes, directory: bool) -> Attributes {
        let mode = if directory { self.dir_mode } else { self.file_mode };
        attributes.changed(AttributesChange { uid: self.uid, gid: self.gid, mode })
    }
}

/// A name of the mount that has attributes of its own. The side files of a database have those of their database.
///
/// A directory's path follows the rules of a database's name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MountPath {
    /// The mount's own directory.
    Root,
    /// A directory below it.
    Directory(DbName),
    /// A database.
    Database(DbName),
}

impl std::fmt::Display for MountPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Root => f.write_str("the mount's directory"),
            Self::Directory(path) => write!(f, "directory {path}"),
            Self::Database(name) => write!(f, "database {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_node_forces_differs_from_the_log() {
        let forced = ForcedAttributes { gid: Some(9), file_mode: Some(0o660), ..ForcedAttributes::default() };
        let logged = Attributes::new(1, 2, 0o600);
        assert_eq!(forced.over(logged, false), Attributes::new(1, 9, 0o660));
        assert_eq!(forced.over(logged, true), Attributes::new(1, 9, 0o600));
    }

    #[test]
    fn a_change_leaves_alone_what_it_does_not_name() {
        let before = Attributes::new(1, 2, 0o100_640);
        assert_eq!(before.mode, 0o640);
        let change = AttributesChange { gid: Some(7), ..AttributesChange::default() };
        assert_eq!(before.changed(change), Attributes { uid: 1, gid: 7, mode: 0o640 });
        assert!(AttributesChange::default().is_empty() && !change.is_empty());
    }
}
