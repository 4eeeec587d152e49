//! Ports, the node that may run there, and the other nodes.

use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::Finding;
use super::security::Keys;
use crate::config::{HostPort, Partial, Settings};
use crate::http::{Client, StatusDocument};
use crate::node::joining::who_is;
use crate::security::Peering;

/// How long another node has to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How long the node here has to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Whether a node runs here already, and what was found.
pub(super) async fn examine(settings: &Partial, keys: &Keys) -> (bool, Vec<Finding>) {
    let default = |text: &str| text.parse().expect("a constant address is well-formed");
    let http = settings.http.clone().unwrap_or_else(|| default(Settings::HTTP));
    let listen = settings.listen.clone().unwrap_or_else(|| default(Settings::LISTEN));
    let status = status_of(&http, keys).await;
    let running = status.is_some();
    let mut findings = vec![port("http port", "--http", &http, running).await];
    findings.push(port("grpc port", "--listen", &listen, running).await);
    findings.extend(status.map(|status| cluster(&status)));
    for peer in settings.join.iter().flatten() {
        findings.push(reach(peer, &keys.peering).await);
    }
    (running, findings)
}

async fn status_of(http: &HostPort, keys: &Keys) -> Option<StatusDocument> {
    let reachable = if http.is_unspecified() { http.at_host("127.0.0.1") } else { http.clone() };
    let client = Client::with(&format!("{}://{reachable}", keys.scheme), keys.credentials.clone()).ok()?;
    tokio::time::timeout(ANSWER_MAX, client.status()).await.ok()?.ok()
}

async fn port(check: &'static str, option: &str, address: &HostPort, running: bool) -> Finding {
    match TcpListener::bind((address.host(), address.port())).await {
        Ok(_) => Finding::ok(check, format!("{address} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && running => {
            Finding::ok(check, format!("{address}, used by the node that runs"))
        }
        Err(error) => Finding::failure(
            check,
            format!("{address} cannot be listened at: {error}"),
            format!("end what uses it (ss -ltnp), or choose another {option}"),
        ),
    }
}

/// What the node that runs here says of its cluster.
fn cluster(status: &StatusDocument) -> Finding {
    const CHECK: &str = "cluster";
    let lost: Vec<_> = status.members.iter().filter(|m| !m.healthy).map(|m| m.name.as_str()).collect();
    match &status.primary {
        None => Finding::failure(
            CHECK,
            format!("node {} knows no primary", status.node),
            "start the other voters: a majority of them must reach one another",
        ),
        Some(primary) if lost.is_empty() => {
            Finding::ok(CHECK, format!("node {} runs, {} is primary", status.node, primary.name))
        }
        Some(_) => Finding::warning(
            CHECK,
            format!("not reached: {}", lost.join(", ")),
            "start them, or remove them for good with skein members remove",
        ),
    }
}

async fn reach(peer: &HostPort, peering: &Peering) -> Finding {
    const CHECK: &str = "other node";
    let remedy = format!("start it, let {peer} through the firewall, or correct --join");
    match tokio::time::timeout(CONNECT_MAX, TcpStream::connect((peer.host(), peer.port()))).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Finding::failure(CHECK, format!("{peer} is not reached: {error}"), remedy),
        Err(_) => {
            return Finding::failure(CHECK, format!("{peer} does not answer within {CONNECT_MAX:?}"), remedy);
        }
    }
    match who_is(&peer.to_string(), peering).await {
        Ok(identity) => Finding::ok(
            CHECK,
            format!("{peer} is {}, a {} of cluster {}", identity.name, identity.role, identity.cluster),
        ),
        Err(error) => Finding::failure(
            CHECK,
            format!("{peer} does not let this node in: {error}"),
            "give both nodes certificates of the same authority, or the same join token; both must run",
        ),
    }
}
