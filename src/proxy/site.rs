use std::io;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::sync::broadcast;

use crate::security::NodeStream;
use crate::store::{PrimaryInfo, StoreEvent};
use crate::types::{DbName, NodeName, Txid};

/// A node, as far as everything that answers clients in its name asks it.
pub trait NodeSite: Send + Sync + 'static {
    /// Its name.
    fn name(&self) -> &NodeName;

    /// `Err` says why applications may not use the mount.
    fn ready(&self) -> Result<(), String>;

    /// The primary, also where it is this node.
    fn primary(&self) -> Option<PrimaryInfo>;

    /// How long ago this node had everything; `None` where it never had.
    fn lag(&self) -> Option<Duration>;

    /// Waits until the database has reached `txid` here; `false` at the deadline.
    fn wait_for(&self, db: DbName, txid: Txid, deadline: Instant) -> BoxFuture<'static, bool>;
}

/// A node, as far as its proxy asks it.
pub trait Site: NodeSite {
    /// Events from now on; only changes of the primary are looked at.
    fn events(&self) -> broadcast::Receiver<StoreEvent>;

    /// The last transaction of a database here, once all that applications have committed by now has a TXID.
    fn committed(&self, db: DbName) -> BoxFuture<'static, Option<Txid>>;

    /// Connects to another node's proxy, at the host and port of the URL that [`Site::proxy_of`] named.
    fn connect(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<NodeStream>>;

    /// The URL of another node's proxy, `None` where it has none; `Err` says why it cannot be asked.
    fn proxy_of(&self, node: &PrimaryInfo) -> BoxFuture<'static, Result<Option<String>, String>>;
}
