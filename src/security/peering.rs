use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::alpn::{API_PROTOCOL, HTTP2, PROXY_PROTOCOL, RAFT_PROTOCOL};
use super::node_stream::Socket;
use super::{Certificates, NodeStream, Refusals, Token};

/// What a connection for Raft's thread begins with, before the HTTP/2 preface: so the node that accepts it can give it to
/// that thread, and no message has to wake up another one on its way. Inside TLS the negotiated protocol says it.
pub const DIRECT: &[u8] = b"skein-raft-1\n";
/// What every HTTP/2 connection begins with.
///
/// Source: RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long whoever connects has to say who it is and what it wants.
pub const GREETING_MAX: Duration = Duration::from_secs(10);

/// How this node reaches the others, and whom it lets in.
#[derive(Clone, Debug, Default)]
pub struct Peering {
    trust: Trust,
    refusals: Arc<Refusals>,
}

#[derive(Clone, Debug, Default)]
enum Trust {
    /// Whoever can connect.
    #[default]
    Network,
    /// Whoever shows the token.
    Token(Token),
    /// Whoever shows a certificate of the cluster's authority, as this node does.
    Certificates(Arc<Certificates>),
}

/// What a connection to another node is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// gRPC.
    Grpc,
    /// The node's Raft thread, which speaks gRPC, too.
    Raft,
    /// The proxy in front of the node's application. Without TLS it listens on a port of its own.
    Proxy,
    /// The node's API. Without TLS it listens on a port of its own.
    Api,
}

impl Purpose {
    fn protocol(self) -> &'static [u8] {
        match self {
            Purpose::Grpc => HTTP2,
            Purpose::Raft => RAFT_PROTOCOL,
            Purpose::Proxy => PROXY_PROTOCOL,
            Purpose::Api => API_PROTOCOL,
        }
    }

    fn of_protocol(protocol: Option<&[u8]>) -> Self {
        let special = [Purpose::Raft, Purpose::Proxy, Purpose::Api];
        let named = special.into_iter().find(|one| protocol == Some(one.protocol()));
        named.unwrap_or(Purpose::Grpc)
    }
}

/// A connection that is let in, and what it is for.
type Admitted = (NodeStream, Purpose);

impl Peering {
    /// Between nodes that know each other by certificates, or by a token where there are none, or not at all.
    pub fn new(certificates: Option<Arc<Certificates>>, token: Option<Token>) -> Self {
        let trust = match (certificates, token) {
            (Some(certificates), _) => Trust::Certificates(certificates),
            (None, Some(token)) => Trust::Token(token),
            (None, None) => Trust::Network,
        };
        Self { trust, refusals: Arc::default() }
    }

    /// Whether nodes know each other by certificates, and all they say to each other is inside TLS.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.trust, Trust::Certificates(_))
    }

    /// The token that requests show.
    pub(super) fn token(&self) -> Option<&Token> {
        match &self.trust {
            Trust::Token(token) => Some(token),
            Trust::Network | Trust::Certificates(_) => None,
        }
    }

    /// Where refusals are told.
    pub(super) fn refusals(&self) -> &Arc<Refusals> {
        &self.refusals
    }

    /// Connects to the node at `host` and `port`.
    ///
    /// # Errors
    /// Where nobody answers, or shows a certificate that is not to be believed.
    pub async fn dial(&self, host: &str, port: u16, purpose: Purpose) -> io::Result<NodeStream> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let mut stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        setsockopt(&stream, sockopt::TcpKeepIdle, &30)?;
        let Trust::Certificates(certificates) = &self.trust else {
            if purpose == Purpose::Raft {
                stream.write_all(DIRECT).await?;
            }
            return Ok(NodeStream::Plain(stream));
        };
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let connector = TlsConnector::from(certificates.configs().node_client);
        let connector = connector.with_alpn(vec![purpose.protocol().to_vec()]);
        let connected = connector.connect(name, Socket::Here(stream)).await;
        let stream = connected.map_err(|error| io::Error::new(error.kind(), reason(&error)))?;
        Ok(NodeStream::Tls(Box::new(TlsStream::Client(stream))))
    }

    /// Looks at who connects and what for; none where it is refused, which is told.
    pub async fn admit(&self, stream: TcpStream) -> Option<Admitted> {
        let peer = stream.peer_addr().ok()?.ip();
        match tokio::time::timeout(GREETING_MAX, self.greet(stream)).await {
            Ok(Ok(admitted)) => Some(admitted),
            Ok(Err(Refusal::Broken(error))) => {
                tracing::debug!(%error, %peer, "a connection broke before it said what it is for");
                None
            }
            Ok(Err(Refusal::Stranger(why))) => {
                self.refuse(peer, &why);
                None
            }
            Err(_) => {
                self.refuse(peer, "it did not say in time what it is for");
                None
            }
        }
    }

    /// Tells that a connection of `peer` was refused.
    pub fn refuse(&self, peer: IpAddr, why: &str) {
        self.refusals.tell(peer, "a connection between nodes", why);
    }

    async fn greet(&self, stream: TcpStream) -> Result<Admitted, Refusal> {
        stream.set_nodelay(true)?;
        let Trust::Certificates(certificates) = &self.trust else { return greet_plain(stream).await };
        if peek(&stream, 1).await?[0] != TLS_HANDSHAKE {
            return Err(Refusal::Stranger("it speaks no TLS, which this node is configured to want".into()));
        }
        let acceptor = TlsAcceptor::from(certificates.configs().node_server);
        let accepted = acceptor.accept(Socket::Here(stream)).await;
        let stream = accepted.map_err(|error| match is_tls(&error) {
            true => Refusal::Stranger(reason(&error)),
            false => Refusal::Broken(error),
        })?;
        let purpose = Purpose::of_protocol(stream.get_ref().1.alpn_protocol());
        Ok((NodeStream::Tls(Box::new(TlsStream::Server(stream))), purpose))
    }
}

/// Why a connection is not let in.
enum Refusal {
    Broken(io::Error),
    Stranger(String),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Refusal::Broken(error)
    }
}

/// The type of the record a TLS connection begins with.
///
/// Source: RFC 8446, section 5.1.
const TLS_HANDSHAKE: u8 = 22;

/// A connection for Raft's thread says so; both kinds then speak HTTP/2.
async fn greet_plain(mut stream: TcpStream) -> Result<Admitted, Refusal> {
    let head = peek(&stream, DIRECT.len()).await?;
    if head == DIRECT {
        stream.read_exact(&mut [0; DIRECT.len()]).await?;
        // Raft's thread waits for nobody who has nothing to say.
        return match peek(&stream, PREFACE.len()).await? == PREFACE {
            true => Ok((NodeStream::Plain(stream), Purpose::Raft)),
            false => Err(Refusal::Stranger("it does not speak Skein's protocol".into())),
        };
    }
    let strange = match head[0] {
        TLS_HANDSHAKE => {
            "it speaks TLS, and this node has no certificates: give --tls-ca, --tls-cert, --tls-key"
        }
        _ => "it does not speak Skein's protocol",
    };
    if head != PREFACE[..DIRECT.len()] || peek(&stream, PREFACE.len()).await? != PREFACE {
        return Err(Refusal::Stranger(strange.into()));
    }
    Ok((NodeStream::Plain(stream), Purpose::Grpc))
}

/// The next `length` bytes, which stay to be read.
async fn peek(stream: &TcpStream, length: usize) -> io::Result<Vec<u8>> {
    let (mut head, mut pause) = (vec![0; length], Duration::from_millis(1));
    loop {
        match stream.peek(&mut head).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            peeked if peeked == length => return Ok(head),
            // Nothing tells when there is more than now; whoever takes long costs little.
            _ => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

fn cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn is_tls(error: &io::Error) -> bool {
    cause(error).is_some()
}

/// Why a handshake failed, in words an operator can do something about.
fn reason(error: &io::Error) -> String {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error};
    let Some(cause) = cause(error) else { return error.to_string() };
    let text = match cause {
        Error::NoCertificatesPresented => "it shows no certificate",
        Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => "its certificate has expired",
        Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            "its certificate is not valid yet: compare the clocks"
        }
        Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            "its certificate is not of this cluster's authority"
        }
        Error::AlertReceived(Alert::UnknownCA | Alert::DecryptError | Alert::BadCertificate) => {
            "it does not believe this node's certificate: both need the same authority"
        }
        Error::AlertReceived(Alert::CertificateExpired) => "it says that this node's certificate has expired",
        Error::InvalidMessage(_) => "what it sends is no TLS",
        _ => return format!("TLS: {cause}"),
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::security::{Authority, CertificateFiles};

    fn with_certificates() -> Peering {
        let dir = tempfile::tempdir().unwrap();
        let (authority, life) = (Authority::at(dir.path()), Duration::from_secs(3600));
        let ca = authority.init(life).unwrap();
        let own = authority.issue(&"n1".parse().unwrap(), &["127.0.0.1".to_owned()], life).unwrap();
        let text = |path| std::fs::read_to_string(path).unwrap();
        let files = CertificateFiles { ca: text(ca.cert), cert: text(own.cert), key: text(own.key) };
        Peering::new(Some(Arc::new(Certificates::load(files).unwrap())), None)
    }

    async fn arrive_on_another_runtime(stream: NodeStream) -> Vec<u8> {
        let moved = stream.leave().unwrap();
        let other = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (mut stream, mut said) = (moved.arrive().unwrap(), vec![0; PREFACE.len()]);
                stream.read_exact(&mut said).await.unwrap();
                stream.write_all(b"heard").await.unwrap();
                stream.flush().await.unwrap();
                said
            })
        });
        tokio::task::spawn_blocking(|| other.join().unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn connections_for_raft_are_told_from_others_and_move_to_its_thread() {
        for peering in [Peering::default(), with_certificates()] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            for purpose in [Purpose::Raft, Purpose::Grpc, Purpose::Proxy, Purpose::Api] {
                if matches!(purpose, Purpose::Proxy | Purpose::Api) && !peering.is_encrypted() {
                    continue;
                }
                let admitting = async {
                    let admitted = peering.admit(listener.accept().await.unwrap().0).await.unwrap();
                    let (mut stream, told) = admitted;
                    assert_eq!(told, purpose);
                    if purpose == Purpose::Raft {
                        return assert_eq!(arrive_on_another_runtime(stream).await, PREFACE);
                    }
                    let mut preface = vec![0; PREFACE.len()];
                    stream.read_exact(&mut preface).await.unwrap();
                    assert_eq!(preface, PREFACE);
                };
                let dialing = async {
                    let mut stream = peering.dial("127.0.0.1", port, purpose).await.unwrap();
                    stream.write_all(PREFACE).await.unwrap();
                    stream.flush().await.unwrap();
                    if purpose == Purpose::Raft {
                        let mut answer = [0; 5];
                        stream.read_exact(&mut answer).await.unwrap();
                        assert_eq!(&answer, b"heard");
                    }
                };
                tokio::join!(admitting, dialing);
            }
        }
    }

    #[tokio::test]
    async fn a_certificate_for_another_host_is_not_believed() {
        let peering = with_certificates();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let admitting = async { peering.admit(listener.accept().await.unwrap().0).await.is_none() };
        let (refused, dialed) = tokio::join!(admitting, peering.dial("localhost", port, Purpose::Grpc));
        assert!(refused && dialed.is_err());
    }
}
