//! The connections to the application, and to the proxies of other nodes.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper::http::uri::Authority;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower::Service;

use super::Site;
use super::body::{Outgoing, Progress};
use super::node_connector::{NodeConnector, innermost, node_client};
use crate::config::ProxySettings;

/// Unused connections to the application are kept this long: servers close theirs after 2 s and more, and what is sent
/// in that moment is lost.
const APP_IDLE_MAX: Duration = Duration::from_secs(1);
/// Pause between attempts to connect to an application that refuses.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The request was not sent.
    Unsent(String),
    /// It may have been.
    Unknown(String),
    /// It may have been, and there is no answer yet.
    Late,
}

/// Where a request is sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum To<'a> {
    /// The application of this node.
    App,
    /// The proxy of another.
    Peer(&'a Authority),
}

/// The connections.
pub(super) struct Upstream {
    app: Client<Patient, Outgoing>,
    peers: Client<NodeConnector, Outgoing>,
    target: Authority,
    response_timeout: Duration,
}

impl Upstream {
    /// Connects when there is something to send.
    ///
    /// # Errors
    /// Where the target cannot be part of a URL.
    pub fn new(settings: &ProxySettings, site: Arc<dyn Site>) -> io::Result<Self> {
        let target = settings.target.to_string();
        let target = target.parse().map_err(|_| io::Error::other(format!("proxy.target {target:?}")))?;
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).timer(TokioTimer::new());
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(settings.connect_timeout));
        let patient = Patient { inner: connector, limit: settings.connect_timeout };
        Ok(Self {
            app: builder.pool_idle_timeout(APP_IDLE_MAX).build(patient),
            peers: node_client(move |uri| {
                site.connect(uri.host().unwrap_or_default().to_owned(), uri.port_u16().unwrap_or(80))
            }),
            target,
            response_timeout: settings.response_timeout,
        })
    }

    /// The URL of `path` at the receiver.
    pub fn uri(&self, to: To<'_>, path: &Uri) -> Option<Uri> {
        let authority = match to {
            To::App => self.target.clone(),
            To::Peer(authority) => authority.clone(),
        };
        let path = path.path_and_query().map_or("/", |path| path.as_str());
        Uri::builder().scheme("http").authority(authority).path_and_query(path).build().ok()
    }

    /// Sends a request once and waits for the begin of its answer.
    ///
    /// # Errors
    /// Where there is none; whether the request was sent is said.
    pub async fn send(
        &self,
        to: To<'_>,
        request: Request<Outgoing>,
        progress: &Progress,
    ) -> Result<Response<Incoming>, Failure> {
        let answer = match to {
            To::App => self.app.request(request),
            To::Peer(_) => self.peers.request(request),
        };
        let limit = Some(self.response_timeout).filter(|limit| !limit.is_zero());
        let late = async {
            match limit {
                // An application that waits for connections has its own limit.
                Some(limit) => progress.stalled(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            answer = answer => answer.map_err(|error| match error.is_connect() {
                true => Failure::Unsent(innermost(&error)),
                false => Failure::Unknown(innermost(&error)),
            }),
            () = late => Err(Failure::Late),
        }
    }
}

/// Connects to an application that may be starting: tries again where it is refused.
#[derive(Clone)]
struct Patient {
    inner: HttpConnector,
    limit: Duration,
}

impl Service<Uri> for Patient {
    type Response = <HttpConnector as Service<Uri>>::Response;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (mut inner, deadline) = (self.inner.clone(), Instant::now() + self.limit);
        Box::pin(async move {
            loop {
                match inner.call(uri.clone()).await {
                    Err(error) if is_refused(&error) && Instant::now() < deadline => {
                        tokio::time::sleep(REFUSED_PAUSE).await;
                    }
                    connected => return connected,
                }
            }
        })
    }
}

fn is_refused(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = error.source();
    }
    false
}
