//! One segment file: a header block, then records.
//!
//! Header block, 4096 bytes, little-endian: 0 magic "SKEINLG1" | 8 version u32 | 12 zero | 16 epoch u64 |
//! 24 CRC-64/GO-ISO of bytes 0 to 23 | zeros.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::LogError;
use crate::io::fault;

pub(super) const HEADER_BYTES: u64 = 4096;
const MAGIC: &[u8; 8] = b"SKEINLG1";
const VERSION: u32 = 1;
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// A segment in use.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub epoch: u64,
    pub file: Arc<File>,
    pub path: PathBuf,
}

/// Name of the segment of an epoch: `segment-<epoch as 16 hex digits>`.
pub(super) fn path_of(dir: &Path, epoch: u64) -> PathBuf {
    dir.join(format!("segment-{epoch:016x}"))
}

/// The epoch a file name stands for.
pub(super) fn epoch_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// Makes a file of `bytes` zeros, written out so that later writes find their blocks.
pub(super) fn fill(path: &Path, bytes: u64) -> io::Result<File> {
    fault::point("raft_segment_create")?;
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    let mut at = 0;
    while at < bytes {
        let count = (bytes - at).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..count as usize], at)?;
        at += count;
    }
    file.sync_all()?;
    Ok(file)
}

impl Segment {
    /// Turns a filled file into the segment of `epoch`, durably.
    pub fn begin(dir: &Path, filled: &Path, file: File, epoch: u64) -> Result<Self, LogError> {
        let path = path_of(dir, epoch);
        let mut header = [0; 32];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[16..24].copy_from_slice(&epoch.to_le_bytes());
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64GoIso, &header[..24]);
        header[24..].copy_from_slice(&sum.to_le_bytes());
        let written = fault::point("raft_segment_begin")
            .and_then(|()| file.write_all_at(&header, 0))
            .and_then(|()| file.sync_data())
            .and_then(|()| crate::io::durable::rename(filled, &path));
        written.map_err(LogError::io("beginning log segment", &path))?;
        Ok(Self { epoch, file: Arc::new(file), path })
    }

    /// Size of the file: while it is in use it neither grows nor shrinks.
    pub fn size_bytes(&self) -> Result<u64, LogError> {
        let metadata = self.file.metadata().map_err(LogError::io("reading the size of", &self.path))?;
        Ok(metadata.len())
    }

    /// Opens an existing segment and checks its header.
    pub fn open(path: &Path, epoch: u64) -> Result<Self, LogError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(LogError::io("opening log segment", path))?;
        let mut header = [0; 32];
        let corrupt = |why: &str| LogError::Corrupt { path: path.into(), offset: 0, why: why.into() };
        file.read_exact_at(&mut header, 0).map_err(|_| corrupt("its header is cut short"))?;
        let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        if header[..8] != *MAGIC {
            return Err(corrupt("it does not begin as a log segment does"));
        }
        let version = u32::from_le_bytes(header[8..12].try_into().expect("four bytes"));
        if word(24) != crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64GoIso, &header[..24]) {
            return Err(corrupt("the checksum of its header is wrong"));
        }
        if version != VERSION {
            return Err(LogError::Version { path: path.into(), version });
        }
        if word(16) != epoch {
            return Err(corrupt("its epoch is not that of its name"));
        }
        Ok(Self { epoch, file: Arc::new(file), path: path.into() })
    }
}
