use crate::types::{LogIndex, Pos, Timestamp};

/// What is stored with a change-set file, beside what is in it: whose it is, and where it leads.
///
/// | attribute (S3, Google) | Azure | value |
/// |---|---|---|
/// | `litestream-timestamp` | `litestreamtimestamp` | the time in the file's header, RFC 3339: Litestream reads it |
/// | `skein-position` | `skeinposition` | the cluster's position `txid/checksum` after the file |
/// | `skein-index` | `skeinindex` | the log entry it ends with |
/// | `skein-cluster` | `skeincluster` | the cluster |
/// | `skein-epoch` | `skeinepoch` | the Raft term of the uploader |
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileAttributes {
    /// When the last of its transactions was committed.
    pub time: Timestamp,
    /// Where the cluster's database stood then.
    pub pos: Pos,
    /// The log entry that brought it there.
    pub index: LogIndex,
    /// The cluster.
    pub cluster: String,
    /// The uploader's Raft term.
    pub epoch: u64,
}

/// The attribute that readers of Litestream's layout take the time from.
pub(super) const TIMESTAMP: &str = "litestream-timestamp";
const POSITION: &str = "skein-position";
const INDEX: &str = "skein-index";
const CLUSTER: &str = "skein-cluster";
const EPOCH: &str = "skein-epoch";

impl FileAttributes {
    /// As they are stored.
    pub fn encode(&self) -> Vec<(String, String)> {
        [
            (TIMESTAMP, self.time.to_string()),
            (POSITION, self.pos.to_string()),
            (INDEX, self.index.to_string()),
            (CLUSTER, self.cluster.clone()),
            (EPOCH, self.epoch.to_string()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    /// What was stored; `None` where a copy of the bucket has lost it, or the file is of another program.
    pub fn decode(attributes: &[(String, String)]) -> Option<Self> {
        let of = |name: &str| {
            let plain = name.replace('-', "");
            let found = attributes.iter().find(|(key, _)| key == name || *key == plain);
            found.map(|(_, value)| value.as_str())
        };
        Some(Self {
            time: of(TIMESTAMP)?.parse().ok()?,
            pos: of(POSITION)?.parse().ok()?,
            index: of(INDEX)?.parse().ok().map(LogIndex::new)?,
            cluster: of(CLUSTER)?.to_owned(),
            epoch: of(EPOCH)?.parse().ok()?,
        })
    }
}

/// The name of an attribute where only letters and digits are allowed in names.
pub(super) fn without_hyphens(name: &str) -> String {
    name.replace('-', "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Checksum, Txid};

    #[test]
    fn attributes_round_trip_also_without_hyphens() {
        let attributes = FileAttributes {
            time: Timestamp::from_ms(1_709_251_199_123),
            pos: Pos::new(Txid::new(7).unwrap(), Checksum::new(9)),
            index: LogIndex::new(12),
            cluster: "c".into(),
            epoch: 3,
        };
        let encoded = attributes.encode();
        assert_eq!(FileAttributes::decode(&encoded), Some(attributes.clone()));
        let azure: Vec<_> =
            encoded.iter().map(|(name, value)| (without_hyphens(name), value.clone())).collect();
        assert_eq!(FileAttributes::decode(&azure), Some(attributes));
        assert_eq!(FileAttributes::decode(&encoded[1..]), None);
    }
}
