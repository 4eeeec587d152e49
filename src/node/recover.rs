//! A cluster of one voter from the data directory of a survivor: the way out where a majority is lost for ever.
//!
//! The cluster gets a new id, so the lost voters, should they ever come back, and the old cluster's replicas are refused by
//! it, and refuse it: both histories may have gone on.

use std::fs;
use std::path::{Path, PathBuf};

use super::{DataDir, NodeError, NodeIdentity, draw_cluster_id};
use crate::io::blobs::BlobStore;
use crate::io::durable;
use crate::raft::{Survivor, SurvivorLog};
use crate::store::Store;
use crate::types::Role;

/// A survivor that was looked at, locked against daemons.
pub struct Recovery {
    data: DataDir,
    identity: NodeIdentity,
    log: SurvivorLog,
}

impl Recovery {
    /// Looks at the data directory `root` of a node that does not run. Nothing is changed.
    ///
    /// # Errors
    /// Where a daemon has it, or it is not the directory of a voter of a cluster.
    pub fn look_at(root: &Path) -> Result<Self, NodeError> {
        let refuse = |why: &str| Err(NodeError::Data { path: root.to_owned(), why: why.to_owned() });
        if !root.is_dir() {
            return refuse("does not exist; name the data directory of a node that is left");
        }
        let data = DataDir::open(root)?;
        let Some(identity) = data.identity()? else {
            return refuse("belongs to no node; name that of a node that is left");
        };
        if identity.cluster.is_none() || identity.founding {
            return refuse("belongs to no cluster yet: there is nothing to recover");
        }
        if identity.role == Role::Replica {
            return refuse(
                "belongs to a replica, which has no log: run it with skein mount, take its databases out with skein db export --all, and import them into a new cluster",
            );
        }
        let layout = data.layout();
        let failed = |error: std::io::Error| NodeError::Replication(format!("{}: {error}", root.display()));
        let blobs = BlobStore::open_unsynced(layout.blobs()).map_err(failed)?;
        let durable = Store::durable_index_in(layout)?;
        let log = SurvivorLog::open(&layout.raft(), (identity.node, &identity.name), durable, &blobs);
        let log = log.map_err(|error| NodeError::Replication(error.to_string()))?;
        Ok(Self { data, identity, log })
    }

    /// What its log has.
    pub fn found(&self) -> &Survivor {
        &self.log.found
    }

    /// Who it is.
    pub fn identity(&self) -> &NodeIdentity {
        &self.identity
    }

    /// Copies everything in the directory to `to`, which must not exist; gives the bytes.
    ///
    /// # Errors
    /// Where it exists, or the disk is full: what was copied is removed again.
    pub fn copy_to(&self, to: &Path) -> Result<u64, NodeError> {
        let failed = |error: std::io::Error| NodeError::Data {
            path: to.to_owned(),
            why: format!("cannot be made as a copy: {error}; make room, or give --no-copy"),
        };
        fs::create_dir(to).map_err(failed)?;
        copy_tree(self.data.layout().root(), to).map_err(|error| {
            // What is half a copy helps nobody, and takes the space that lacks.
            let _ = fs::remove_dir_all(to);
            failed(error)
        })
    }

    /// Makes the node the only voter of a cluster of its own, durably; gives the cluster's id. Where this is interrupted it
    /// is to be done again.
    ///
    /// # Errors
    /// Where files cannot be written.
    pub fn carry_out(self) -> Result<String, NodeError> {
        let cluster = draw_cluster_id()?;
        // The id first: from then on nobody of the old cluster is let in, whatever the log says.
        let identity = NodeIdentity {
            former: self.identity.former.iter().chain(&self.identity.cluster).cloned().collect(),
            cluster: Some(cluster.clone()),
            ..self.identity
        };
        self.data.save(&identity)?;
        self.log.become_only_voter().map_err(|error| NodeError::Replication(error.to_string()))?;
        Ok(cluster)
    }
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target): (_, PathBuf) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            fs::create_dir(&target)?;
            bytes += copy_tree(&entry.path(), &target)?;
        } else if kind.is_file() {
            // Shares the blocks where the file system can (copy_file_range).
            bytes += fs::copy(entry.path(), &target)?;
            fs::File::open(&target)?.sync_all()?;
        }
    }
    durable::sync_dir(to)?;
    Ok(bytes)
}
