use serde::{Deserialize, Serialize};

use super::layout::{directory_of, manifest_key};
use super::{BackupError, Object};
use crate::types::{DbName, LogIndex, PageCount, PageSize, Pos, Timestamp, Txid, TxidRange};

/// What the cluster knows about the files of one database in the bucket: a JSON document beside them.
///
/// It is written before the first file of a database, and with each snapshot, merge and removal; files of level 0 that
/// came since are found by one listing. Holds: a file that it names was complete when it was written.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format, [`Manifest::FORMAT`].
    pub format: u32,
    /// The database.
    pub database: String,
    /// The cluster it is of.
    pub cluster: String,
    /// The Raft term of the uploader that wrote this.
    pub epoch: u64,
    /// The cluster's position that the files reach, `txid/checksum`.
    pub position: String,
    /// The log entry of that position.
    pub index: u64,
    /// When its transaction was committed, in milliseconds since 1970.
    pub time_ms: i64,
    /// What is added to a transaction number of the cluster to get that of the files: not 0 once a database was dropped,
    /// and another one of its name made.
    pub offset: u64,
    /// Page size in bytes at that position.
    pub page_size: u32,
    /// Size in pages at that position.
    pub pages: u32,
    /// When the database was dropped or renamed away, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<i64>,
    /// The files.
    pub files: Vec<ManifestFile>,
}

/// One file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its level.
    pub level: u8,
    /// First transaction, 16 hex digits.
    pub min: String,
    /// Last transaction, 16 hex digits.
    pub max: String,
    /// Time in its header, in milliseconds since 1970.
    pub time_ms: i64,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The cluster's position after it, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
}

impl Manifest {
    /// The format this program writes, and the newest it reads.
    pub const FORMAT: u32 = 1;

    /// Reads one.
    ///
    /// # Errors
    /// [`BackupError::Corrupt`] where it is none, or of a newer version.
    pub fn decode(key: &str, object: &Object) -> Result<Self, BackupError> {
        let manifest: Self = serde_json::from_slice(&object.body)
            .map_err(|error| BackupError::Corrupt(format!("object {key} is no manifest: {error}")))?;
        if manifest.format > Self::FORMAT {
            return Err(BackupError::Corrupt(format!(
                "object {key} has format {}, this program knows up to {}: use a newer skein",
                manifest.format,
                Self::FORMAT
            )));
        }
        Ok(manifest)
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest is plain data")
    }

    /// Key of a database's manifest.
    pub fn key_of(db: &DbName) -> String {
        manifest_key(&directory_of(db))
    }

    /// The position that the files reach; `None` where it is not readable.
    pub fn pos(&self) -> Option<Pos> {
        self.position.parse().ok()
    }

    /// The log entry of the position.
    pub fn log_index(&self) -> LogIndex {
        LogIndex::new(self.index)
    }

    /// The page size at the position.
    pub fn page_size(&self) -> Option<PageSize> {
        PageSize::new(self.page_size).ok()
    }

    /// The size at the position.
    pub fn page_count(&self) -> PageCount {
        PageCount::new(self.pages)
    }
}

impl ManifestFile {
    /// The transactions in it; `None` where they are not readable.
    pub fn range(&self) -> Option<TxidRange> {
        let (min, max): (Txid, Txid) = (self.min.parse().ok()?, self.max.parse().ok()?);
        TxidRange::new(min, max)
    }

    /// The time in its header.
    pub fn time(&self) -> Timestamp {
        Timestamp::from_ms(self.time_ms)
    }
}
