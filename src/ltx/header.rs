use super::error::LtxError;
use crate::types::{Checksum, NodeId, PageCount, PageSize, Pgno, Txid, TxidRange};

/// Size of the header of an LTX file in bytes.
pub const HEADER_SIZE: usize = 100;
/// Size of the trailer of an LTX file in bytes.
pub const TRAILER_SIZE: usize = 16;

const MAGIC: &[u8; 4] = b"LTX1";
const FLAG_LZ4_WHOLE: u32 = 1;
const FLAG_NO_CHECKSUM: u32 = 1 << 1;
const CHECKSUM_FLAG: u64 = 1 << 63;

/// What an LTX file says about itself before its pages.
///
/// | offset | size | field, big-endian |
/// |---|---|---|
/// | 0 | 4 | magic `LTX1` |
/// | 4 | 4 | flags; bit 1: the file carries no database checksums |
/// | 8 | 4 | page size |
/// | 12 | 4 | size of the database in pages after the change; 0: dropped |
/// | 16, 24 | 8, 8 | min TXID, max TXID |
/// | 32 | 8 | milliseconds since 1970, signed |
/// | 40 | 8 | database checksum before; 0 in a snapshot |
/// | 48, 56 | 8, 8 | offset and size of the frames in the WAL; 0 from a journal |
/// | 64, 68 | 4, 4 | salt of the WAL |
/// | 72 | 8 | node |
/// | 80 | 20 | zero |
///
/// Source: LTX, `Header`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The file carries no database checksums (as Litestream writes it); `pre_apply` is then `None`.
    pub no_checksum: bool,
    /// Size of the pages.
    pub page_size: PageSize,
    /// Size of the database after the change; zero where it was dropped.
    pub commit: PageCount,
    /// The transactions covered; one that begins with the first is a snapshot and has every page.
    pub range: TxidRange,
    /// When the change was captured, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Checksum the database must have before; `None` in a snapshot.
    pub pre_apply: Option<Checksum>,
    /// Where the captured frames start in the WAL, in bytes; 0 from a journal.
    pub wal_offset: u64,
    /// Size of the captured frames in bytes.
    pub wal_size_bytes: u64,
    /// Salt of the WAL, zeros from a journal.
    pub wal_salt: (u32, u32),
    /// The node that captured, 0 where unknown.
    pub node_id: NodeId,
}

/// What an LTX file says about itself behind its pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trailer {
    /// Checksum of the database after the change; `None` where the file carries none.
    pub post_apply: Option<Checksum>,
    /// Checksum of the file, bit 63 set.
    pub file_checksum: u64,
}

impl Header {
    /// A header with the fields every change has; the others are zero.
    ///
    /// `pre_apply` is left out in a snapshot (a range that begins with the first transaction).
    pub fn new(
        page_size: PageSize,
        commit: PageCount,
        range: TxidRange,
        pre_apply: Option<Checksum>,
    ) -> Self {
        Self {
            no_checksum: false,
            page_size,
            commit,
            range,
            timestamp_ms: 0,
            pre_apply,
            wal_offset: 0,
            wal_size_bytes: 0,
            wal_salt: (0, 0),
            node_id: NodeId::new(0),
        }
    }

    /// Whether the file has every page of the database: it begins with the first transaction.
    pub fn is_snapshot(&self) -> bool {
        self.range.min() == Txid::FIRST
    }

    /// The rule of the format that the header breaks, with the offset of the field.
    pub(super) fn fault(&self) -> Option<(u64, String)> {
        let fault = |offset: u64, why: &str| Some((offset, why.to_owned()));
        match self.pre_apply {
            Some(_) if self.no_checksum => fault(40, "checksum before is set in a file without checksums"),
            Some(_) if self.is_snapshot() => fault(40, "checksum before is set in a snapshot"),
            None if !self.is_snapshot() && !self.no_checksum => {
                fault(40, "checksum before is missing in a file that is no snapshot")
            }
            _ if self.wal_offset > i64::MAX as u64 => fault(48, "wal offset is negative"),
            _ if self.wal_size_bytes > i64::MAX as u64 => fault(56, "wal size is negative"),
            _ if self.wal_offset == 0 && self.wal_size_bytes != 0 => fault(56, "wal size without wal offset"),
            _ if self.wal_offset == 0 && self.wal_salt != (0, 0) => fault(64, "wal salt without wal offset"),
            _ => None,
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let flags = if self.no_checksum { FLAG_NO_CHECKSUM } else { 0 };
        bytes[0..4].copy_from_slice(MAGIC);
        bytes[4..8].copy_from_slice(&flags.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.page_size.get().to_be_bytes());
        bytes[12..16].copy_from_slice(&self.commit.get().to_be_bytes());
        bytes[16..24].copy_from_slice(&self.range.min().get().to_be_bytes());
        bytes[24..32].copy_from_slice(&self.range.max().get().to_be_bytes());
        bytes[32..40].copy_from_slice(&self.timestamp_ms.to_be_bytes());
        bytes[40..48].copy_from_slice(&self.pre_apply.map_or(0, Checksum::get).to_be_bytes());
        bytes[48..56].copy_from_slice(&self.wal_offset.to_be_bytes());
        bytes[56..64].copy_from_slice(&self.wal_size_bytes.to_be_bytes());
        bytes[64..68].copy_from_slice(&self.wal_salt.0.to_be_bytes());
        bytes[68..72].copy_from_slice(&self.wal_salt.1.to_be_bytes());
        bytes[72..80].copy_from_slice(&self.node_id.get().to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER_SIZE]) -> Result<Self, LtxError> {
        if &bytes[0..4] != MAGIC {
            return Err(LtxError::Unsupported { offset: 0, why: "not an LTX file (magic LTX1)".into() });
        }
        let flags = be32(bytes, 4);
        check_flags(flags)?;
        let page_size = PageSize::new(be32(bytes, 8)).map_err(|e| LtxError::corrupt(8, e.to_string()))?;
        let (min, max) = (be64(bytes, 16), be64(bytes, 24));
        let range = Txid::new(min)
            .zip(Txid::new(max))
            .and_then(|(min, max)| TxidRange::new(min, max))
            .ok_or_else(|| LtxError::corrupt(16, format!("transactions {min} to {max} are no range")))?;
        if bytes[80..].iter().any(|byte| *byte != 0) {
            return Err(LtxError::Unsupported {
                offset: 80,
                why: "bytes 80 to 99 of the header are not zero: a feature this program does not know".into(),
            });
        }
        let header = Self {
            no_checksum: flags & FLAG_NO_CHECKSUM != 0,
            page_size,
            commit: PageCount::new(be32(bytes, 12)),
            range,
            timestamp_ms: be64(bytes, 32).cast_signed(),
            pre_apply: checksum_field(40, be64(bytes, 40))?,
            wal_offset: be64(bytes, 48),
            wal_size_bytes: be64(bytes, 56),
            wal_salt: (be32(bytes, 64), be32(bytes, 68)),
            node_id: NodeId::new(be64(bytes, 72)),
        };
        match header.fault() {
            Some((offset, why)) => Err(LtxError::corrupt(offset, why)),
            None => Ok(header),
        }
    }

    /// The rule that page `pgno` breaks when it comes after page `prev` in this file.
    pub(super) fn page_fault(&self, prev: Option<Pgno>, pgno: Pgno) -> Option<String> {
        let lock = Pgno::lock_page(self.page_size);
        if pgno == lock {
            return Some("the lock page has no content to replicate".into());
        }
        if !self.commit.contains(pgno) {
            return Some(format!("beyond the database's {} pages", self.commit));
        }
        let before = prev.map_or(0, Pgno::get);
        if pgno.get() <= before {
            return Some(format!("not above page {before} before it"));
        }
        let mut next = before + 1;
        if next == lock.get() {
            next += 1;
        }
        (self.is_snapshot() && pgno.get() != next)
            .then(|| format!("a snapshot has every page, and page {next} is missing"))
    }

    /// The rule that an end of the pages after page `prev` breaks.
    pub(super) fn end_fault(&self, prev: Option<Pgno>) -> Option<String> {
        let mut last = self.commit.get();
        if last == Pgno::lock_page(self.page_size).get() {
            last -= 1;
        }
        let got = prev.map_or(0, Pgno::get);
        (self.is_snapshot() && got != last)
            .then(|| format!("a snapshot has every page, and it ends at page {got} of {}", self.commit))
    }

    /// The rule that a checksum after the change breaks.
    pub(super) fn post_fault(&self, post: Option<Checksum>) -> Option<&'static str> {
        match post {
            Some(_) if self.no_checksum => Some("checksum after is set in a file without checksums"),
            None if !self.no_checksum => Some("checksum after is missing"),
            Some(post) if self.commit == PageCount::ZERO && post != Checksum::EMPTY => {
                Some("checksum after is not that of an empty database")
            }
            _ => None,
        }
    }
}

/// A checksum field: 0 for none, otherwise bit 63 must be set.
pub(super) fn checksum_field(offset: u64, bits: u64) -> Result<Option<Checksum>, LtxError> {
    match bits {
        0 => Ok(None),
        _ if bits & CHECKSUM_FLAG != 0 => Ok(Some(Checksum::new(bits))),
        _ => Err(LtxError::corrupt(offset, format!("checksum {bits:016x} has bit 63 clear"))),
    }
}

fn check_flags(flags: u32) -> Result<(), LtxError> {
    let why = match flags & !FLAG_NO_CHECKSUM {
        0 => return Ok(()),
        FLAG_LZ4_WHOLE => "flag 1 marks a version 1 file (LiteFS); this program reads version 3".to_owned(),
        _ => format!("flags {flags:08x} are not known"),
    };
    Err(LtxError::Unsupported { offset: 4, why })
}

pub(super) fn be32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes([bytes[offset], bytes[offset + 1], bytes[offset + 2], bytes[offset + 3]])
}

pub(super) fn be64(bytes: &[u8], offset: usize) -> u64 {
    u64::from(be32(bytes, offset)) << 32 | u64::from(be32(bytes, offset + 4))
}
