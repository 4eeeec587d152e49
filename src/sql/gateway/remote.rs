//! Requests on their way to other nodes.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tower::Service;

use super::SqlSite;
use crate::security::NodeStream;

/// Unused connections are kept this long; a node keeps its own 10 s.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// How long another node has to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// A node that acknowledges nothing for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// The request was not sent.
    Unsent(String),
    /// It may have been.
    Unknown(String),
}

/// The connections to other nodes.
pub(super) struct Remote {
    client: Client<Nodes, Full<Bytes>>,
}

impl Remote {
    /// Connects when there is something to send.
    pub fn new(site: Arc<dyn SqlSite>) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_MAX);
        Self { client: builder.build(Nodes { site }) }
    }

    /// Sends a request once.
    ///
    /// # Errors
    /// Where there is no answer; whether the request was sent is said.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failed> {
        self.client.request(request).await.map_err(|error| {
            let why = innermost(&error);
            if error.is_connect() { Failed::Unsent(why) } else { Failed::Unknown(why) }
        })
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string().to_lowercase()
}

/// Connects to other nodes.
#[derive(Clone)]
struct Nodes {
    site: Arc<dyn SqlSite>,
}

impl Service<Uri> for Nodes {
    type Response = TokioIo<NodeStream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let connecting = self.site.connect(authority);
        Box::pin(async move {
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
            let stream = tokio::time::timeout(CONNECT_MAX, connecting).await.map_err(late)??;
            stream.notice_silence(SILENCE_MAX)?;
            Ok(TokioIo::new(stream))
        })
    }
}
