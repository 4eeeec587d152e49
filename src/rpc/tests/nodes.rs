//! A serving node and followers in one process, and a connection that breaks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::fake_store::FakeStore;
use crate::ltx::BlobRef;
use crate::rpc::{Compression, Elsewhere, GrpcConnector, Services, routes, serve};
use crate::security::Peering;
use crate::store::{Change, CommittedLog, LogReadError, PrimaryInfo};
use crate::stream::{
    FollowOptions, Follower, PROTOCOL_VERSION, PeerIdentity, PrimaryView, ReplicaTarget, Serving,
};
use crate::types::{LogIndex, NodeId, Role};

pub struct FakeLog {
    entries: Mutex<(LogIndex, Vec<Bytes>)>,
    applied: watch::Sender<LogIndex>,
}

impl CommittedLog for FakeLog {
    fn first_index(&self) -> LogIndex {
        self.entries.lock().unwrap().0
    }

    fn applied(&self) -> watch::Receiver<LogIndex> {
        self.applied.subscribe()
    }

    fn read(&self, from: LogIndex, bytes_max: usize) -> Result<Vec<(LogIndex, Bytes)>, LogReadError> {
        let entries = self.entries.lock().unwrap();
        let (first, mut bytes, mut read) = (entries.0, 0, Vec::new());
        let skip = from.get().checked_sub(first.get()).ok_or(LogReadError::Purged { from, first })?;
        for (index, entry) in (from.get()..).zip(entries.1.iter().skip(skip as usize)) {
            if bytes > bytes_max {
                break;
            }
            bytes += entry.len();
            read.push((LogIndex::new(index), entry.clone()));
        }
        Ok(read)
    }
}

pub struct Node {
    pub store: Arc<FakeStore>,
    pub log: Arc<FakeLog>,
    pub serving: Arc<Serving>,
    pub addr: String,
    _view: watch::Sender<PrimaryView>,
    _ready: watch::Sender<bool>,
    _stop: DropGuard,
}

pub fn identity(cluster: &str, node: u64, role: Role) -> PeerIdentity {
    let (cluster, name) = (cluster.parse().unwrap(), format!("n{node}").parse().unwrap());
    let (node, http) = (NodeId::new(node), String::new());
    let proxy = String::new();
    PeerIdentity { cluster, node, name, protocol_version: PROTOCOL_VERSION, role, http, proxy }
}

impl Node {
    pub async fn start() -> Self {
        Self::of(identity("c1", 1, Role::Voter)).await
    }

    pub async fn of(identity: PeerIdentity) -> Self {
        let store = Arc::new(FakeStore::default());
        let entries = Mutex::new((LogIndex::new(1), Vec::new()));
        let log = Arc::new(FakeLog { entries, applied: watch::Sender::new(LogIndex::ZERO) });
        let primary = PrimaryInfo { name: "n1".into(), addr: String::new(), http: "http://n1".into() };
        let view =
            watch::Sender::new(PrimaryView { primary: Some(primary), term: 1, path: vec![], voters: vec![] });
        let (ready, stop) = (watch::Sender::new(true), CancellationToken::new());
        let serving = Serving::new(
            identity,
            log.clone(),
            store.clone(),
            view.subscribe(),
            ready.subscribe(),
            stop.clone(),
        );
        let addr = listen(serving.clone(), stop.clone()).await;
        Self { store, log, serving, addr, _view: view, _ready: ready, _stop: stop.drop_guard() }
    }

    pub fn log_change(&self, change: &Change) -> LogIndex {
        let mut entries = self.log.entries.lock().unwrap();
        entries.1.push(change.encode());
        let index = LogIndex::new(entries.0.get() + entries.1.len() as u64 - 1);
        self.store.apply(index, change).unwrap();
        ReplicaTarget::applied(&*self.store, index);
        drop(entries);
        self.log.applied.send_replace(index);
        index
    }

    pub fn commit(&self, db: &str, pages: &[(u32, u8)]) -> LogIndex {
        self.log_change(&self.store.change(&[(db, pages)], None))
    }

    pub fn commit_blob(&self, db: &str, blob: BlobRef) -> LogIndex {
        self.log_change(&self.store.change(&[(db, &[])], Some(blob)))
    }

    /// Logs bytes that need not be a change.
    pub fn push_raw(&self, entry: Bytes) {
        let mut entries = self.log.entries.lock().unwrap();
        entries.1.push(entry);
        let index = LogIndex::new(entries.0.get() + entries.1.len() as u64 - 1);
        drop(entries);
        self.log.applied.send_replace(index);
    }

    /// Forgets all but the last `keep` entries.
    pub fn purge(&self, keep: usize) {
        let mut entries = self.log.entries.lock().unwrap();
        let gone = entries.1.len() - keep;
        entries.1.drain(..gone);
        entries.0 = LogIndex::new(entries.0.get() + gone as u64);
    }
}

pub async fn listen(serving: Arc<Serving>, stop: CancellationToken) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    tokio::spawn(serve(
        listener,
        routes(serving, Services::default()),
        Elsewhere::default(),
        Peering::default(),
        stop,
    ));
    addr
}

pub struct Replica {
    pub store: Arc<FakeStore>,
    pub follower: Follower,
    stop: CancellationToken,
}

impl Replica {
    pub fn follow(node: u64, upstreams: &[&str], store: Arc<FakeStore>) -> Self {
        Self::with(node, upstreams, store, Compression::Auto, |_| {})
    }

    pub fn with(
        node: u64,
        upstreams: &[&str],
        store: Arc<FakeStore>,
        compression: Compression,
        adjust: impl FnOnce(&mut FollowOptions),
    ) -> Self {
        let upstreams = upstreams.iter().map(ToString::to_string).collect();
        let mut options =
            FollowOptions::new(upstreams, NodeId::new(node), format!("n{node}").parse().unwrap());
        adjust(&mut options);
        let (stop, connector) = (CancellationToken::new(), Arc::new(GrpcConnector::new(compression)));
        let follower = Follower::start(options, store.clone(), connector, stop.clone()).unwrap();
        Self { store, follower, stop }
    }

    pub async fn reach(&self, index: LogIndex) {
        let mut status = self.follower.status();
        let reached = status.wait_for(|status| status.applied >= index);
        let reached = tokio::time::timeout(Duration::from_secs(30), reached).await.map(|r| r.is_ok());
        assert_eq!(reached, Ok(true), "stands at {:?}", self.follower.status().borrow().clone());
    }

    /// Serves what it follows.
    pub async fn serve(&self, identity: PeerIdentity) -> (Arc<Serving>, String) {
        let (f, stop) = (&self.follower, self.stop.clone());
        let serving =
            Serving::new(identity, f.recent(), self.store.clone(), f.view(), f.ready(), stop.clone());
        let addr = listen(serving.clone(), stop).await;
        (serving, addr)
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop.cancel();
        self.store.lock().blocked.clear();
        self.store.unblocked.notify_all();
        self.follower.stop();
    }
}

/// Waits until `holds`, looking every few milliseconds, for at most 20 seconds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// A relay to `to` that counts what comes back, and cuts each connection after `budget(n)` bytes of it.
pub async fn relay(to: String, budget: impl Fn(u64) -> u64 + Send + 'static) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let bytes = Arc::new(AtomicU64::new(0));
    let counted = bytes.clone();
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((client, _)) = listener.accept().await else { return };
            let Ok(server) = TcpStream::connect(&to).await else { return };
            tokio::spawn(carry(client, server, budget(number), counted.clone()));
        }
    });
    (addr, bytes)
}

async fn carry(client: TcpStream, server: TcpStream, mut left: u64, counted: Arc<AtomicU64>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(|_| ()) };
    let down = async {
        let mut buffer = vec![0; 16 << 10];
        while left > 0 {
            let read = from_server.read(&mut buffer).await? as u64;
            let pass = read.min(left);
            if pass == 0 {
                break;
            }
            to_client.write_all(&buffer[..pass as usize]).await?;
            counted.fetch_add(pass, Ordering::Relaxed);
            left -= pass;
        }
        Ok::<(), std::io::Error>(())
    };
    tokio::select! { _ = up => {}, _ = down => {} }
}
