//! What is done with a request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::Semaphore;

use super::access_log::AccessLine;
use super::answer::{Body, Refusal, text};
use super::forward::{Call, Forwarder};
use super::headers::{self, UNSENT};
use super::rules::{Kind, Rules};
use super::write_targets::{WriteTarget, WriteTargets};
use super::{Site, WriteGate};
use crate::config::ProxySettings;
use crate::telemetry::metrics::{PROXY_REQUESTS, PROXY_SECONDS};

/// Whose application answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ServedBy {
    /// This node's.
    Here,
    /// The primary's, another node.
    Primary,
    /// Nobody's: the answer is the proxy's own.
    Nobody,
}

impl ServedBy {
    /// Its name in metrics.
    fn name(self) -> &'static str {
        match self {
            ServedBy::Here => "here",
            ServedBy::Primary => "primary",
            ServedBy::Nobody => "nobody",
        }
    }
}

/// The proxy of one node.
pub(super) struct Proxy {
    pub site: Arc<dyn Site>,
    pub gate: WriteGate,
    pub settings: ProxySettings,
    pub rules: Rules,
    pub targets: WriteTargets,
    pub forwarder: Forwarder,
    /// Room for bodies in memory, a permit a byte.
    pub held: Arc<Semaphore>,
}

impl Proxy {
    /// Answers a request, whatever happens.
    pub async fn handle(&self, request: Request<Incoming>, client: IpAddr) -> Response<Body> {
        let start = Instant::now();
        let kind = self.rules.kind(request.method(), request.uri().path());
        let from_proxy = headers::hops(request.headers()) > 0;
        let line = self.settings.access_log.then(|| AccessLine::of(&request, client));
        let served = self.serve(kind, request, client).await;
        let (by, mut response) = served.unwrap_or_else(|refusal| (ServedBy::Nobody, refusal.answer()));
        if !from_proxy {
            // It is for proxies, which may send the request elsewhere.
            response.headers_mut().remove(UNSENT);
        }
        headers::tell_origin(response.headers_mut(), self.site.name(), start.elapsed());
        let (kind, by) = (kind.name(), by.name());
        if let Some(line) = line {
            line.write(kind, by, &response, start.elapsed());
        }
        let status = response.status().as_u16().to_string();
        metrics::counter!(PROXY_REQUESTS, "kind" => kind, "served_by" => by, "status" => status).increment(1);
        metrics::histogram!(PROXY_SECONDS, "kind" => kind, "served_by" => by)
            .record(start.elapsed().as_secs_f64());
        response
    }

    async fn serve(
        &self,
        kind: Kind,
        request: Request<Incoming>,
        client: IpAddr,
    ) -> Result<(ServedBy, Response<Body>), Refusal> {
        if request.method() == Method::CONNECT {
            let why = "the method CONNECT is not for a proxy in front of an application";
            return Err(Refusal::unsent(StatusCode::METHOD_NOT_ALLOWED, "method", why));
        }
        match kind {
            Kind::Health => return Ok((ServedBy::Nobody, self.health())),
            Kind::WriteHealth => return Ok((ServedBy::Nobody, self.write_health())),
            Kind::Passthrough | Kind::Read | Kind::Write => {}
        }
        let mut call = Call::new(request, client);
        if call.is_upgrade() && self.forwarder.tunnels.len() >= self.settings.max_connections as usize {
            let why = "there are as many upgraded connections as proxy.max_connections allows";
            return Err(Refusal::unsent(StatusCode::SERVICE_UNAVAILABLE, "too-many", why));
        }
        match kind {
            Kind::Passthrough | Kind::Health | Kind::WriteHealth => {
                Ok((ServedBy::Here, self.forwarder.to_app(&mut call).await?))
            }
            Kind::Read => self.read(&mut call).await,
            Kind::Write => self.write(&mut call).await,
        }
    }

    /// As LiteFS answers: 200 where a load balancer may send requests here.
    fn health(&self) -> Response<Body> {
        let limit = self.settings.max_lag;
        let sick = match (self.site.ready(), self.site.lag()) {
            (Err(why), _) => why,
            (Ok(()), None) => "this node has not got the cluster's databases yet".to_owned(),
            (Ok(()), Some(lag)) if lag > limit => {
                format!("this node is {lag:.1?} behind, more than {limit:?}")
            }
            (Ok(()), Some(_)) => return text(StatusCode::OK, "OK\n"),
        };
        text(StatusCode::SERVICE_UNAVAILABLE, format!("{sick}\n"))
    }

    /// 200 where the application of this node may write now, so that a load balancer can send writes here at once.
    fn write_health(&self) -> Response<Body> {
        let why = match (self.site.ready(), self.gate.enter()) {
            (Err(why), _) => why,
            (Ok(()), Some(_passage)) => return text(StatusCode::OK, "OK\n"),
            (Ok(()), None) => match &*self.targets.watch().borrow() {
                WriteTarget::There(name, _) => format!("writes are for {name}, the primary"),
                WriteTarget::Nowhere(why) => why.clone(),
                WriteTarget::Here => "the primary is being moved".to_owned(),
            },
        };
        text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
    }
}
