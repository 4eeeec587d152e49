//! One request, sent to the application or to another proxy, and its answer.

use std::net::IpAddr;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode, Version};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::{Body, Refusal};
use super::body::{Payload, Progress};
use super::headers::{self, HOPS, NODE, UNSENT};
use super::upgrade::tunnel;
use super::upstream::{Failure, To, Upstream};

/// A request as it is passed on.
pub(super) struct Call {
    /// Its head, as the application gets it.
    pub head: Parts,
    /// Its body.
    pub payload: Payload,
    /// How many proxies have passed it on before this one.
    pub hops: u32,
    upgrade: Option<OnUpgrade>,
}

impl Call {
    /// The request of `client`, made ready to be passed on.
    pub fn new(mut request: Request<Incoming>, client: IpAddr) -> Self {
        let hops = headers::hops(request.headers());
        let protocol = headers::upgrade(request.headers()).filter(|_| request.version() == Version::HTTP_11);
        let upgrade = protocol.is_some().then(|| hyper::upgrade::on(&mut request));
        let (mut head, body) = request.into_parts();
        headers::strip_connection(&mut head.headers, protocol);
        headers::add_forwarded(&mut head, client);
        head.headers.remove(HOPS);
        head.extensions.clear();
        // What arrives by HTTP/2 goes on by HTTP/1.1.
        head.version = Version::HTTP_11;
        Self { head, payload: Payload::new(body), hops, upgrade }
    }

    /// Whether the connection is to go over to another protocol.
    pub fn is_upgrade(&self) -> bool {
        self.upgrade.is_some()
    }

    /// Whether it may be sent a second time even though it may have been sent: it changes nothing.
    fn is_repeatable(&self) -> bool {
        self.head.method.is_safe() && self.payload.is_empty() && self.upgrade.is_none()
    }
}

/// Sends requests and brings their answers back.
pub(super) struct Forwarder {
    pub upstream: Upstream,
    pub tunnels: TaskTracker,
    pub shutdown: CancellationToken,
}

impl Forwarder {
    /// Sends a request to the application of this node.
    pub async fn to_app(&self, call: &mut Call) -> Result<Response<Body>, Refusal> {
        match self.send(To::App, call).await {
            Ok(mut response) => {
                // Only proxies may say that.
                response.headers_mut().remove(UNSENT);
                response.headers_mut().remove(NODE);
                Ok(self.deliver(response, call))
            }
            Err(Failure::Unsent(why)) => Err(Refusal::unsent(
                StatusCode::SERVICE_UNAVAILABLE,
                "application-down",
                format!("the application does not accept connections: {why}"),
            )),
            Err(Failure::Unknown(why)) => Err(Refusal::unknown(
                StatusCode::BAD_GATEWAY,
                "application-broke-off",
                format!("the application broke off: {why}"),
            )),
            Err(Failure::Late) => Err(late("the application")),
        }
    }

    /// Sends a request to the proxy of another node; `Err` on the left where it was not seen by an application and can
    /// be sent elsewhere.
    pub async fn to_peer(
        &self,
        to: To<'_>,
        name: &str,
        call: &mut Call,
    ) -> Result<Response<Body>, Result<String, Refusal>> {
        match self.send(to, call).await {
            Ok(response) if response.headers().contains_key(UNSENT) && call.payload.is_whole() => {
                Err(Ok(format!("the proxy of {name} had nowhere to send it")))
            }
            Ok(response) => Ok(self.deliver(response, call)),
            Err(Failure::Unsent(why)) if call.payload.is_whole() => {
                Err(Ok(format!("the proxy of {name} does not accept connections: {why}")))
            }
            Err(Failure::Unsent(why) | Failure::Unknown(why)) => Err(Err(Refusal::unknown(
                StatusCode::BAD_GATEWAY,
                "primary-broke-off",
                format!("the proxy of {name} broke off: {why}"),
            ))),
            Err(Failure::Late) => Err(Err(late(&format!("the application of {name}")))),
        }
    }

    async fn send(&self, to: To<'_>, call: &mut Call) -> Result<Response<Incoming>, Failure> {
        match self.send_once(to, call).await {
            Err(Failure::Unknown(_)) if call.is_repeatable() => self.send_once(to, call).await,
            answer => answer,
        }
    }

    async fn send_once(&self, to: To<'_>, call: &Call) -> Result<Response<Incoming>, Failure> {
        let mut head = call.head.clone();
        let uri = self.upstream.uri(to, &head.uri);
        head.uri = uri.ok_or_else(|| Failure::Unsent(format!("{} is no path", head.uri)))?;
        if let To::Peer(_) = to {
            head.headers.insert(HOPS, HeaderValue::from(call.hops + 1));
        }
        let progress = Progress::new();
        let request = Request::from_parts(head, call.payload.outgoing(&progress));
        self.upstream.send(to, request, &progress).await
    }

    /// The answer as the client gets it.
    fn deliver(&self, mut response: Response<Incoming>, call: &mut Call) -> Response<Body> {
        let mut protocol = None;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            protocol = headers::upgrade(response.headers());
            let server = hyper::upgrade::on(&mut response);
            match call.upgrade.take() {
                Some(client) => drop(self.tunnels.spawn(tunnel(client, server, self.shutdown.clone()))),
                None => {
                    let why = "the application went over to another protocol, and was not asked to";
                    return Refusal::unknown(StatusCode::BAD_GATEWAY, "application-upgraded", why).answer();
                }
            }
        }
        let (mut head, body) = response.into_parts();
        headers::strip_connection(&mut head.headers, protocol);
        let mut delivered = Response::new(body.boxed_unsync());
        *delivered.status_mut() = head.status;
        *delivered.headers_mut() = head.headers;
        delivered
    }
}

fn late(who: &str) -> Refusal {
    let why = format!("{who} has not begun to answer in time");
    Refusal::unknown(StatusCode::GATEWAY_TIMEOUT, "application-slow", why)
}
