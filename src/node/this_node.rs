//! This node, as everything sees it that answers clients in its name.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::proxy::NodeSite;
use crate::security::Peering;
use crate::store::{PrimaryInfo, Store};
use crate::types::{DbName, NodeName, Txid};

/// What such things ask of it.
#[derive(Clone)]
pub(super) struct ThisNode {
    pub(super) name: NodeName,
    pub(super) store: Arc<Store>,
    /// Why applications may not start yet.
    pub(super) ready: watch::Receiver<Result<(), String>>,
    /// How it speaks to others.
    pub(super) peering: Peering,
}

impl NodeSite for ThisNode {
    fn name(&self) -> &NodeName {
        &self.name
    }

    fn ready(&self) -> Result<(), String> {
        self.ready.borrow().clone()
    }

    fn primary(&self) -> Option<PrimaryInfo> {
        self.store.primary()
    }

    fn lag(&self) -> Option<Duration> {
        self.store.lag()
    }

    fn wait_for(&self, db: DbName, txid: Txid, deadline: Instant) -> BoxFuture<'static, bool> {
        let store = self.store.clone();
        Box::pin(async move { store.wait_for(&db, txid, deadline).await })
    }
}
