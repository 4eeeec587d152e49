//! The connection to the process that executes SQL, which is started when it is needed.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use super::SqlSite;
use super::refusal::Refusal;

type Sender = SendRequest<Full<Bytes>>;

/// The engine of this node.
pub(super) struct EngineLink {
    site: Arc<dyn SqlSite>,
    current: Mutex<Option<Sender>>,
}

impl EngineLink {
    /// Not started yet.
    pub fn new(site: Arc<dyn SqlSite>) -> Self {
        Self { site, current: Mutex::new(None) }
    }

    /// Sends a request, and starts the engine where there is none.
    ///
    /// # Errors
    /// Where it cannot be started, or ends in the middle.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Refusal> {
        let mut sender = self.sender().await?;
        let ready = sender.ready().await;
        ready.map_err(|error| Refusal::unavailable(format!("the SQL engine ended: {error}")))?;
        let answer = sender.send_request(request).await;
        answer.map_err(|error| Refusal::unknown(format!("the SQL engine ended: {error}")))
    }

    /// Sends a request to an engine that runs; there is nothing to do where none does.
    pub async fn send_if_running(&self, request: Request<Full<Bytes>>) {
        let running = self.current.lock().await.clone().filter(|sender| !sender.is_closed());
        if let Some(mut sender) = running {
            // One that ends has rolled back everything.
            let _answer = sender.send_request(request).await;
        }
    }

    /// Lets go of it.
    pub async fn disconnect(&self) {
        drop(self.current.lock().await.take());
    }

    async fn sender(&self) -> Result<Sender, Refusal> {
        let mut current = self.current.lock().await;
        if let Some(sender) = current.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let failed = |error: std::io::Error| {
            Refusal::unavailable(format!("the SQL engine cannot be started: {error}"))
        };
        let socket = self.site.start_engine().await.map_err(failed)?;
        let socket = UnixStream::from_std(socket).map_err(failed)?;
        let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await;
        let (sender, connection) = shaken.map_err(|error| failed(std::io::Error::other(error)))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::warn!(%error, "the SQL engine ended");
            }
        });
        *current = Some(sender.clone());
        Ok(sender)
    }
}
