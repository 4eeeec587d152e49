//! The listener and its connections.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::forward::Forwarder;
use super::rules::Rules;
use super::service::Proxy;
use super::upstream::Upstream;
use super::write_targets::WriteTargets;
use super::{Site, WriteGate};
use crate::config::ProxySettings;
use crate::security::NodeStream;
use crate::telemetry::metrics::PROXY_CONNECTIONS;

/// How long requests under way have to end when the proxy does.
const GRACE: Duration = Duration::from_secs(2);
/// The largest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Requests at a time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;
/// Bodies held in memory by all requests, in bytes.
const HELD_BYTES_MAX: usize = 64 << 20;
/// Pause where the system has no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves clients on `listener`, and proxies of other nodes whose connections come through `peers`, until `shutdown`;
/// then gives requests under way two seconds to end.
///
/// # Errors
/// Where the target is no address.
pub async fn serve(
    listener: TcpListener,
    peers: mpsc::Receiver<NodeStream>,
    settings: ProxySettings,
    site: Arc<dyn Site>,
    gate: WriteGate,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let tunnels = TaskTracker::new();
    let proxy = Arc::new(Proxy {
        rules: Rules::new(&settings),
        targets: WriteTargets::new(),
        forwarder: Forwarder {
            upstream: Upstream::new(&settings, site.clone())?,
            tunnels: tunnels.clone(),
            shutdown: shutdown.clone(),
        },
        held: Arc::new(Semaphore::new(HELD_BYTES_MAX)),
        site,
        gate,
        settings,
    });
    let ended = CancellationToken::new();
    let follows = {
        let (proxy, ended) = (proxy.clone(), ended.clone());
        let asks = !proxy.settings.fly_replay;
        tokio::spawn(async move {
            proxy.targets.follow(proxy.site.clone(), proxy.gate.clone(), asks, ended).await;
        })
    };
    let connections = GracefulShutdown::new();
    accept(&listener, peers, &proxy, &connections, &shutdown).await;
    drop(listener);
    tokio::select! {
        () = connections.shutdown() => {}
        () = tokio::time::sleep(GRACE) => {}
    }
    ended.cancel();
    tunnels.close();
    tunnels.wait().await;
    // It has nothing to tell.
    let _ = follows.await;
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    mut peers: mpsc::Receiver<NodeStream>,
    proxy: &Arc<Proxy>,
    connections: &GracefulShutdown,
    shutdown: &CancellationToken,
) {
    let targets = Arc::new(Semaphore::new(proxy.settings.max_connections as usize));
    loop {
        let accepted = async {
            let place = targets.clone().acquire_owned().await.ok()?;
            tokio::select! {
                accepted = listener.accept() => Some((place, accepted.map(|(stream, _)| NodeStream::Plain(stream)))),
                Some(stream) = peers.recv() => Some((place, Ok(stream))),
            }
        };
        let (place, accepted) = tokio::select! {
            Some(accepted) = accepted => accepted,
            () = shutdown.cancelled() => return,
        };
        match accepted {
            Ok(stream) => connect(stream, place, proxy.clone(), connections),
            Err(error) => {
                tracing::debug!(%error, "proxy: cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn connect(
    stream: NodeStream,
    place: OwnedSemaphorePermit,
    proxy: Arc<Proxy>,
    connections: &GracefulShutdown,
) {
    let idle = proxy.settings.idle_timeout;
    let watcher = connections.watcher();
    tokio::spawn(async move {
        let _counted = Counted::new(place);
        let Some(client) = stream.peer_addr() else { return };
        if !is_begun(&stream, idle).await {
            return;
        }
        let service = service_fn(move |request| {
            let proxy = proxy.clone();
            async move { Ok::<_, Infallible>(proxy.handle(request, client.ip()).await) }
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(idle)
            .max_buf_size(HEAD_BYTES_MAX)
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(idle)
            .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
            .max_concurrent_streams(STREAMS_MAX);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%client, %error, "proxy: a connection broke off");
        }
    });
}

/// Until the first byte nothing tells which protocol a client speaks; another node's proxy does not connect without
/// having something to say.
async fn is_begun(stream: &NodeStream, idle: Duration) -> bool {
    let NodeStream::Plain(stream) = stream else { return true };
    let begun = tokio::time::timeout(idle, stream.peek(&mut [0; 1])).await;
    matches!(begun, Ok(Ok(1))) && stream.set_nodelay(true).is_ok()
}

/// A connection that counts while it is there.
struct Counted {
    _place: OwnedSemaphorePermit,
}

impl Counted {
    fn new(place: OwnedSemaphorePermit) -> Self {
        metrics::gauge!(PROXY_CONNECTIONS).increment(1.0);
        Self { _place: place }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!(PROXY_CONNECTIONS).decrement(1.0);
    }
}
