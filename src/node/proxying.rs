//! A node as its proxy sees it.

use std::io;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::NodeError;
use super::joining::who_is;
use super::this_node::ThisNode;
use crate::config::ProxySettings;
use crate::proxy::{self, Site, WriteGate};
use crate::security::{NodeStream, Purpose};
use crate::store::{PrimaryInfo, StoreEvent};
use crate::types::{DbName, Txid};

impl Site for ThisNode {
    fn events(&self) -> broadcast::Receiver<StoreEvent> {
        self.store.events()
    }

    fn committed(&self, db: DbName) -> BoxFuture<'static, Option<Txid>> {
        Box::pin(self.store.clone().committed(db))
    }

    fn connect(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<NodeStream>> {
        let peering = self.peering.clone();
        Box::pin(async move { peering.dial(&host, port, Purpose::Proxy).await })
    }

    fn proxy_of(&self, node: &PrimaryInfo) -> BoxFuture<'static, Result<Option<String>, String>> {
        let (PrimaryInfo { name, addr, .. }, peering) = (node.clone(), self.peering.clone());
        Box::pin(async move {
            let identity = who_is(&addr, &peering).await.map_err(|error| error.to_string())?;
            if identity.name.as_str() != name {
                return Err(format!("{} answers at {addr}", identity.name));
            }
            let url = Some(identity.proxy).filter(|url| !url.is_empty());
            // Inside TLS proxies meet at the port between nodes.
            Ok(if peering.is_encrypted() { url.map(|_| format!("https://{addr}")) } else { url })
        })
    }
}

/// The proxy while it runs.
pub(super) struct Proxying {
    shutdown: CancellationToken,
    served: JoinHandle<()>,
}

impl Proxying {
    /// Serves on `listener` until it is stopped.
    pub(super) fn start(
        listener: tokio::net::TcpListener,
        peers: mpsc::Receiver<NodeStream>,
        settings: ProxySettings,
        site: ThisNode,
        gate: WriteGate,
        failures: mpsc::Sender<NodeError>,
    ) -> Self {
        let shutdown = CancellationToken::new();
        let ends = shutdown.clone();
        let served = tokio::spawn(async move {
            if let Err(error) = proxy::serve(listener, peers, settings, Arc::new(site), gate, ends).await {
                // Nobody to tell: the node ends already.
                let _ = failures.send(NodeError::System(format!("the proxy failed: {error}"))).await;
            }
        });
        Self { shutdown, served }
    }

    /// Takes no more requests, and gives those under way a moment to end.
    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        // What went wrong in it was told when it did.
        let _ = self.served.await;
    }
}
