use std::io;
use std::os::unix::net::UnixStream;

use futures::future::BoxFuture;

use crate::proxy::NodeSite;
use crate::security::NodeStream;
use crate::store::{ClusterError, PrimaryInfo};
use crate::types::{DbName, Txid};

/// Where another node is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeAddress {
    /// The node's name.
    pub name: String,
    /// HOST:PORT, of the port between nodes where that is inside TLS, else of its API.
    pub authority: String,
}

/// A node, as far as SQL over HTTP asks it.
pub trait SqlSite: Send + Sync + 'static {
    /// The node itself.
    fn node(&self) -> &dyn NodeSite;

    /// Whether there is such a database here.
    fn exists(&self, db: &DbName) -> bool;

    /// The names of some databases here, at most two: whether there is exactly one.
    fn first_two(&self) -> Vec<DbName>;

    /// The newest committed transaction of a database, confirmed by a quorum; `None` where it has none.
    fn newest(&self, db: DbName) -> BoxFuture<'_, Result<Option<Txid>, ClusterError>>;

    /// Where a node of this name is asked; `Err` says why that is not known.
    fn locate(&self, name: String) -> BoxFuture<'_, Result<NodeAddress, String>>;

    /// Where the primary is asked.
    fn address_of(&self, primary: &PrimaryInfo) -> Result<NodeAddress, String>;

    /// Connects to another node, at what [`SqlSite::locate`] named.
    fn connect(&self, authority: String) -> BoxFuture<'static, io::Result<NodeStream>>;

    /// Starts the process that executes SQL; the one before it, if any, has ended.
    ///
    /// # Errors
    /// Where it cannot be started.
    fn start_engine(&self) -> BoxFuture<'_, io::Result<UnixStream>>;
}
