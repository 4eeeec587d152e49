use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::NodeError;
use crate::config::{HostPort, Settings};

/// The listeners of a node, and how others reach them.
pub(super) struct Addresses {
    pub(super) grpc: TcpListener,
    pub(super) http: TcpListener,
    /// The proxy's, where there is one.
    pub(super) proxy: Option<TcpListener>,
    /// Where HTTP really listens.
    pub(super) http_addr: SocketAddr,
    /// HOST:PORT of gRPC for other nodes.
    pub(super) advertise: String,
    /// URL of HTTP for others.
    pub(super) advertise_http: String,
    /// URL of the proxy for others, empty where there is none.
    pub(super) advertise_proxy: String,
}

/// The machine's name.
///
/// Source: proc(5), `/proc/sys/kernel/hostname`.
pub fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

impl Addresses {
    /// Listens, so that an address in use is known before anything else happens.
    pub(super) async fn bind(settings: &Settings) -> Result<Self, NodeError> {
        let (grpc, grpc_addr) = listen("listen", &settings.listen).await?;
        let (http, http_addr) = listen("http", &settings.http).await?;
        let proxy = match &settings.proxy {
            Some(proxy) => Some(listen("proxy-addr", &proxy.addr).await?),
            None => None,
        };
        let security = &settings.security;
        let encrypted = [security.certificates.is_some(), security.https];
        for ((option, addr), encrypted) in
            [("listen", grpc_addr), ("http", http_addr)].into_iter().zip(encrypted)
        {
            if !addr.ip().is_loopback() && !encrypted {
                tracing::warn!("--{option} {addr} is open to the network without encryption");
            }
        }
        let reachable = |configured: &HostPort, port| {
            let address = configured.with_port(port);
            if address.is_unspecified() { address.at_host(&hostname()) } else { address }
        };
        let advertise = match &settings.advertise {
            Some(address) => address.clone(),
            None => reachable(&settings.listen, grpc_addr.port()),
        };
        let advertise_http = match &settings.advertise_http {
            Some(url) => url.clone(),
            None => format!("{}://{}", security.scheme(), reachable(&settings.http, http_addr.port())),
        };
        let advertise_proxy = match (&settings.proxy, &proxy) {
            (Some(settings), Some((_, addr))) => settings
                .advertise
                .clone()
                .unwrap_or_else(|| format!("http://{}", reachable(&settings.addr, addr.port()))),
            _ => String::new(),
        };
        let (advertise, proxy) = (advertise.to_string(), proxy.map(|(listener, _)| listener));
        Ok(Self { grpc, http, proxy, http_addr, advertise, advertise_http, advertise_proxy })
    }
}

async fn listen(option: &'static str, address: &HostPort) -> Result<(TcpListener, SocketAddr), NodeError> {
    let failed = |error: std::io::Error| NodeError::Listen {
        option,
        addr: address.to_string(),
        why: match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!("the address is in use, perhaps by another node; choose another --{option}")
            }
            _ => format!("cannot listen: {error}"),
        },
    };
    let listener = TcpListener::bind((address.host(), address.port())).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}
