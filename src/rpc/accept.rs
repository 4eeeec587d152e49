//! Which part of a node a connection of another node is for.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::security::{MovedStream, NodeStream, Peering, Purpose};

/// Connections at a time that have not said what they are for, or that nobody has taken yet.
const UNSORTED_MAX: usize = 512;

/// Who takes connections that are not for gRPC, or not for gRPC's own threads.
#[derive(Clone, Default)]
pub struct Elsewhere {
    /// Raft's thread, where the node is a voter.
    pub raft: Option<mpsc::Sender<MovedStream>>,
    /// The proxy in front of the application, where there is one.
    pub proxy: Option<mpsc::Sender<NodeStream>>,
    /// The API, for what other nodes pass on to it.
    pub api: Option<mpsc::Sender<NodeStream>>,
}

/// The connections that are being sorted, the oldest first.
///
/// A node says at once what it connects for. Where there are more connections than may wait, the one that has waited
/// longest is closed: somebody who connects and says nothing, or a node that has long tried again because the thread
/// that its connection is for is held up. A newcomer is never refused because of those.
struct Unsorted {
    most: usize,
    waiting: VecDeque<(IpAddr, AbortHandle)>,
}

impl Unsorted {
    /// Adds a connection; gives whose connection was closed for it.
    fn add(&mut self, peer: IpAddr, sorting: AbortHandle) -> Option<IpAddr> {
        if self.waiting.len() >= self.most {
            self.waiting.retain(|(_, sorting)| !sorting.is_finished());
        }
        let closed = if self.waiting.len() >= self.most { self.waiting.pop_front() } else { None };
        self.waiting.push_back((peer, sorting));
        closed.map(|(peer, sorting)| {
            sorting.abort();
            peer
        })
    }
}

/// Accepts connections, and gives each to whom it is for.
pub(super) async fn accept(
    listener: TcpListener,
    peering: Peering,
    ours: mpsc::Sender<NodeStream>,
    elsewhere: Elsewhere,
    shutdown: CancellationToken,
) {
    accept_at_most(UNSORTED_MAX, listener, peering, ours, elsewhere, shutdown).await;
}

async fn accept_at_most(
    unsorted_max: usize,
    listener: TcpListener,
    peering: Peering,
    ours: mpsc::Sender<NodeStream>,
    elsewhere: Elsewhere,
    shutdown: CancellationToken,
) {
    let mut unsorted = Unsorted { most: unsorted_max, waiting: VecDeque::new() };
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let sorting = tokio::spawn(sort(stream, peering.clone(), ours.clone(), elsewhere.clone()));
                if let Some(closed) = unsorted.add(peer.ip(), sorting.abort_handle()) {
                    peering.refuse(closed, "it waited longest of too many that nobody has taken yet");
                }
            }
            Err(error) => {
                // Too many open files, mostly: some will be closed.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Lets a connection in, and gives it to whom it is for.
async fn sort(stream: TcpStream, peering: Peering, ours: mpsc::Sender<NodeStream>, elsewhere: Elsewhere) {
    let Some((stream, purpose)) = peering.admit(stream).await else { return };
    match (purpose, elsewhere) {
        (Purpose::Grpc, _) => drop(ours.send(stream).await),
        (Purpose::Raft, Elsewhere { raft: Some(raft), .. }) => match stream.leave() {
            Ok(stream) => drop(raft.send(stream).await),
            Err(error) => tracing::warn!(%error, "a connection is lost"),
        },
        // A proxy that has its hands full must not hold up what comes for others; the other proxy tries again.
        (Purpose::Proxy, Elsewhere { proxy: Some(proxy), .. }) => {
            if proxy.try_send(stream).is_err() {
                tracing::debug!("the proxy takes no more connections");
            }
        }
        (Purpose::Api, Elsewhere { api: Some(api), .. }) => {
            if api.try_send(stream).is_err() {
                tracing::debug!("the API takes no more connections of other nodes");
            }
        }
        (Purpose::Raft | Purpose::Proxy | Purpose::Api, _) => {
            tracing::debug!(?purpose, "a connection for what this node does not have");
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Few, for the sake of the descriptors of a test's process.
    const MOST: usize = 8;
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    /// A listener at work, and where it listens.
    async fn listening(ours: mpsc::Sender<NodeStream>, elsewhere: Elsewhere) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(accept_at_most(MOST, listener, Peering::default(), ours, elsewhere, stop));
        addr
    }

    async fn connect(addr: std::net::SocketAddr, says: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(says).await.unwrap();
        stream
    }

    async fn is_closed(stream: &mut TcpStream) -> bool {
        matches!(stream.read(&mut [0]).await, Ok(0) | Err(_))
    }

    #[tokio::test]
    async fn a_node_gets_in_while_many_connections_say_nothing() {
        let (sender, mut taken) = mpsc::channel(1);
        let addr = listening(sender, Elsewhere::default()).await;
        let mut silent = Vec::new();
        for _ in 0..MOST + 3 {
            silent.push(connect(addr, b"").await);
        }
        let node = connect(addr, PREFACE).await;
        let admitted = taken.recv().await.unwrap();
        assert_eq!(admitted.peer_addr(), Some(node.local_addr().unwrap()));
        assert!(is_closed(&mut silent[0]).await, "the one that waited longest is closed");
    }

    #[tokio::test]
    async fn connections_that_the_thread_of_raft_does_not_take_keep_nobody_else_out() {
        let (sender, mut taken) = mpsc::channel(1);
        let (raft, _not_taken) = mpsc::channel(1);
        let addr = listening(sender, Elsewhere { raft: Some(raft), ..Elsewhere::default() }).await;
        let mut for_raft = Vec::new();
        for _ in 0..MOST + 3 {
            for_raft.push(connect(addr, &[b"skein-raft-1\n", PREFACE].concat()).await);
        }
        let node = connect(addr, PREFACE).await;
        let admitted = taken.recv().await.unwrap();
        assert_eq!(admitted.peer_addr(), Some(node.local_addr().unwrap()));
    }
}
