use bytes::{Buf, BufMut, Bytes};

use crate::ltx::{BlobRef, ChangeSet, ChangeSetError};
use crate::types::{Attributes, AttributesChange, DbName, MountPath, NodeId};

/// One entry of the log, as far as databases are concerned.
///
/// Layout, big-endian: 1 version | 8 node | 8 run | 8 sequence | 8 milliseconds since 1970 | 1 kind | body. A name has
/// its 2-byte length first; attributes are 4 uid | 4 gid | 4 mode.
///
/// | version | kind | body |
/// |---|---|---|
/// | 1 | 0 commit | 2 count, then change sets |
/// | 1 | 1 drop | name |
/// | 1 | 2 rename | from, to |
/// | 2 | 3 create | name, attributes |
/// | 2 | 4 change of attributes | 1 what (0 the mount's directory, 1 directory, 2 database), name but for 0, 1 flags (1 uid, 2 gid, 4 mode), attributes (0 where not flagged) |
/// | 2 | 5 make directory | path, attributes |
/// | 2 | 6 remove directory | path |
/// | 2 | 7 rename directory | from, to, 4 count, then the names of the databases below it, as they were before |
///
/// A kind is written with the version it came with, so that nodes of the version before still read what they know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Who proposed it.
    pub origin: Origin,
    /// When, in milliseconds since 1970 by the proposer's clock.
    pub timestamp_ms: i64,
    /// What changes.
    pub kind: ChangeKind,
}

/// Identity of a proposal: unique over all nodes and restarts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Origin {
    /// The proposing node.
    pub node: NodeId,
    /// A random number drawn at each start of the node's program.
    pub run: u64,
    /// Counts the proposals of one run.
    pub seq: u64,
}

/// What an entry changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChangeKind {
    /// Change sets of one or several databases, all or nothing.
    Commit(Vec<ChangeSet>),
    /// A database ends to exist.
    Drop(DbName),
    /// A database gets another name, replacing whatever had it.
    Rename {
        /// The old name.
        from: DbName,
        /// The new name.
        to: DbName,
    },
    /// A database without content begins to exist. Where one of that name exists, nothing changes.
    Create {
        /// Its name.
        name: DbName,
        /// Whose it is.
        attributes: Attributes,
    },
    /// A database or directory gets another owner, group or mode.
    SetAttributes {
        /// Which one.
        path: MountPath,
        /// What changes.
        change: AttributesChange,
    },
    /// A directory begins to exist. Where it exists, it gets these attributes.
    MakeDirectory {
        /// Its path.
        path: DbName,
        /// Whose it is.
        attributes: Attributes,
    },
    /// An empty directory ends to exist.
    RemoveDirectory(DbName),
    /// A directory gets another path, with all that is below it.
    RenameDirectory {
        /// The old path.
        from: DbName,
        /// The new path: nothing, or an empty directory.
        to: DbName,
        /// The databases below the old path, by their old names.
        databases: Vec<DbName>,
    },
}

impl ChangeKind {
    /// What a database below the directory `from` is called when the directory is called `to`.
    ///
    /// # Errors
    /// Where that is no name of a database, for one because it is too long.
    pub fn name_below(from: &DbName, to: &DbName, name: &DbName) -> Result<DbName, ChangeError> {
        let rest = name.as_str().strip_prefix(from.as_str()).filter(|rest| rest.starts_with('/'));
        let rest = rest.ok_or_else(|| ChangeError(format!("{name} is not below {from}")))?;
        DbName::new(&format!("{to}{rest}")).map_err(|error| ChangeError(error.to_string()))
    }

    fn version(&self) -> u8 {
        match self {
            Self::Commit(_) | Self::Drop(_) | Self::Rename { .. } => 1,
            _ => 2,
        }
    }
}

/// Bytes that are no change.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("log entry: {0}")]
pub struct ChangeError(pub String);

impl From<ChangeSetError> for ChangeError {
    fn from(error: ChangeSetError) -> Self {
        Self(error.to_string())
    }
}

/// Largest record that is proposed, in bytes. It travels in one message between voters, which has room for twice as much:
/// one that does not fit would stop everything behind it.
pub const ENTRY_BYTES_MAX: usize = 4 << 20;

const VERSION_MAX: u8 = 2;
const HEADER_BYTES: usize = 1 + 8 * 4 + 1;

impl Change {
    /// Blobs the entry refers to.
    pub fn blobs(&self) -> impl Iterator<Item = BlobRef> + '_ {
        self.change_sets().iter().filter_map(ChangeSet::blob)
    }

    /// The change sets of a commit, none for other kinds.
    pub fn change_sets(&self) -> &[ChangeSet] {
        match &self.kind {
            ChangeKind::Commit(sets) => sets,
            _ => &[],
        }
    }

    /// How large the record will be in bytes, at most.
    pub fn size_bytes_max(&self) -> usize {
        match &self.kind {
            ChangeKind::Commit(sets) => {
                let bytes = |set: &ChangeSet| set.inline_bytes() + set.db.as_str().len() + 64;
                HEADER_BYTES + 64 + sets.iter().map(bytes).sum::<usize>()
            }
            _ => self.encode().len(),
        }
    }

    /// The record's bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(match &self.kind {
            ChangeKind::Commit(_) => self.size_bytes_max(),
            _ => HEADER_BYTES + 64,
        });
        out.put_u8(self.kind.version());
        out.put_u64(self.origin.node.get());
        out.put_u64(self.origin.run);
        out.put_u64(self.origin.seq);
        out.put_i64(self.timestamp_ms);
        match &self.kind {
            ChangeKind::Commit(sets) => {
                out.put_u8(0);
                out.put_u16(u16::try_from(sets.len()).expect("SQLite attaches at most 125 databases"));
                sets.iter().for_each(|set| set.encode(&mut out));
            }
            ChangeKind::Drop(db) => {
                out.put_u8(1);
                crate::ltx::put_name(&mut out, db);
            }
            ChangeKind::Rename { from, to } => {
                out.put_u8(2);
                crate::ltx::put_name(&mut out, from);
                crate::ltx::put_name(&mut out, to);
            }
            kind => put_namespace_change(&mut out, kind),
        }
        out.into()
    }

    /// Reads a record; the LTX bytes inside are shared, not copied.
    ///
    /// # Errors
    /// Where the record is cut short, has bytes left over, or is of an unknown version.
    pub fn decode(mut input: Bytes) -> Result<Self, ChangeError> {
        let mut header = crate::ltx::take(&mut input, HEADER_BYTES)?;
        let version = header.get_u8();
        if !(1..=VERSION_MAX).contains(&version) {
            return Err(ChangeError(format!(
                "version {version} is not known (this program knows up to {VERSION_MAX})"
            )));
        }
        let origin =
            Origin { node: NodeId::new(header.get_u64()), run: header.get_u64(), seq: header.get_u64() };
        let timestamp_ms = header.get_i64();
        let kind = match header.get_u8() {
            0 => {
                let count = crate::ltx::take(&mut input, 2)?.get_u16();
                let sets: Result<Vec<_>, _> = (0..count).map(|_| ChangeSet::decode(&mut input)).collect();
                ChangeKind::Commit(sets?)
            }
            1 => ChangeKind::Drop(crate::ltx::take_name(&mut input)?),
            2 => ChangeKind::Rename {
                from: crate::ltx::take_name(&mut input)?,
                to: crate::ltx::take_name(&mut input)?,
            },
            kind if version >= 2 => take_namespace_change(&mut input, kind)?,
            kind => return Err(ChangeError(format!("kind {kind} is not known"))),
        };
        if !input.is_empty() {
            return Err(ChangeError(format!("{} bytes are left over", input.len())));
        }
        Ok(Self { origin, timestamp_ms, kind })
    }
}

fn put_attributes(out: &mut Vec<u8>, attributes: Attributes) {
    [attributes.uid, attributes.gid, attributes.mode].into_iter().for_each(|field| out.put_u32(field));
}

fn take_attributes(input: &mut Bytes) -> Result<Attributes, ChangeError> {
    let mut fields = crate::ltx::take(input, 12)?;
    Ok(Attributes::new(fields.get_u32(), fields.get_u32(), fields.get_u32()))
}

/// Appends the kinds of version 2: those about names and attributes.
fn put_namespace_change(out: &mut Vec<u8>, kind: &ChangeKind) {
    use crate::ltx::put_name;
    match kind {
        ChangeKind::Commit(_) | ChangeKind::Drop(_) | ChangeKind::Rename { .. } => {}
        ChangeKind::Create { name, attributes } => {
            out.put_u8(3);
            put_name(out, name);
            put_attributes(out, *attributes);
        }
        ChangeKind::SetAttributes { path, change } => {
            out.put_u8(4);
            match path {
                MountPath::Root => out.put_u8(0),
                MountPath::Directory(path) => {
                    out.put_u8(1);
                    put_name(out, path);
                }
                MountPath::Database(name) => {
                    out.put_u8(2);
                    put_name(out, name);
                }
            }
            let fields = [change.uid, change.gid, change.mode];
            let flags = fields.iter().enumerate().map(|(bit, field)| u8::from(field.is_some()) << bit);
            out.put_u8(flags.sum());
            fields.into_iter().for_each(|field| out.put_u32(field.unwrap_or(0)));
        }
        ChangeKind::MakeDirectory { path, attributes } => {
            out.put_u8(5);
            put_name(out, path);
            put_attributes(out, *attributes);
        }
        ChangeKind::RemoveDirectory(path) => {
            out.put_u8(6);
            put_name(out, path);
        }
        ChangeKind::RenameDirectory { from, to, databases } => {
            out.put_u8(7);
            put_name(out, from);
            put_name(out, to);
            out.put_u32(u32::try_from(databases.len()).expect("a rename has at most RENAMED_MAX databases"));
            databases.iter().for_each(|name| put_name(out, name));
        }
    }
}

fn take_namespace_change(input: &mut Bytes, kind: u8) -> Result<ChangeKind, ChangeError> {
    use crate::ltx::{take, take_name};
    Ok(match kind {
        3 => ChangeKind::Create { name: take_name(input)?, attributes: take_attributes(input)? },
        4 => {
            let path = match take(input, 1)?.get_u8() {
                0 => MountPath::Root,
                1 => MountPath::Directory(take_name(input)?),
                2 => MountPath::Database(take_name(input)?),
                what => return Err(ChangeError(format!("attributes of kind {what} are not known"))),
            };
            let flags = take(input, 1)?.get_u8();
            let mut fields = take(input, 12)?;
            let mut next = |bit: u8| Some(fields.get_u32()).filter(|_| flags & bit != 0);
            let change = AttributesChange { uid: next(1), gid: next(2), mode: next(4) };
            ChangeKind::SetAttributes { path, change }
        }
        5 => ChangeKind::MakeDirectory { path: take_name(input)?, attributes: take_attributes(input)? },
        6 => ChangeKind::RemoveDirectory(take_name(input)?),
        7 => {
            let (from, to) = (take_name(input)?, take_name(input)?);
            let count = take(input, 4)?.get_u32();
            let databases: Result<Vec<_>, _> = (0..count).map(|_| take_name(input)).collect();
            let databases = databases?;
            for name in &databases {
                ChangeKind::name_below(&from, &to, name)?;
            }
            ChangeKind::RenameDirectory { from, to, databases }
        }
        kind => return Err(ChangeError(format!("kind {kind} is not known"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DbName {
        DbName::new(text).unwrap()
    }

    fn change(kind: ChangeKind) -> Change {
        let origin = Origin { node: NodeId::new(1), run: 2, seq: 3 };
        Change { origin, timestamp_ms: -1, kind }
    }

    fn kinds() -> Vec<ChangeKind> {
        let attributes = Attributes::new(1000, u32::MAX, 0o1640);
        let chown = AttributesChange { uid: Some(0), gid: Some(7), mode: None };
        let chmod = AttributesChange { mode: Some(0o600), ..AttributesChange::default() };
        vec![
            ChangeKind::Commit(vec![]),
            ChangeKind::Drop(name("a")),
            ChangeKind::Rename { from: name("a"), to: name("b") },
            ChangeKind::Create { name: name("a/b"), attributes },
            ChangeKind::SetAttributes { path: MountPath::Root, change: chown },
            ChangeKind::SetAttributes { path: MountPath::Directory(name("a")), change: chmod },
            ChangeKind::SetAttributes { path: MountPath::Database(name("a/b")), change: chmod },
            ChangeKind::MakeDirectory { path: name("a"), attributes },
            ChangeKind::RemoveDirectory(name("a")),
            ChangeKind::RenameDirectory {
                from: name("a"),
                to: name("c/d"),
                databases: vec![name("a/b"), name("a/x/y")],
            },
        ]
    }

    #[test]
    fn records_round_trip() {
        for kind in kinds() {
            let change = change(kind);
            assert_eq!(Change::decode(change.encode()), Ok(change));
        }
    }

    #[test]
    fn a_record_that_is_cut_short_anywhere_is_refused() {
        for kind in kinds() {
            let whole = change(kind).encode();
            for length in 0..whole.len() {
                assert!(Change::decode(whole.slice(..length)).is_err(), "{length} of {whole:?}");
            }
        }
    }

    #[test]
    fn kinds_of_the_first_version_are_still_written_and_read_with_its_number() {
        // A drop of database "a" as the first version wrote it.
        let mut old = vec![1];
        [1u64, 2, 3].into_iter().for_each(|number| old.put_u64(number));
        old.put_i64(-1);
        old.put_slice(&[1, 0, 1, b'a']);
        let drop = change(ChangeKind::Drop(name("a")));
        assert_eq!(drop.encode(), old);
        assert_eq!(Change::decode(old.into()), Ok(drop));
        let mut newer = change(ChangeKind::RemoveDirectory(name("a"))).encode().to_vec();
        newer[0] = 3;
        let refused = Change::decode(newer.into()).unwrap_err().to_string();
        assert!(refused.contains("version 3 is not known"), "{refused}");
    }

    #[test]
    fn a_directorys_databases_must_be_below_it() {
        let databases = vec![name("ab/c")];
        let kind = ChangeKind::RenameDirectory { from: name("a"), to: name("b"), databases };
        let refused = Change::decode(change(kind).encode()).unwrap_err().to_string();
        assert!(refused.contains("ab/c is not below a"), "{refused}");
    }
}
