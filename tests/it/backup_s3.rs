//! Backup to S3 (SeaweedFS), through a proxy that answers as a bad day does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::backup::{backup_of, tool, wait_uploaded};
use crate::harness::{Node, Settings, eventually, http, needs_skein, skein, sql};

const BUCKET: &str = "backup";
const KEYS: [(&str, &str); 3] =
    [("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_REGION", "us-east-1")];

/// An S3 server of this test.
struct Seaweed {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

/// Ports that are free, and free 10000 above, where SeaweedFS takes gRPC; none of those that the kernel gives to outgoing
/// connections meanwhile (`ip_local_port_range`, from 32768 on).
fn free_ports() -> impl Iterator<Item = u16> {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    /// Servers of this process do not begin at the same port.
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    let begin = std::process::id() as usize + 1000 * STARTED.fetch_add(1, Ordering::Relaxed);
    (0..12_000)
        .step_by(7)
        .map(move |more| u16::try_from(10_000 + (begin + more) % 12_000).expect("below 22000"))
        .filter(move |port| is_free(*port) && is_free(port + 10_000))
}

impl Seaweed {
    fn start() -> Option<Self> {
        let weed = tool("weed")?;
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("s3.json");
        std::fs::write(
            &config,
            r#"{"identities":[{"name":"t","credentials":[{"accessKey":"key","secretKey":"secret"}],"actions":["Admin"]}]}"#,
        )
        .unwrap();
        let mut ports = free_ports();
        let mut port_of = || ports.next().expect("a free port");
        let port = port_of();
        let mut command = Command::new(weed);
        command.arg("mini").arg(format!("-dir={}", dir.path().display()));
        command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false"]);
        command.args(["-s3.port.iceberg=0", "-master.telemetry=false"]);
        command.arg(format!("-s3.port={port}")).arg(format!("-bucket={BUCKET}"));
        command.arg(format!("-s3.config={}", config.display()));
        for server in ["master", "volume", "filer", "admin"] {
            command.arg(format!("-{server}.port={}", port_of()));
        }
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        command.current_dir(dir.path()).stdout(Stdio::null()).stderr(log);
        let server = Self { child: command.spawn().unwrap(), port, _dir: dir };
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        eventually("the bucket is there", || {
            let answer = http::request(address, "GET", &format!("/{BUCKET}"), &[]).ok()?;
            // Without a signature it is refused, once it exists.
            (answer.status == 403).then_some(())
        });
        Some(server)
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        // It has ended by itself otherwise.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What happens to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// It is answered so, and not done.
    Refused(u16, &'static str),
    /// It is done, and answered with an error.
    AnswerLost,
    /// It is done, and the connection ends without an answer.
    Cut,
}

/// Whether a fault concerns a request: its head, in lower case.
type Concerns = fn(&str) -> bool;

/// A proxy before an S3 server; signatures stay valid, because it passes everything on as it is.
struct FaultProxy {
    port: u16,
    fault: Arc<Mutex<Option<(Concerns, Fault, usize)>>>,
    done: Arc<AtomicUsize>,
}

impl FaultProxy {
    fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let fault: Arc<Mutex<Option<(Concerns, Fault, usize)>>> = Arc::default();
        let done: Arc<AtomicUsize> = Arc::default();
        let (faults, count) = (fault.clone(), done.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (faults, count) = (faults.clone(), count.clone());
                std::thread::spawn(move || {
                    // A client that goes away is its own affair.
                    let _ = client.and_then(|client| serve(client, upstream, &faults, &count));
                });
            }
        });
        Self { port, fault, done }
    }

    /// The next `times` requests that it concerns meet this fault.
    fn fail(&self, concerns: Concerns, fault: Fault, times: usize) {
        self.done.store(0, Ordering::SeqCst);
        *self.fault.lock().unwrap() = Some((concerns, fault, times));
    }

    /// How many have.
    fn failed(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }
}

fn serve(
    client: TcpStream,
    upstream: u16,
    faults: &Mutex<Option<(Concerns, Fault, usize)>>,
    count: &AtomicUsize,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut client = client;
    let (head, body) = message(&mut reader)?;
    let lower = head.to_ascii_lowercase();
    let fault = {
        let mut faults = faults.lock().unwrap();
        match faults.as_mut() {
            Some((concerns, fault, left)) if *left > 0 && concerns(&lower) => {
                *left -= 1;
                count.fetch_add(1, Ordering::SeqCst);
                Some(*fault)
            }
            _ => None,
        }
    };
    let refuse = |client: &mut TcpStream, status: u16, code: &str| {
        let body = format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>");
        let head = format!(
            "HTTP/1.1 {status} {code}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        client.write_all((head + &body).as_bytes())
    };
    if let Some(Fault::Refused(status, code)) = fault {
        return refuse(&mut client, status, code);
    }
    let mut server = TcpStream::connect(("127.0.0.1", upstream))?;
    server.write_all(with_close(&head).as_bytes())?;
    server.write_all(&body)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    match fault {
        Some(Fault::AnswerLost) => refuse(&mut client, 500, "InternalError"),
        Some(Fault::Cut) => Ok(()),
        _ => client.write_all(&answer),
    }
}

/// The head of a request with its empty line, and its body.
fn message(reader: &mut impl BufRead) -> std::io::Result<(String, Vec<u8>)> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        head.push_str(&line);
        if line == "\r\n" {
            break;
        }
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    Ok((head, body))
}

/// One request on a connection.
fn with_close(head: &str) -> String {
    let kept: Vec<_> = head
        .lines()
        .filter(|line| !line.is_empty() && !line.to_ascii_lowercase().starts_with("connection:"))
        .collect();
    format!("{}\r\nconnection: close\r\n\r\n", kept.join("\r\n"))
}

fn url(port: u16, path: &str) -> String {
    format!("s3://{BUCKET}/{path}?endpoint=http://127.0.0.1:{port}")
}

fn backing_up(name: &str, url: &str) -> Settings {
    let mut settings = Settings::primary(name);
    settings.env.extend(KEYS.map(|(key, value)| (key.to_owned(), value.to_owned())));
    settings.env.push(("SKEIN_BACKUP_URL".into(), url.into()));
    settings.env.push(("SKEIN_BACKUP_SYNC_INTERVAL".into(), "100ms".into()));
    settings
}

fn restore(url: &str, args: &[&str], output: &Path) -> Vec<u8> {
    let mut command = skein();
    command.arg("restore").arg(url).args(args).arg("-o").arg(output).envs(KEYS);
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let bytes = std::fs::read(output).unwrap();
    std::fs::remove_file(output).unwrap();
    bytes
}

fn is_conditional(head: &str) -> bool {
    head.starts_with("put ") && (head.contains("\r\nif-none-match:") || head.contains("\r\nif-match:"))
}

fn is_put(head: &str) -> bool {
    head.starts_with("put ")
}

fn is_any(_: &str) -> bool {
    true
}

#[test]
fn on_s3_litestream_and_skein_restore_what_was_written_also_in_parts() {
    if !needs_skein() {
        return;
    }
    let (Some(litestream), Some(server)) = (tool("litestream"), Seaweed::start()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let backup = url(server.port, "one");
    let mut node = Node::new(dir.path(), backing_up("n1", &backup));
    node.must_start();
    let connection = sql::create(&node.path("app.db"), "wal", 4096);
    sql::run(&connection, "CREATE TABLE t(n INTEGER PRIMARY KEY, v)");
    let mut points = Vec::new();
    for count in [10, 5000, 10] {
        // The second is larger than one part.
        let insert = format!(
            "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {count})
             INSERT INTO t(v) SELECT randomblob(3000) FROM c"
        );
        sql::run(&connection, &insert);
        let (txid, _) = wait_uploaded(&node, "app.db");
        points.push((txid, node.export("app.db").unwrap()));
    }
    let out = dir.path().join("out.db");
    let one = format!("s3://{BUCKET}/one/app.db?endpoint=http://127.0.0.1:{}&region=us-east-1", server.port);
    for (txid, bytes) in &points {
        assert!(restore(&backup, &["app.db", "--txid", txid], &out) == *bytes, "{txid}");
        let mut command = Command::new(&litestream);
        command.args(["restore", "-txid", txid, "-o"]).arg(&out).arg(&one).envs(KEYS);
        // With it every command of Litestream's on S3 fails at its start.
        command.env_remove("AWS_CA_BUNDLE");
        let done = command.output().unwrap();
        assert!(done.status.success(), "{txid}: {}", String::from_utf8_lossy(&done.stderr));
        assert!(std::fs::read(&out).unwrap() == *bytes, "{txid}");
        std::fs::remove_file(&out).unwrap();
    }
    assert!(restore(&backup, &[], &out) == points[2].1);
}

#[test]
fn lost_answers_conflicts_slow_downs_and_expired_credentials_lose_nothing() {
    if !needs_skein() {
        return;
    }
    let Some(server) = Seaweed::start() else { return };
    let proxy = FaultProxy::start(server.port);
    let dir = tempfile::tempdir().unwrap();
    let (through, straight) = (url(proxy.port, "two"), url(server.port, "two"));
    let mut settings = backing_up("n1", &through);
    settings.env.push(("SKEIN_BACKUP_WARN_AFTER".into(), "1s".into()));
    let mut node = Node::new(dir.path(), settings);
    // The lease itself: written, and the answer lost, so that the second attempt meets the first.
    proxy.fail(is_conditional, Fault::AnswerLost, 2);
    node.must_start();
    let connection = sql::create(&node.path("app.db"), "wal", 4096);
    sql::run(&connection, "CREATE TABLE t(n INTEGER PRIMARY KEY, v)");
    wait_uploaded(&node, "app.db");
    assert_eq!(proxy.failed(), 2);
    let out = dir.path().join("out.db");
    let faults: [(Concerns, Fault, usize); 5] = [
        (is_put, Fault::AnswerLost, 3),
        (is_put, Fault::Cut, 2),
        (is_any, Fault::Refused(503, "SlowDown"), 6),
        (is_any, Fault::Refused(409, "ConditionalRequestConflict"), 2),
        (is_any, Fault::Refused(403, "ExpiredToken"), 3),
    ];
    for (concerns, fault, times) in faults {
        proxy.fail(concerns, fault, times);
        for _ in 0..5 {
            sql::run(&connection, "INSERT INTO t(v) VALUES(randomblob(3000))");
        }
        eventually("the faults have happened", || (proxy.failed() >= times.min(1)).then_some(()));
        wait_uploaded(&node, "app.db");
        assert_eq!(Ok(restore(&straight, &["app.db"], &out)), node.export("app.db"), "{fault:?}");
    }
    assert!(backup_of(&node, "app.db").unwrap()["error"].is_null());
    // A second node of another cluster meets the lease, whatever its answers.
    proxy.fail(is_conditional, Fault::Refused(409, "ConditionalRequestConflict"), 2);
    let mut other = Node::new(dir.path(), backing_up("n2", &through));
    other.must_start();
    let warning = eventually("it is refused", || {
        let all = http::get_json(other.http, "/v1/backup").ok()?;
        all[0]["warning"].as_str().filter(|text| text.contains("another path")).map(ToOwned::to_owned)
    });
    assert!(warning.contains("node n1"), "{warning}");
}
