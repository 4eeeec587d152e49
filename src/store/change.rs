use bytes::{Buf, BufMut, Bytes};

use crate::ltx::{BlobRef, ChangeSet, ChangeSetError};
use crate::types::{DbName, NodeId};

/// One entry of the log, as far as databases are concerned.
///
/// Layout, version 1, big-endian: 1 version | 8 node | 8 run | 8 sequence | 8 milliseconds since 1970 |
/// 1 kind (0 commit, 1 drop, 2 rename) | commit: 2 count, then change sets; drop: name; rename: from, to
/// (names with a 2-byte length first).
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

const VERSION: u8 = 1;
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

    /// The databases it concerns.
    pub fn databases(&self) -> Vec<DbName> {
        match &self.kind {
            ChangeKind::Commit(sets) => sets.iter().map(|set| set.db.clone()).collect(),
            ChangeKind::Drop(db) => vec![db.clone()],
            ChangeKind::Rename { from, to } => vec![from.clone(), to.clone()],
        }
    }

    /// The record's bytes.
    pub fn encode(&self) -> Bytes {
        let inline: usize =
            self.change_sets().iter().map(|set| set.inline_bytes() + set.db.as_str().len() + 64).sum();
        let mut out = Vec::with_capacity(HEADER_BYTES + 64 + inline);
        out.put_u8(VERSION);
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
        if version != VERSION {
            return Err(ChangeError(format!(
                "version {version} is not known (this program knows {VERSION})"
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
            kind => return Err(ChangeError(format!("kind {kind} is not known"))),
        };
        if !input.is_empty() {
            return Err(ChangeError(format!("{} bytes are left over", input.len())));
        }
        Ok(Self { origin, timestamp_ms, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip() {
        let origin = Origin { node: NodeId::new(1), run: 2, seq: 3 };
        let (a, b) = (DbName::new("a").unwrap(), DbName::new("b").unwrap());
        for kind in
            [ChangeKind::Commit(vec![]), ChangeKind::Drop(a.clone()), ChangeKind::Rename { from: a, to: b }]
        {
            let change = Change { origin, timestamp_ms: -1, kind };
            assert_eq!(Change::decode(change.encode()), Ok(change));
        }
    }
}
