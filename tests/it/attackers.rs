//! The tour of an attacker: what strangers and hostile peers try on both ports and on the mount. Refused, told once,
//! nothing changed, and the node goes on.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use skein::rpc::wire;
use skein::rpc::wire::replication_client::ReplicationClient;

use crate::harness::certs::{Certs, meet};
use crate::harness::{Node, PATIENCE, Settings, eventually, http, is_plain, needs_skein, sql};

/// A primary with one database of one row.
struct Target {
    node: Node,
    dir: tempfile::TempDir,
    before: Vec<String>,
}

impl Target {
    fn start(settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::start_in(dir, settings)
    }

    fn start_in(dir: tempfile::TempDir, settings: Settings) -> Self {
        let mut node = Node::new(dir.path(), settings);
        node.must_start();
        sql::run(
            &sql::create(&node.path("app.db"), "wal", 4096),
            "CREATE TABLE t(v); INSERT INTO t VALUES(1)",
        );
        let before = names(&dir.path().join("n1"));
        Self { node, dir, before }
    }

    /// Nothing has changed: the databases, the members, the files; and the node takes writes.
    fn is_unharmed(&mut self) {
        assert!(self.node.is_running(), "{}", self.node.log());
        let status = self.node.status().unwrap();
        let databases: Vec<_> =
            status["databases"].as_array().unwrap().iter().map(|db| db["name"].clone()).collect();
        assert_eq!(databases, ["app.db"]);
        assert_eq!(status["members"].as_array().unwrap().len(), 1);
        assert_eq!(names(&self.dir.path().join("n1")), self.before);
        let db = sql::open(&self.node.path("app.db"));
        assert_eq!(sql::number(&db, "SELECT count(*) FROM t"), 1);
        sql::run(&db, "INSERT INTO t VALUES(2); DELETE FROM t WHERE v = 2");
    }

    fn told(&self, what: &str) -> usize {
        self.node.log().lines().filter(|line| line.contains(what)).count()
    }
}

/// Every file below a node's directories, without those that come and go by themselves.
fn names(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap().flatten() {
            let path = entry.path();
            let name = path.display().to_string();
            if path.is_dir() {
                open.push(path);
            } else if !["-wal", "-shm", "-journal"].iter().any(|end| name.ends_with(end))
                && !name.contains("/raft/")
                && !name.contains("/blobs/")
                && !name.contains("/tmp/")
            {
                found.push(name);
            }
        }
    }
    found.sort();
    found
}

/// Sends bytes and gives what comes back until the other end closes, for at most `limit`; `None`: it does not close.
fn throw(address: SocketAddr, bytes: &[u8], limit: Duration) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(limit)).unwrap();
    // It may close before everything is written.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => None,
        _ => Some(answer),
    }
}

#[test]
fn strangers_on_the_port_between_nodes_are_refused_and_told_once() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (certs, other) = (Certs::init(&dir.path().join("certs")), Certs::init(&dir.path().join("other")));
    other.issue("evil");
    certs.issue_expired("old", Duration::from_secs(3600));
    certs.issue("friend");
    let extra = certs.issue("n1");
    let mut target = Target::start_in(dir, Settings { extra, ..Settings::primary("n1") });
    let address = target.node.listen;
    assert!(meet(address, Some((&certs, "friend"))).let_in);
    for _ in 0..20 {
        assert!(!meet(address, None).let_in, "without a certificate");
        assert!(!meet(address, Some((&other, "evil"))).let_in, "with one of another authority");
        assert!(!meet(address, Some((&certs, "old"))).let_in, "with an expired one");
        assert_eq!(
            throw(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", PATIENCE),
            Some(Vec::new()),
            "without TLS"
        );
        assert_eq!(throw(address, b"skein-raft-1\n", PATIENCE), Some(Vec::new()), "without TLS, to raft");
        assert!(throw(address, b"\x16\x03\x01\xff\xff garbage", PATIENCE).is_some(), "with broken TLS");
    }
    for why in ["shows no certificate", "not of this cluster's authority", "has expired", "speaks no TLS"] {
        assert_eq!(target.told(why), 1, "{why}: {}", target.node.log());
    }
    assert!(target.told("refused a connection") <= 6, "{}", target.node.log());
    target.is_unharmed();
}

#[test]
fn names_that_lead_elsewhere_are_refused_by_the_api() {
    if !needs_skein() {
        return;
    }
    let mut target = Target::start(Settings::primary("n1"));
    let long = "x".repeat(2000);
    let hostile = [
        "..%2F..%2F..%2Fetc%2Fpasswd",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "%2Fetc%2Fpasswd",
        "..",
        "a%2F..%2Fapp.db",
        "a%2F%2Fb",
        ".primary",
        ".hidden%2Fa",
        "app.db%00",
        "app.db%0a",
        "%1b%5b2J",
        "%ff%fe",
        "app.db-wal",
        "app.db-journal",
        "app.db%2Fx-shm",
        &long,
    ];
    let file = fs::read(target.dir.path().join("n1/mnt/app.db")).unwrap();
    for name in hostile {
        for (method, rest, body) in [
            ("GET", "", &b""[..]),
            ("GET", "/export", b""),
            ("GET", "/wait?txid=0000000000000001&timeout_ms=1", b""),
            ("GET", "/newest", b""),
            ("DELETE", "", b""),
            ("PUT", "", &file),
        ] {
            let path = format!("/v1/databases/{name}{rest}");
            let reply = http::request(target.node.http, method, &path, body).unwrap();
            assert!((400..500).contains(&reply.status), "{method} {path}: {} {}", reply.status, reply.text());
        }
        for (method, rest) in [("DELETE", ""), ("POST", "/promote"), ("POST", "/demote")] {
            let path = format!("/v1/members/{name}{rest}");
            let reply = http::request(target.node.http, method, &path, b"").unwrap();
            assert!((400..500).contains(&reply.status), "{method} {path}: {} {}", reply.status, reply.text());
        }
    }
    for path in ["/../../etc/passwd", "/v1/databases/../../../etc/passwd", "//etc/passwd", "/v1/%2e%2e/x"] {
        let reply = http::request(target.node.http, "GET", path, b"").unwrap();
        assert!(
            (400..500).contains(&reply.status) && !reply.text().contains("root:"),
            "{path}: {}",
            reply.text()
        );
    }
    // A database is no directory of others.
    let reply = http::request(target.node.http, "PUT", "/v1/databases/app.db%2Fb.db", &file).unwrap();
    assert!(reply.status >= 400, "{} {}", reply.status, reply.text());
    target.is_unharmed();
}

#[test]
fn names_that_lead_elsewhere_are_refused_on_the_mount() {
    if !needs_skein() {
        return;
    }
    let mut target = Target::start(Settings::primary("n1"));
    for name in
        ["a\nb.db", "a\x1b[2Jb.db", ".history", "-wal", "x-wal-wal", &"x".repeat(255), &"d/".repeat(600)]
    {
        let path = target.node.path(name);
        assert!(fs::File::create(&path).is_err(), "{name:?} was created");
    }
    assert!(std::os::unix::fs::symlink("/etc/passwd", target.node.path("link.db")).is_err());
    assert!(fs::hard_link("/etc/hostname", target.node.path("hard.db")).is_err());
    assert!(fs::write(target.node.path("text"), b"root:x:0:0").is_err());
    let _ = fs::remove_file(target.node.path("text"));
    target.is_unharmed();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn peer(address: SocketAddr) -> ReplicationClient<tonic::transport::Channel> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    ReplicationClient::new(endpoint.connect().await.unwrap()).max_encoding_message_size(64 << 20)
}

fn hello() -> wire::Hello {
    wire::Hello {
        cluster_id: "c".into(),
        protocol_version: 1,
        node_name: "evil".into(),
        node_id: 666,
        from_index: 1,
        ..wire::Hello::default()
    }
}

/// Begins to follow with this message; the reason why not.
async fn follow(address: SocketAddr, kind: wire::follow_message::Kind) -> tonic::Status {
    let first = wire::FollowMessage { kind: Some(kind) };
    let messages = futures::StreamExt::chain(tokio_stream::once(first), tokio_stream::pending());
    match peer(address).await.follow(messages).await {
        Err(status) => status,
        Ok(frames) => frames.into_inner().message().await.expect_err("a hostile peer follows"),
    }
}

#[test]
fn a_peer_with_hostile_names_or_messages_is_refused() {
    if !needs_skein() {
        return;
    }
    use wire::follow_message::Kind;
    let mut target = Target::start(Settings::primary("n1"));
    let address = target.node.listen;
    runtime().block_on(async {
        let refused = |status: &tonic::Status| {
            !matches!(status.code(), tonic::Code::Ok | tonic::Code::Internal | tonic::Code::Unknown)
        };
        for name in [
            "../../etc/passwd",
            "/etc/passwd",
            "a\0b",
            "a\nb",
            "",
            ".primary",
            "app.db-wal",
            &"x".repeat(5000),
        ] {
            let first = wire::SnapshotRequest { name: name.into(), ..wire::SnapshotRequest::default() };
            let answer = peer(address).await.snapshot(tokio_stream::once(first)).await;
            let status = answer.map(drop).expect_err("a hostile name is served");
            assert!(refused(&status), "{name:?}: {status}");
        }
        let long = "x".repeat(2000);
        for hello in [
            wire::Hello { node_name: "../evil".into(), ..hello() },
            wire::Hello { node_name: "e\nvil".into(), ..hello() },
            wire::Hello { cluster_id: "another".into(), ..hello() },
            wire::Hello { cluster_id: "../../etc".into(), ..hello() },
            wire::Hello { protocol_version: 99, ..hello() },
            wire::Hello { addr: "a:1\nfake log line".into(), ..hello() },
            wire::Hello { globs: vec![long.clone()], ..hello() },
            wire::Hello { globs: vec!["*".into(); 5000], ..hello() },
        ] {
            let status = follow(address, Kind::Hello(hello.clone())).await;
            assert!(refused(&status), "{hello:?}: {status}");
        }
        assert!(refused(&follow(address, Kind::Ack(wire::Ack { applied_index: u64::MAX })).await));
        // Larger than any message may be, by a little and by far.
        for bytes in [9 << 20, 40 << 20] {
            let huge = wire::Hello { addr: "x".repeat(bytes), ..hello() };
            let status = follow(address, Kind::Hello(huge)).await;
            assert!(refused(&status), "{status}");
        }
        let blob = wire::FetchBlobRequest { digest: u64::MAX, size_bytes: u64::MAX };
        let answer = peer(address).await.fetch_blob(blob).await;
        let ended = match answer {
            Err(status) => status,
            Ok(chunks) => chunks.into_inner().message().await.expect_err("a blob that is not there"),
        };
        assert!(refused(&ended), "{ended}");
    });
    target.is_unharmed();
}

#[test]
fn oversized_and_malformed_requests_are_refused_by_the_api() {
    if !needs_skein() {
        return;
    }
    let mut target = Target::start(Settings::primary("n1"));
    let address = target.node.http;
    let head = |request: &str| {
        throw(address, format!("{request}\r\n\r\n").as_bytes(), PATIENCE).expect("it is closed")
    };
    let long = "x".repeat(300_000);
    let many: String = (0..500).map(|n| format!("h{n}: 1\r\n")).collect();
    for request in [
        format!("GET /{long} HTTP/1.1\r\nHost: x"),
        format!("GET /livez HTTP/1.1\r\nHost: x\r\nLong: {long}"),
        format!("GET /livez HTTP/1.1\r\nHost: x\r\n{many}End: 1"),
        "GET /livez HTTP/9.9\r\nHost: x".to_owned(),
        "POST /v1/handoff HTTP/1.1\r\nHost: x\r\nContent-Length: -1".to_owned(),
        "POST /v1/handoff HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999".to_owned(),
        "POST /v1/handoff HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2".to_owned(),
        "\0\0\0\0".to_owned(),
    ] {
        let answer = String::from_utf8_lossy(&head(&request)).into_owned();
        let shown: String = request.chars().take(60).collect();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{shown:?}: {answer}");
    }
    let document = format!("{{\"to\":\"{}\"}}", "x".repeat(200_000));
    for path in ["/v1/handoff", "/v1/members"] {
        let json = "Content-Type: application/json\r\n";
        let reply = http::request_with(address, "POST", path, json, document.as_bytes()).unwrap();
        assert!(matches!(reply.status, 400 | 413), "{path}: {} {}", reply.status, reply.text());
        let nested = "[".repeat(60_000);
        let reply = http::request_with(address, "POST", path, json, nested.as_bytes()).unwrap();
        assert!((400..500).contains(&reply.status), "{path}: {}", reply.status);
    }
    // What another site's page makes a browser of this machine ask.
    for headers in ["Origin: http://evil.example\r\n", "Origin: null\r\n"] {
        let reply = http::request_with(address, "POST", "/v1/handoff", headers, b"").unwrap();
        assert_eq!(reply.status, 403, "{headers}");
    }
    let rebound = throw(
        address,
        b"GET /v1/status HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        PATIENCE,
    );
    assert!(rebound.unwrap().starts_with(b"HTTP/1.1 403"));
    assert_eq!(target.told("refused a request of the API"), 1, "{}", target.node.log());
    target.is_unharmed();
}

#[test]
fn whoever_is_slow_is_cut_off_and_holds_nobody_up() {
    if !needs_skein() || is_plain() {
        return;
    }
    let mut target = Target::start(Settings::primary("n1"));
    let (api, nodes) = (target.node.http, target.node.listen);
    let openings: [(SocketAddr, &[u8]); 7] = [
        (api, b""),
        (api, b"GET /livez HTTP/1.1\r\nHost: x\r\nX-a: "),
        (api, b"POST /v1/handoff HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{"),
        (nodes, b""),
        (nodes, b"PRI * HT"),
        (nodes, b"PRI * HTTP/2.0\r\n\r\nSM\r"),
        (nodes, b"skein-raft-1\nPRI * HTTP/2.0"),
    ];
    let start = Instant::now();
    let slow: Vec<_> = (0..280)
        .map(|n| {
            let (address, opening) = openings[n % openings.len()];
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(opening).unwrap();
            stream
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(http::request(api, "GET", "/livez", b"").unwrap().status, 200);
        target.node.status().unwrap();
    }
    // The bodies are still waited for.
    assert!(start.elapsed() < Duration::from_secs(25), "others wait for slow ones: {:?}", start.elapsed());
    // Each is cut off: after 10 s in its head, after 30 s in its body.
    for (n, mut stream) in slow.into_iter().enumerate() {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        let cut = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
        assert!(
            ended.is_ok() || ended.is_err_and(cut),
            "slow client {n} is still connected after {:?}",
            start.elapsed()
        );
    }
    assert!(target.told("did not say in time") <= 1, "{}", target.node.log());
    eventually("the node serves on", || target.node.status().ok());
    target.is_unharmed();
}
