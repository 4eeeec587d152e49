use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::config::{HostPort, OneOrMany, Partial, ProxyPartial, ProxySettings, Settings};
use crate::proxy::answer::Body;
use crate::proxy::{NodeSite, Site, WriteGate, serve};
use crate::security::NodeStream;
use crate::store::{PrimaryInfo, StoreEvent};
use crate::types::{DbName, NodeName, Txid};

/// Where each node's proxy is, by name.
pub type Proxies = Arc<Mutex<HashMap<String, String>>>;

/// A node whose one database is a number.
pub struct Fake {
    name: NodeName,
    pub txid: watch::Sender<u64>,
    pub lag: Mutex<Option<Duration>>,
    primary: Mutex<Option<String>>,
    events: broadcast::Sender<StoreEvent>,
    proxies: Proxies,
}

fn info(name: &str) -> PrimaryInfo {
    PrimaryInfo { name: name.into(), addr: format!("{name}:1"), http: String::new() }
}

impl NodeSite for Fake {
    fn name(&self) -> &NodeName {
        &self.name
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    fn primary(&self) -> Option<PrimaryInfo> {
        self.primary.lock().unwrap().as_deref().map(info)
    }

    fn lag(&self) -> Option<Duration> {
        *self.lag.lock().unwrap()
    }

    fn wait_for(&self, _: DbName, txid: Txid, deadline: Instant) -> BoxFuture<'static, bool> {
        let mut watched = self.txid.subscribe();
        Box::pin(async move {
            let there = watched.wait_for(|now| *now >= txid.get());
            tokio::time::timeout_at(deadline.into(), there).await.is_ok()
        })
    }
}

impl Site for Fake {
    fn events(&self) -> broadcast::Receiver<StoreEvent> {
        self.events.subscribe()
    }

    fn committed(&self, _: DbName) -> BoxFuture<'static, Option<Txid>> {
        let txid = Txid::new(*self.txid.borrow());
        Box::pin(async move { txid })
    }

    fn connect(&self, host: String, port: u16) -> BoxFuture<'static, std::io::Result<NodeStream>> {
        Box::pin(async move { Ok(NodeStream::Plain(TcpStream::connect((host, port)).await?)) })
    }

    fn proxy_of(&self, node: &PrimaryInfo) -> BoxFuture<'static, Result<Option<String>, String>> {
        let known = self.proxies.lock().unwrap().get(&node.name).cloned();
        Box::pin(async move { Ok(known) })
    }
}

/// A proxy, its node and its application.
pub struct Node {
    pub site: Arc<Fake>,
    pub gate: WriteGate,
    pub addr: SocketAddr,
    pub app: App,
    pub shutdown: CancellationToken,
}

impl Node {
    /// One that knows no primary.
    pub async fn start(name: &str, proxies: &Proxies, change: impl FnOnce(&mut ProxySettings)) -> Self {
        let app = App::start(name).await;
        let site = Arc::new(Fake {
            name: name.parse().unwrap(),
            txid: watch::Sender::new(1),
            lag: Mutex::new(Some(Duration::ZERO)),
            primary: Mutex::new(None),
            events: broadcast::Sender::new(16),
            proxies: proxies.clone(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        proxies.lock().unwrap().insert(name.to_owned(), format!("http://{addr}"));
        let mut settings = settings(app.addr);
        change(&mut settings);
        let (gate, shutdown) = (WriteGate::default(), CancellationToken::new());
        let (_, peers) = mpsc::channel(1);
        tokio::spawn(serve(listener, peers, settings, site.clone(), gate.clone(), shutdown.clone()));
        Self { site, gate, addr, app, shutdown }
    }

    /// Has the node hear who is primary; it may be itself.
    pub fn hears(&self, primary: Option<&str>) {
        *self.site.primary.lock().unwrap() = primary.map(str::to_owned);
        // Nobody may be listening yet.
        let _ = self.site.events.send(StoreEvent::Primary(primary.map(info)));
        self.gate.set_primary(primary == Some(self.site.name.as_str()));
    }
}

/// A node that is primary, and one that knows it.
pub async fn two(change: impl Fn(&mut ProxySettings)) -> (Node, Node) {
    let proxies = Proxies::default();
    let (a, b) = (Node::start("a", &proxies, &change).await, Node::start("b", &proxies, &change).await);
    a.hears(Some("a"));
    b.hears(Some("a"));
    (a, b)
}

fn settings(app: SocketAddr) -> ProxySettings {
    let proxy = ProxyPartial {
        addr: Some("127.0.0.1:0".into()),
        target: Some(app.to_string()),
        db: Some(OneOrMany::One("app.db".into())),
        passthrough: Some(vec!["/static/*".into()]),
        always_forward: Some(vec!["/logout".into()]),
        txid_timeout: Some("200ms".parse().unwrap()),
        ..ProxyPartial::default()
    };
    let (mount, data) = (Some("/m".into()), Some("/d".into()));
    let partial = Partial { mount, data, proxy, ..Partial::default() };
    Settings::resolve(partial, "host").unwrap().proxy.unwrap()
}

/// An address where nobody listens.
pub async fn nobody() -> HostPort {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string().parse().unwrap()
}

/// An application that tells what it was asked.
pub struct App {
    pub addr: SocketAddr,
    /// Method and path of each request.
    pub asked: Arc<Mutex<Vec<String>>>,
}

impl App {
    async fn start(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, asked) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<_>>>::default());
        let (name, heard) = (name.to_owned(), asked.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (name, heard) = (name.clone(), heard.clone());
                let service = service_fn(move |request| {
                    let (name, heard) = (name.clone(), heard.clone());
                    async move {
                        heard.lock().unwrap().push(format!("{} {}", request.method(), request.uri().path()));
                        match request.uri().path() {
                            "/die" => Err(std::io::Error::other("the application dies")),
                            _ => Ok(answer(&name, request).await),
                        }
                    }
                });
                tokio::spawn(async move {
                    let builder = Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { addr, asked }
    }

    /// How often it was asked that.
    pub fn count(&self, what: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == what).count()
    }
}

fn plain(text: String) -> Response<Body> {
    Response::new(Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}).boxed_unsync())
}

async fn answer(name: &str, mut request: Request<Incoming>) -> Response<Body> {
    match request.uri().path() {
        "/slow" => std::future::pending().await,
        "/upgrade" => {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgraded.await.unwrap());
                let mut word = [0; 5];
                io.read_exact(&mut word).await.unwrap();
                io.write_all(&word.map(|byte| byte.to_ascii_uppercase())).await.unwrap();
                io.shutdown().await.unwrap();
            });
            let mut response = plain(String::new());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert("connection", "upgrade".parse().unwrap());
            response.headers_mut().insert("upgrade", "shout".parse().unwrap());
            response
        }
        "/fail" => {
            let mut response = plain("database is locked".into());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
        // Each piece as it comes.
        "/echo" => {
            let pieces = request.into_body().into_data_stream();
            Response::new(StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync())
        }
        _ => {
            let mut lines = vec![format!("app {name}")];
            for (field, value) in request.headers() {
                lines.push(format!("{field}: {}", value.to_str().unwrap()));
            }
            let body = request.into_body().collect().await.unwrap().to_bytes();
            lines.push(format!("body {}", String::from_utf8_lossy(&body)));
            let mut response = plain(lines.join("\n"));
            response.headers_mut().insert("skein-proxy-unsent", "1".parse().unwrap());
            response.headers_mut().insert("skein-node", "forged".parse().unwrap());
            response.headers_mut().insert("keep-alive", "timeout=9".parse().unwrap());
            response
        }
    }
}

/// Sends a request as bytes and reads the answer to its end.
pub async fn raw(addr: SocketAddr, request: &str, more: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let (fields, body) = more.split_once("\n\n").unwrap_or((more, ""));
    let fields: String = fields.lines().map(|line| format!("{line}\r\n")).collect();
    let length = body.len();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: app.example\r\nConnection: close\r\nContent-Length: {length}\r\n{fields}\r\n{body}"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}
