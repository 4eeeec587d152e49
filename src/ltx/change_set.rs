use bytes::{Buf, BufMut, Bytes};

use crate::types::{Checksum, DbName, PageCount, PageSize, Pos, Txid, TxidRange};

/// One captured change of one database: the frame around an LTX file that the log orders.
///
/// Layout, version 1, big-endian (offset within the record):
///
/// | bytes | field |
/// |---|---|
/// | 1 | version, 1 |
/// | 2 + n | database name, length first |
/// | 8, 8 | min TXID, max TXID |
/// | 8, 8 | checksum before, checksum after |
/// | 4, 4 | page size in bytes, database size in pages after the change |
/// | 1 | body: 0 inline, 1 blob |
/// | 4 + n | inline: LTX bytes, length first |
/// | 8, 8 | blob: digest (the LTX file checksum), size in bytes |
///
/// Holds: the LTX inside covers the same TXIDs and checksums.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChangeSet {
    /// The database changed.
    pub db: DbName,
    /// The transactions covered.
    pub range: TxidRange,
    /// Checksum the database must have before.
    pub pre: Checksum,
    /// Checksum it has after.
    pub post: Checksum,
    /// Page size after the change.
    pub page_size: PageSize,
    /// Size after the change.
    pub commit: PageCount,
    /// The LTX file.
    pub body: Body,
}

/// Where a change set's LTX bytes are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// In the entry itself; at most 1 MiB when captured.
    Inline(Bytes),
    /// In the blob store of each node.
    Blob(BlobRef),
}

/// Name of a stored LTX file too large for an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct BlobRef {
    /// The LTX file checksum (trailer, bytes 8 to 15).
    pub digest: u64,
    /// Size of the LTX file in bytes.
    pub size_bytes: u64,
}

impl std::fmt::Display for BlobRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}-{:016x}", self.digest, self.size_bytes)
    }
}

/// A record that is not a change set.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("change set: {0}")]
pub struct ChangeSetError(pub String);

const VERSION: u8 = 1;
const FIXED_BYTES: usize = 8 * 4 + 4 * 2 + 1;

impl ChangeSet {
    /// The position the database has after the change.
    pub fn pos(&self) -> Pos {
        Pos::new(self.range.max(), self.post)
    }

    /// Bytes of LTX in the entry itself, 0 for a blob.
    pub fn inline_bytes(&self) -> usize {
        match &self.body {
            Body::Inline(ltx) => ltx.len(),
            Body::Blob(_) => 0,
        }
    }

    /// The blob the entry refers to, if it does.
    pub fn blob(&self) -> Option<BlobRef> {
        match self.body {
            Body::Inline(_) => None,
            Body::Blob(blob) => Some(blob),
        }
    }

    /// Appends the record to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(VERSION);
        put_name(out, &self.db);
        out.put_u64(self.range.min().get());
        out.put_u64(self.range.max().get());
        out.put_u64(self.pre.get());
        out.put_u64(self.post.get());
        out.put_u32(self.page_size.get());
        out.put_u32(self.commit.get());
        match &self.body {
            Body::Inline(ltx) => {
                out.put_u8(0);
                out.put_u32(u32::try_from(ltx.len()).expect("an inline change set is at most 1 MiB"));
                out.put_slice(ltx);
            }
            Body::Blob(blob) => {
                out.put_u8(1);
                out.put_u64(blob.digest);
                out.put_u64(blob.size_bytes);
            }
        }
    }

    /// Takes one record off the front of `input`; the LTX bytes are shared, not copied.
    ///
    /// # Errors
    /// Where the record is cut short, of an unknown version, or breaks a rule of its fields.
    pub fn decode(input: &mut Bytes) -> Result<Self, ChangeSetError> {
        let version = take(input, 1)?.get_u8();
        if version != VERSION {
            return Err(ChangeSetError(format!(
                "version {version} is not known (this program knows {VERSION})"
            )));
        }
        let db = take_name(input)?;
        let mut fixed = take(input, FIXED_BYTES)?;
        let (min, max) = (fixed.get_u64(), fixed.get_u64());
        let range = Txid::new(min)
            .zip(Txid::new(max))
            .and_then(|(min, max)| TxidRange::new(min, max))
            .ok_or_else(|| ChangeSetError(format!("transactions {min} to {max} are no range")))?;
        let (pre, post) = (Checksum::new(fixed.get_u64()), Checksum::new(fixed.get_u64()));
        let page_size = PageSize::new(fixed.get_u32()).map_err(|e| ChangeSetError(e.to_string()))?;
        let commit = PageCount::new(fixed.get_u32());
        let body = match fixed.get_u8() {
            0 => {
                let length = take(input, 4)?.get_u32() as usize;
                Body::Inline(take(input, length)?)
            }
            1 => {
                let mut blob = take(input, 16)?;
                Body::Blob(BlobRef { digest: blob.get_u64(), size_bytes: blob.get_u64() })
            }
            kind => return Err(ChangeSetError(format!("body kind {kind} is not known"))),
        };
        Ok(Self { db, range, pre, post, page_size, commit, body })
    }
}

/// Appends a database name, its length as two bytes first.
pub(crate) fn put_name(out: &mut impl BufMut, name: &DbName) {
    out.put_u16(u16::try_from(name.as_str().len()).expect("a database name has at most 1024 bytes"));
    out.put_slice(name.as_str().as_bytes());
}

/// Takes a database name off the front of `input`.
pub(crate) fn take_name(input: &mut Bytes) -> Result<DbName, ChangeSetError> {
    let length = usize::from(take(input, 2)?.get_u16());
    let bytes = take(input, length)?;
    let text =
        std::str::from_utf8(&bytes).map_err(|_| ChangeSetError("database name is not UTF-8".into()))?;
    DbName::new(text).map_err(|e| ChangeSetError(e.to_string()))
}

/// Takes `length` bytes off the front of `input`, or says that it is cut short.
pub(crate) fn take(input: &mut Bytes, length: usize) -> Result<Bytes, ChangeSetError> {
    if input.len() < length {
        return Err(ChangeSetError(format!("cut short: {} of {length} bytes", input.len())));
    }
    Ok(input.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(body: Body) -> ChangeSet {
        ChangeSet {
            db: DbName::new("a/b.db").unwrap(),
            range: TxidRange::single(Txid::FIRST),
            pre: Checksum::EMPTY,
            post: Checksum::new(9),
            page_size: PageSize::DEFAULT,
            commit: PageCount::new(3),
            body,
        }
    }

    #[test]
    fn records_round_trip_and_every_cut_is_refused() {
        for body in
            [Body::Inline(Bytes::from_static(b"ltx")), Body::Blob(BlobRef { digest: 5, size_bytes: 6 })]
        {
            let set = sample(body);
            let mut bytes = Vec::new();
            set.encode(&mut bytes);
            assert_eq!(ChangeSet::decode(&mut Bytes::from(bytes.clone())), Ok(set));
            for cut in 0..bytes.len() {
                assert!(
                    ChangeSet::decode(&mut Bytes::copy_from_slice(&bytes[..cut])).is_err(),
                    "cut at {cut}"
                );
            }
        }
    }
}
