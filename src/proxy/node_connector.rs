//! HTTP clients of other nodes: the proxy's, and that of SQL over HTTP.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use hyper::Uri;
use hyper::body::Body;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tower::Service;

use crate::security::NodeStream;

/// Unused connections are kept this long; a node keeps its own at least 10 s.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// How long another node has to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// A node that acknowledges nothing for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(10);

type Connecting = BoxFuture<'static, io::Result<NodeStream>>;

/// Connects to the node that a URL names.
#[derive(Clone)]
pub struct NodeConnector(Arc<dyn Fn(&Uri) -> Connecting + Send + Sync>);

/// A client of other nodes that connects by `dial` when there is something to send, and keeps its connections for a while.
pub fn node_client<B>(dial: impl Fn(&Uri) -> Connecting + Send + Sync + 'static) -> Client<NodeConnector, B>
where
    B: Body + Send,
    B::Data: Send,
{
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new()).timer(TokioTimer::new()).pool_idle_timeout(IDLE_MAX);
    builder.build(NodeConnector(Arc::new(dial)))
}

impl Service<Uri> for NodeConnector {
    type Response = TokioIo<NodeStream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = (self.0)(&uri);
        Box::pin(async move {
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
            let stream = tokio::time::timeout(CONNECT_MAX, connecting).await.map_err(late)??;
            stream.notice_silence(SILENCE_MAX)?;
            Ok(TokioIo::new(stream))
        })
    }
}

/// The cause an operator can do something about ("connection refused").
pub fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string().to_lowercase()
}
