//! The API in front of a node that is not there: the real router and the real client over loopback.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Api, CheckDocument, Client, ClientError, Details, ExportSink, Import, NodeDocument, Overview, Protection,
    StatusDocument, protect, router, serve,
};
use crate::db::{DbError, Done, SnapshotHeader};
use crate::store::{
    ClusterAnswer, ClusterError, DbStatus, Member, MemberChange, NodeFacts, PrimaryInfo, Standing,
    StoreError, StoreEvent,
};
use crate::telemetry::Exposition;
use crate::types::{Checksum, DbName, JournalMode, LogIndex, NodeName, PageCount, PageSize, Pos, Role, Txid};

const PAGE: u32 = 4096;

/// TXID and bytes by name.
type Databases = BTreeMap<DbName, (u64, Vec<u8>)>;

/// Databases as bytes, the TXID counting imports.
struct Fake {
    primary: bool,
    databases: Arc<Mutex<Databases>>,
    moved: Arc<watch::Sender<()>>,
    events: broadcast::Sender<StoreEvent>,
}

impl Fake {
    fn new(primary: bool) -> Arc<Self> {
        Arc::new(Self {
            primary,
            databases: Arc::default(),
            moved: Arc::new(watch::Sender::new(())),
            events: broadcast::Sender::new(4),
        })
    }

    /// More events than the channel holds, for a reader that has not taken the first; each says `commit` pages.
    fn overflow(&self, commit: u32) {
        for index in 1..=6 {
            let event = StoreEvent::Tx {
                db: DbName::new("a.db").unwrap(),
                pos: Pos::new(Txid::new(index).unwrap(), Checksum::new(1)),
                commit,
                page_size: PageSize::DEFAULT,
                timestamp_ms: 0,
                index: LogIndex::new(index),
            };
            self.events.send(event).unwrap();
        }
        self.events.send(StoreEvent::Primary(None)).unwrap();
    }
}

struct FakeImport {
    databases: Arc<Mutex<Databases>>,
    moved: Arc<watch::Sender<()>>,
    name: DbName,
    bytes: Vec<u8>,
}

impl Import for FakeImport {
    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        assert_eq!(offset, self.bytes.len() as u64);
        self.bytes.extend_from_slice(data);
        match self.bytes.starts_with(b"SQLite") {
            true => Ok(()),
            false => Err(StoreError::Invalid(format!("database {}: not a SQLite file", self.name))),
        }
    }

    fn finish(self: Box<Self>, done: Done) {
        let mut databases = self.databases.lock().unwrap();
        let txid = databases.get(&self.name).map_or(0, |(txid, _)| *txid) + 1;
        databases.insert(self.name, (txid, self.bytes));
        self.moved.send_replace(());
        done(Ok(()));
    }
}

impl Api for Fake {
    fn overview(&self) -> Overview {
        let (name, addr, http) = ("n1".to_owned(), "h:1".to_owned(), "http://h:2".to_owned());
        Overview {
            name: if self.primary { "n1" } else { "n2" }.parse().unwrap(),
            role: Role::Voter,
            primary: Some(PrimaryInfo { name, addr, http }),
            is_primary: self.primary,
            term: 4,
            index: LogIndex::new(9),
            durable_index: LogIndex::new(8),
            no_quorum: (!self.primary).then(|| "1 of 3 voters".into()),
            no_quorum_since: None,
            copying: None,
            ready: if self.primary { Ok(()) } else { Err("still copying".into()) },
        }
    }

    fn details(&self) -> Details {
        Details::default()
    }

    fn databases(&self) -> Vec<DbStatus> {
        let databases = self.databases.lock().unwrap();
        let status = |(name, (txid, bytes)): (&DbName, &(u64, Vec<u8>))| DbStatus {
            name: name.clone(),
            pos: Pos::new(Txid::new(*txid).unwrap(), Checksum::new(1)),
            mode: Some(JournalMode::Wal),
            size_bytes: bytes.len() as u64,
            attached: false,
            failure: None,
            held_by: Vec::new(),
        };
        databases.iter().map(status).collect()
    }

    fn database(&self, name: &DbName) -> Option<DbStatus> {
        self.databases().into_iter().find(|db| db.name == *name)
    }

    fn members(&self) -> Vec<Member> {
        vec![Member {
            name: "n1".parse().unwrap(),
            role: Role::Voter,
            addr: "h:1".into(),
            healthy: true,
            lag: None,
            lag_entries: 0,
            standing: Standing::Votes,
        }]
    }

    fn member_facts<'a>(&'a self, members: &'a [Member]) -> BoxFuture<'a, HashMap<NodeName, NodeFacts>> {
        let facts = NodeFacts { version: "1.2.3".into(), passthrough: true, ..NodeFacts::default() };
        let told = members.iter().map(|member| (member.name.clone(), facts.clone())).collect();
        Box::pin(async { told })
    }

    fn cluster_members(&self) -> ClusterAnswer<'_, Vec<Member>> {
        let answer = if self.primary { Ok(self.members()) } else { Err(ClusterError::NotPrimary(None)) };
        Box::pin(async { answer })
    }

    fn add_member(&self, addr: String) -> ClusterAnswer<'_, ()> {
        Box::pin(async move { Err(ClusterError::Unavailable(format!("node at {addr}: nobody"))) })
    }

    fn change_member(&self, change: MemberChange) -> ClusterAnswer<'_, ()> {
        Box::pin(async move {
            match change {
                MemberChange::Demote(name) if name.as_str() == "n2" => Ok(()),
                _ => Err(ClusterError::Refused("no voter or standby has that name".into())),
            }
        })
    }

    fn hand_off(&self, to: Option<NodeName>) -> ClusterAnswer<'_, NodeName> {
        Box::pin(async move { to.ok_or(ClusterError::Unavailable("nobody takes over".into())) })
    }

    fn nodes(&self) -> ClusterAnswer<'_, Vec<(NodeName, Role, Option<String>)>> {
        Box::pin(async { Ok(vec![("n1".parse().unwrap(), Role::Voter, None)]) })
    }

    fn check(&self, name: &DbName) -> Result<(Pos, Checksum), StoreError> {
        let db = self.database(name).ok_or_else(|| StoreError::NotFound(name.to_string()))?;
        Ok((db.pos, Checksum::new(if self.primary { 1 } else { 2 })))
    }

    fn repair(&self, _name: &DbName) -> Result<(), ClusterError> {
        if self.primary { Err(ClusterError::Refused("hand off first".into())) } else { Ok(()) }
    }

    fn newest(&self, db: DbName) -> ClusterAnswer<'_, Pos> {
        let known = self.database(&db).map_or(Pos::ZERO, |db| db.pos);
        Box::pin(async move { Ok(known) })
    }

    fn discarded(&self) -> u64 {
        2
    }

    fn events(&self) -> broadcast::Receiver<StoreEvent> {
        self.events.subscribe()
    }

    fn wait_for(&self, name: DbName, txid: Txid, deadline: Instant) -> BoxFuture<'static, bool> {
        let (databases, mut moved) = (self.databases.clone(), self.moved.subscribe());
        Box::pin(async move {
            let there = move || databases.lock().unwrap().get(&name).is_some_and(|(at, _)| *at >= txid.get());
            tokio::time::timeout_at(deadline.into(), moved.wait_for(|()| there())).await.is_ok()
        })
    }

    fn export(&self, name: &DbName, out: &mut dyn ExportSink) -> Result<(), StoreError> {
        let found = self.databases.lock().unwrap().get(name).cloned();
        let (txid, bytes) = found.ok_or_else(|| StoreError::NotFound(name.to_string()))?;
        out.begin(SnapshotHeader {
            pos: Pos::new(Txid::new(txid).unwrap(), Checksum::new(1)),
            index: LogIndex::ZERO,
            page_size: PageSize::DEFAULT,
            commit: PageCount::new(u32::try_from(bytes.len()).unwrap() / PAGE),
        });
        for page in bytes.chunks(PAGE as usize) {
            if name.as_str() == "damaged.db" && page.ends_with(b"last") {
                return Err(StoreError::Fatal("the disk broke".into()));
            }
            if out.chunk(Bytes::copy_from_slice(page)) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    fn import(&self, name: &DbName) -> Result<Box<dyn Import>, StoreError> {
        let (databases, moved) = (self.databases.clone(), self.moved.clone());
        Ok(Box::new(FakeImport { databases, moved, name: name.clone(), bytes: Vec::new() }))
    }

    fn drop_database(&self, name: &DbName, done: Done) {
        let held = name.as_str() == "held.db";
        if !held {
            self.databases.lock().unwrap().remove(name);
        }
        let refusal = || DbError::Conflict { db: name.clone(), why: "applications have it open".into() };
        done(if held { Err(refusal()) } else { Ok(()) });
    }
}

struct Served {
    client: Client,
    addr: std::net::SocketAddr,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn served(api: Arc<Fake>) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let router = router(api, Exposition::install(), shutdown.clone(), axum::Router::new());
    let task = tokio::spawn(serve(listener, protect(router, Protection::default()), None, shutdown.clone()));
    Served { client: Client::new(&format!("http://{addr}")).unwrap(), addr, shutdown, task }
}

fn file(pages: usize) -> Vec<u8> {
    let mut bytes = vec![7; pages * PAGE as usize];
    bytes[..6].copy_from_slice(b"SQLite");
    let end = bytes.len() - 4;
    bytes[end..].copy_from_slice(b"last");
    bytes
}

async fn put(client: &Client, path: &str, bytes: Vec<u8>) -> Result<(), ClientError> {
    let (parts, body) = mpsc::channel(1);
    tokio::spawn(async move {
        for part in bytes.chunks(10_000) {
            if parts.send(Ok(Bytes::copy_from_slice(part))).await.is_err() {
                break;
            }
        }
    });
    client.upload(path, body).await
}

/// Sends one request as bytes and reads the answer to its end.
async fn raw(addr: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let head = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn refused(result: Result<impl std::fmt::Debug, ClientError>) -> (u16, String) {
    match result {
        Err(ClientError::Refused { status, detail, .. }) => (status, detail),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_database_goes_in_and_comes_out_as_it_was() {
    let Served { client, addr, .. } = served(Fake::new(true)).await;
    let (path, bytes) = ("/v1/databases/tenants%2F7%2Fapp.db", file(300));
    put(&client, path, bytes.clone()).await.unwrap();
    let (mut copy, mut size) = (Vec::new(), None);
    let sink = |part: &[u8]| {
        copy.extend_from_slice(part);
        Ok::<_, ()>(())
    };
    client.download(&format!("{path}/export"), |bytes| size = bytes, sink).await.unwrap().unwrap();
    assert_eq!(size, Some(bytes.len() as u64));
    assert!(copy == bytes);
    let one: super::DatabaseDocument = client.get(path).await.unwrap();
    assert_eq!((one.name.as_str(), one.txid.as_str()), ("tenants/7/app.db", "0000000000000001"));
    let head = raw(addr, &format!("GET {path}/export")).await;
    assert!(head.contains("skein-pos: 0000000000000001/8000000000000001"), "{}", &head[..300]);
    client.delete(path).await.unwrap();
    assert_eq!(refused(client.delete(path).await).0, 404);
}

#[tokio::test]
async fn refusals_are_problem_documents_that_name_the_subject() {
    let Served { client, addr, .. } = served(Fake::new(true)).await;
    for (request, status) in [
        ("GET /v1/nothing", 404),
        ("POST /v1/status", 405),
        ("GET /v1/databases/..%2Fetc", 400),
        ("GET /v1/databases/%FF", 400),
        ("GET /v1/databases/a.db", 404),
        ("GET /v1/databases/a.db/export", 404),
        ("GET /v1/databases/a.db/wait?txid=5", 400),
        ("GET /v1/databases/a.db/wait?tixd=5", 400),
        ("GET /v1/databases/a.db/wait?timeout_ms=99999999999", 400),
        ("GET /v1/databases/a.db/wait?timeout_ms=1", 504),
        ("PUT /v1/databases/a.db", 400),
    ] {
        let answer = raw(addr, request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        assert!(answer.contains("application/problem+json") && answer.contains("\"detail\":"), "{answer}");
    }
    let large = [b"garbage".repeat(300_000)].concat();
    let (status, detail) = refused(put(&client, "/v1/databases/a.db", large).await);
    assert_eq!(status, 400);
    assert!(detail.contains("a.db"), "{detail}");
    put(&client, "/v1/databases/held.db", file(1)).await.unwrap();
    assert_eq!(refused(client.delete("/v1/databases/held.db").await).0, 409);
}

#[tokio::test]
async fn a_node_that_is_not_primary_says_who_is() {
    let Served { client, addr, .. } = served(Fake::new(false)).await;
    let (status, detail) = refused(put(&client, "/v1/databases/a.db", file(500)).await);
    assert_eq!(status, 421);
    assert!(detail.contains("http://h:2"), "{detail}");
    assert!(raw(addr, "DELETE /v1/databases/a.db").await.contains("\"primary\":\"http://h:2\""));
    assert!(raw(addr, "GET /readyz").await.contains("still copying"));
    assert!(raw(addr, "GET /livez").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_node_that_is_not_primary_refuses_an_upload_before_its_body_has_come() {
    let Served { addr, .. } = served(Fake::new(false)).await;
    for expect in ["Expect: 100-continue\r\n", ""] {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let head =
            format!("PUT /v1/databases/a.db HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n{expect}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // Not a byte of the body is sent until the answer is here, and none is asked for.
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains("\"primary\":\"http://h:2\"") {
            let mut part = [0; 1024];
            let length = stream.read(&mut part).await.unwrap();
            assert!(length > 0, "{expect}: {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&part[..length]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 421 "), "{expect}: {}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn an_import_that_breaks_off_changes_nothing() {
    let fake = Fake::new(true);
    let Served { addr, .. } = served(fake.clone()).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let head =
        "PUT /v1/databases/a.db HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\nSQLite and then nothing";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(fake.databases().is_empty());
}

#[tokio::test]
async fn an_export_that_fails_half_way_is_no_short_file() {
    let Served { client, .. } = served(Fake::new(true)).await;
    put(&client, "/v1/databases/damaged.db", file(200)).await.unwrap();
    let result = client.download("/v1/databases/damaged.db/export", |_| {}, |_| Ok::<_, ()>(())).await;
    assert!(result.is_err());
}

#[tokio::test]
async fn waiting_ends_when_the_transaction_arrives() {
    let Served { client, .. } = served(Fake::new(true)).await;
    let waiter = {
        let client = client.clone();
        let path = "/v1/databases/a.db/wait?txid=0000000000000002&timeout_ms=20000";
        tokio::spawn(async move { client.get::<super::DatabaseDocument>(path).await })
    };
    for _ in 0..2 {
        put(&client, "/v1/databases/a.db", file(1)).await.unwrap();
    }
    assert_eq!(waiter.await.unwrap().unwrap().txid, "0000000000000002");
}

#[tokio::test]
async fn status_and_metrics_show_the_same_node() {
    let Served { client, addr, .. } = served(Fake::new(true)).await;
    put(&client, "/v1/databases/a.db", file(2)).await.unwrap();
    let status: StatusDocument = client.status().await.unwrap();
    assert_eq!((status.node.as_str(), status.role.as_str(), status.term), ("n1", "voter", 4));
    assert_eq!(status.primary.unwrap().http, "http://h:2");
    assert_eq!((status.databases[0].size_bytes, status.members[0].lag_ms), (8192, None));
    let metrics = raw(addr, "GET /metrics").await;
    for line in ["skein_term 4", "skein_applied_index 9", "skein_discarded_change_sets 2"] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    assert!(metrics.contains("route=\"/v1/databases/{name}\""), "{metrics}");
}

#[tokio::test]
async fn a_check_tells_what_the_bytes_are_and_the_primary_repairs_nothing() {
    for (primary, sound) in [(true, true), (false, false)] {
        let fake = Fake::new(primary);
        fake.databases.lock().unwrap().insert(DbName::new("a.db").unwrap(), (7, file(1)));
        let Served { client, .. } = served(fake).await;
        let check: CheckDocument = client.get("/v1/databases/a.db/check").await.unwrap();
        assert_eq!((check.txid.as_str(), check.is_sound()), ("0000000000000007", sound));
        let repaired = client.post("/v1/databases/a.db/repair", &()).await;
        assert_eq!(repaired.is_ok(), !primary);
        let nodes: Vec<NodeDocument> = client.get("/v1/nodes").await.unwrap();
        assert_eq!((nodes[0].name.as_str(), &nodes[0].http), ("n1", &None));
    }
}

#[tokio::test]
async fn events_begin_with_the_state_and_a_slow_reader_learns_what_it_lost() {
    let fake = Fake::new(true);
    let shutdown = CancellationToken::new();
    let mut body = super::events::events(fake.clone(), shutdown.clone()).into_body();
    fake.overflow(1);
    let mut text = String::new();
    while !text.contains("event: primary") {
        let frame = body.frame().await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(names, ["init", "lost", "init", "tx", "tx", "tx", "primary"]);
    assert!(
        text.contains("{\"events\":3}") && text.contains("\"timestamp\":\"1970-01-01T00:00:00.000Z\""),
        "{text}"
    );
    shutdown.cancel();
    assert!(body.frame().await.is_none(), "the stream ends with the node");
}

#[tokio::test]
async fn litefs_events_are_lines_and_a_slow_reader_learns_what_it_lost() {
    let fake = Fake::new(true);
    let shutdown = CancellationToken::new();
    let mut body = super::litefs_events::events(fake.clone(), shutdown.clone()).into_body();
    fake.overflow(2);
    let mut text = String::new();
    while !text.contains("primaryChange") {
        let frame = body.frame().await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    let init = r#"{"type":"init","data":{"isPrimary":true,"hostname":"h"}}"#;
    let tx = |n: u32| {
        format!(
            r#"{{"type":"tx","db":"a.db","data":{{"txID":"000000000000000{n}","postApplyChecksum":"8000000000000001","pageSize":4096,"commit":2,"timestamp":"1970-01-01T00:00:00.000Z"}}}}"#
        )
    };
    let lost = r#"{"type":"lost","data":{"events":3}}"#;
    let change = r#"{"type":"primaryChange","data":{"isPrimary":false}}"#;
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines, [init, lost, init, &tx(4), &tx(5), &tx(6), change]);
    shutdown.cancel();
    assert!(body.frame().await.is_none(), "the stream ends with the node");
}

#[tokio::test]
async fn the_server_ends_with_the_node_even_while_a_client_waits() {
    let served = served(Fake::new(true)).await;
    let client = served.client.clone();
    let waiter = tokio::spawn(async move {
        client.get::<super::DatabaseDocument>("/v1/databases/a.db/wait?timeout_ms=60000").await
    });
    // A request that is answered later than the waiting one was sent, on another connection.
    served.client.status().await.unwrap();
    served.shutdown.cancel();
    served.task.await.unwrap().unwrap();
    assert!(waiter.await.unwrap().is_err());
}
