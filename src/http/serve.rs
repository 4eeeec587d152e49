//! The server below the API: connections, and what a slow or noisy client may not do to it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::protect::Peer;
use crate::security::{Certificates, NodeStream};

/// How long requests under way have to end when the node does.
const GRACE: Duration = Duration::from_secs(2);
/// How long a client has for a TLS handshake and for each request's head, and may be silent between two requests.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// How long a client may take nothing of what it is sent, in milliseconds.
const STALLED_MS_MAX: u32 = 60_000;
/// Connections served at the same time; more of them wait.
const CONNECTIONS_MAX: usize = 1024;
/// A request whose head is still incomplete after so many bytes is refused.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Most headers of a request.
const HEADERS_MAX: usize = 100;

/// Serves `router` on `listener`, inside TLS with `tls`, until `shutdown`; then gives requests under way two seconds to
/// end.
///
/// # Errors
/// Where the listener fails.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<Arc<Certificates>>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Ok((stream, peer, place)) => {
                let (router, tls, watcher) = (router.clone(), tls.clone(), graceful.watcher());
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, peer, router, tls, watcher).await {
                        tracing::debug!(%peer, "a connection of a client ended: {error}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Too many open files, mostly: some will be closed.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    // Whoever is not done by then is cut off.
    let _ = tokio::time::timeout(GRACE, graceful.shutdown()).await;
    Ok(())
}

/// Serves `router` on connections of other nodes, which come through `peers`, until `shutdown`.
pub async fn serve_peers(mut peers: mpsc::Receiver<NodeStream>, router: Router, shutdown: CancellationToken) {
    let graceful = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            stream = peers.recv() => match stream {
                Some(stream) => stream,
                None => break,
            },
        };
        let Some(peer) = stream.peer_addr() else { continue };
        let (router, watcher) = (router.clone(), graceful.watcher());
        tokio::spawn(async move {
            if let Err(error) = requests(stream, peer, router, watcher).await {
                tracing::debug!(%peer, "a connection of another node ended: {error}");
            }
        });
    }
    // Whoever is not done by then is cut off.
    let _ = tokio::time::timeout(GRACE, graceful.shutdown()).await;
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, place))
}

type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    tls: Option<Arc<Certificates>>,
    watcher: Watcher,
) -> Ended {
    stream.set_nodelay(true)?;
    setsockopt(&stream, sockopt::TcpUserTimeout, &STALLED_MS_MAX)?;
    match tls {
        None => requests(stream, peer, router, watcher).await,
        Some(tls) => {
            let stream = tokio::time::timeout(HEAD_MAX, tls.accept_http(stream)).await??;
            requests(stream, peer, router, watcher).await
        }
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    router: Router,
    watcher: Watcher,
) -> Ended {
    let service = router.map_request(move |mut request: Request<Incoming>| {
        let _none_before = request.extensions_mut().insert(Peer(peer));
        request.map(axum::body::Body::new)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    Ok(watcher.watch(connection).await?)
}
