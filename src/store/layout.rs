use std::path::{Path, PathBuf};

use crate::db::DbFiles;
use crate::types::DbName;

/// Names of everything in a data directory.
///
/// ```text
/// node.toml   identity          raft/       the log            blobs/   large change sets
/// dbs/<path>/ one database      discarded/  change sets that a failover dropped
/// applied     how far the log is in there       names    owners, permissions, directories
/// positions   where each database stands by the log
/// tmp/        uploads and snapshots under way; emptied at start
/// history/    what databases were, see the module `history`
/// renamed/    databases that are to take another one's place, by log entry
/// mounts/     which open files of a mount are which databases, for the start after this run
/// ```
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `root`.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The data directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The node's identity.
    pub fn node_toml(&self) -> PathBuf {
        self.root.join("node.toml")
    }

    /// How far the log needs no redo.
    pub fn applied(&self) -> PathBuf {
        self.root.join("applied")
    }

    /// Where each database stands by the log.
    pub fn positions(&self) -> PathBuf {
        self.root.join("positions")
    }

    /// Owners and permissions, and directories without a database.
    pub fn names(&self) -> PathBuf {
        self.root.join("names")
    }

    /// Notes of this node's mounts for the starts after them.
    pub fn mounts(&self) -> PathBuf {
        self.root.join("mounts")
    }

    /// Since when this node is primary.
    pub fn primary_since(&self) -> PathBuf {
        self.root.join("primary-since")
    }

    /// The log's directory.
    pub fn raft(&self) -> PathBuf {
        self.root.join("raft")
    }

    /// The blob store's directory.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// The directory that mirrors the mount: a directory with a regular file `database` in it is a database, a regular
    /// file is a super-journal. Other directories are there for what is below them; which ones the mount shows is in
    /// [`names`](Self::names).
    pub fn dbs(&self) -> PathBuf {
        self.root.join("dbs")
    }

    /// The files of one database.
    pub fn database(&self, name: &DbName) -> DbFiles {
        DbFiles::new(self.dbs().join(name.as_str()))
    }

    /// Change sets that never became history.
    pub fn discarded(&self) -> PathBuf {
        self.root.join("discarded")
    }

    /// Databases that were renamed over one that applications have open, until that one's own file has their content.
    pub fn renamed(&self) -> PathBuf {
        self.root.join("renamed")
    }

    /// Earlier states of databases.
    pub fn history(&self) -> PathBuf {
        self.root.join("history")
    }

    /// Files of operations under way.
    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }
}
