//! Who may write below a URL: one cluster for good, and of it the primary of the highest Raft term.
//!
//! The lease is one object, written only on the condition that nobody has written it since it was read. A cluster needs
//! no expiry: its Raft term says whose turn it is, and a successor takes the lease without waiting. What a deposed
//! uploader still sends meanwhile is committed history under the same names, so it can do no harm.

use serde::{Deserialize, Serialize};

use super::layout::LEASE;
use super::{BackupError, Objects, Version};
use crate::types::{LogIndex, Timestamp};

/// Who wants to upload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// The cluster.
    pub cluster: String,
    /// Its Raft term.
    pub epoch: u64,
    /// The primary's name.
    pub node: String,
    /// A number drawn at the start of the node's program: two runs of one node are two holders.
    pub run: u64,
}

/// The lease as it is stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct LeaseDocument {
    format: u32,
    cluster: String,
    epoch: u64,
    node: String,
    run: u64,
    /// All databases have everything up to this log entry in the bucket.
    index: u64,
    /// When it was written, by the writer's clock.
    written_ms: i64,
}

/// A lease that is held.
#[derive(Clone, Debug)]
pub struct BucketLease {
    document: LeaseDocument,
    version: Version,
}

const FORMAT: u32 = 1;

impl BucketLease {
    /// Takes the lease; says up to which log entry the predecessor has uploaded everything, `None` where there was none.
    ///
    /// # Errors
    /// [`BackupError::Foreign`] where another cluster has the path, or a later term of this one;
    /// [`BackupError::Conflict`] where somebody else takes it at the same time.
    pub async fn acquire(
        objects: &dyn Objects,
        holder: &Holder,
        url: &str,
    ) -> Result<(Self, Option<LogIndex>), BackupError> {
        let present = objects.get(LEASE).await?;
        let (before, version) = match present {
            None => (None, None),
            Some(object) => {
                let document: LeaseDocument = serde_json::from_slice(&object.body).map_err(|error| {
                    BackupError::Corrupt(format!("object {LEASE} at {url} is no lease of skein: {error}"))
                })?;
                check(&document, holder, url)?;
                (Some(document), Some(object.version))
            }
        };
        let index = before.as_ref().map(|document| LogIndex::new(document.index));
        let document = LeaseDocument {
            format: FORMAT,
            cluster: holder.cluster.clone(),
            epoch: holder.epoch,
            node: holder.node.clone(),
            run: holder.run,
            index: index.map_or(0, LogIndex::get),
            written_ms: Timestamp::now().ms(),
        };
        let version = write(objects, &document, version).await?;
        Ok((Self { document, version }, index))
    }

    /// Notes that everything up to `index` is in the bucket, and finds out whether this is still the holder.
    ///
    /// # Errors
    /// [`BackupError::Conflict`] where it is not.
    pub async fn renew(&mut self, objects: &dyn Objects, index: LogIndex) -> Result<(), BackupError> {
        let document =
            LeaseDocument { index: index.get(), written_ms: Timestamp::now().ms(), ..self.document.clone() };
        self.version = write(objects, &document, Some(self.version.clone())).await?;
        self.document = document;
        Ok(())
    }

    /// The log entry last noted.
    pub fn index(&self) -> LogIndex {
        LogIndex::new(self.document.index)
    }
}

/// Whether `holder` may follow the holder of `document`.
fn check(document: &LeaseDocument, holder: &Holder, url: &str) -> Result<(), BackupError> {
    if document.cluster != holder.cluster {
        return Err(BackupError::Foreign(format!(
            "{url} has the backup of cluster {} (node {}, last written {}), and this is cluster {}: choose another path; \
             if that cluster is gone for good and its backup may be mixed with this one's, remove {LEASE} there",
            document.cluster,
            document.node,
            Timestamp::from_ms(document.written_ms),
            holder.cluster
        )));
    }
    let same = document.node == holder.node && document.run == holder.run;
    if document.epoch > holder.epoch || (document.epoch == holder.epoch && !same) {
        return Err(BackupError::Foreign(format!(
            "node {} uploads to {url} in term {}, and this node is primary in term {} only",
            document.node, document.epoch, holder.epoch
        )));
    }
    Ok(())
}

/// Writes it where it is still the version read. An answer that was lost leaves our own lease there, which a second
/// attempt takes for somebody else's: it is read back and compared.
async fn write(
    objects: &dyn Objects,
    document: &LeaseDocument,
    expected: Option<Version>,
) -> Result<Version, BackupError> {
    let body = serde_json::to_vec(document).expect("a lease is plain data");
    match objects.put_if(LEASE, body.clone().into(), expected).await {
        Err(BackupError::Conflict(what)) => match objects.get(LEASE).await? {
            Some(object) if object.body == body => Ok(object.version),
            _ => Err(BackupError::Conflict(what)),
        },
        written => written,
    }
}
