//! A node as SQL over HTTP sees it.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::joining::who_is;
use super::sql_engine::SqlEngine;
use super::this_node::ThisNode;
use crate::config::Settings;
use crate::http::Router;
use crate::proxy::{NodeSite, WriteGate};
use crate::security::{NodeStream, Purpose};
use crate::sql::engine::EngineOptions;
use crate::sql::gateway::{Gateway, NodeAddress, SqlSite, router};
use crate::store::{ClusterControl, ClusterError, PrimaryInfo};
use crate::types::{DbName, Txid};

/// What SQL over HTTP asks.
pub(super) struct NodeSqlSite {
    pub(super) node: ThisNode,
    /// The cluster as a whole; empty until it is known.
    pub(super) control: Arc<OnceLock<Arc<dyn ClusterControl>>>,
    pub(super) engine: Arc<SqlEngine>,
}

/// What the engine of a node with these settings is told.
pub(super) fn engine_options(settings: &Settings) -> EngineOptions {
    let sql = &settings.sql;
    EngineOptions {
        node: settings.name.to_string(),
        mount: settings.mount.clone(),
        connections_max: sql.connections as usize,
        streams_max: sql.streams as usize,
        stream_idle_max: sql.stream_idle_timeout,
        transaction_max: sql.transaction_timeout,
        statement_max: sql.statement_timeout,
        busy_timeout: sql.busy_timeout,
        rows_max: sql.response_rows,
        bytes_max: usize::try_from(sql.response_bytes).unwrap_or(usize::MAX),
    }
}

impl SqlSite for NodeSqlSite {
    fn node(&self) -> &dyn NodeSite {
        &self.node
    }

    fn exists(&self, db: &DbName) -> bool {
        self.node.store.status(db).is_some()
    }

    fn first_two(&self) -> Vec<DbName> {
        self.node.store.list().into_iter().take(2).map(|status| status.name).collect()
    }

    fn newest(&self, db: DbName) -> BoxFuture<'_, Result<Option<Txid>, ClusterError>> {
        Box::pin(async move {
            let unknown =
                || ClusterError::Unavailable("this node is not in its cluster yet; try again".into());
            let control = self.control.get().ok_or_else(unknown)?;
            Ok(control.newest(db).await?.txid)
        })
    }

    fn locate(&self, name: String) -> BoxFuture<'_, Result<NodeAddress, String>> {
        Box::pin(async move {
            if let Some(primary) = self.node.store.primary().filter(|primary| primary.name == name) {
                return self.address_of(&primary);
            }
            let unknown = || format!("node {name:?} is not known");
            let control = self.control.get().ok_or_else(unknown)?;
            let members = control.members().await.map_err(|error| error.to_string())?;
            let member =
                members.into_iter().find(|member| member.name.as_str() == name).ok_or_else(unknown)?;
            if self.node.peering.is_encrypted() {
                return Ok(NodeAddress { name, authority: member.addr });
            }
            let identity =
                who_is(&member.addr, &self.node.peering).await.map_err(|error| error.to_string())?;
            Ok(NodeAddress { authority: authority_of(&identity.http)?, name })
        })
    }

    fn address_of(&self, primary: &PrimaryInfo) -> Result<NodeAddress, String> {
        let authority = match self.node.peering.is_encrypted() {
            true => primary.addr.clone(),
            false => authority_of(&primary.http)?,
        };
        Ok(NodeAddress { name: primary.name.clone(), authority })
    }

    fn connect(&self, authority: String) -> BoxFuture<'static, io::Result<NodeStream>> {
        let peering = self.node.peering.clone();
        Box::pin(async move {
            let strange = || io::Error::other(format!("{authority:?} is no HOST:PORT"));
            let (host, port) = authority.rsplit_once(':').ok_or_else(strange)?;
            let port = port.parse().map_err(|_| strange())?;
            peering.dial(host, port, Purpose::Api).await
        })
    }

    fn start_engine(&self) -> BoxFuture<'_, io::Result<UnixStream>> {
        Box::pin(self.engine.start())
    }
}

/// SQL over HTTP while the node runs.
pub(super) struct SqlServing {
    gateway: Option<Gateway>,
    engine: Arc<SqlEngine>,
}

impl SqlServing {
    /// Serves it where the settings say so.
    pub(super) fn start(
        settings: &Settings,
        site: NodeSqlSite,
        gate: WriteGate,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        let engine = site.engine.clone();
        let serve = || Gateway::new(Arc::new(site), settings.sql.clone(), gate);
        let gateway = settings.sql.enabled.then(serve);
        if let Some(gateway) = gateway.clone() {
            let shutdown = shutdown.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = gateway.follow_moves() => {}
                    () = shutdown.cancelled() => {}
                }
            });
        }
        Self { gateway, engine }
    }

    /// Its routes.
    pub(super) fn router(&self) -> Router {
        self.gateway.clone().map_or_else(Router::new, router)
    }

    /// Ends the engine, and with it what is under way; the mount has one application less then.
    pub(super) async fn stop(self) {
        if let Some(gateway) = self.gateway {
            gateway.disconnect().await;
        }
        self.engine.stop().await;
    }
}

/// HOST:PORT of a URL.
fn authority_of(url: &str) -> Result<String, String> {
    let rest =
        url.strip_prefix("http://").ok_or_else(|| format!("{url:?} is no URL of an API without TLS"))?;
    let authority = rest.split('/').next().unwrap_or_default();
    Ok(if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") })
}
