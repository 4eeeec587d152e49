//! Requests that any node may serve that has what the client wrote.

use hyper::header::{HeaderValue, SET_COOKIE};
use hyper::{Response, StatusCode};
use tokio::time::Instant;

use super::answer::{Body, Refusal};
use super::cookie::{self, Seen};
use super::forward::Call;
use super::headers::HINT;
use super::service::{Proxy, ServedBy};
use super::upstream::To;
use super::write::fly_replay;
use super::write_targets::WriteTarget;
use crate::io::log_rate_limit;
use crate::telemetry::metrics::PROXY_TXID_WAIT_SECONDS;
use crate::types::{DbName, Txid};

const HINT_TEXT: &str =
    "this node is not primary; if the request writes, name its path in proxy.always_forward";

impl Proxy {
    /// Serves a read here as soon as this node has what the client wrote, else where the primary is.
    pub(super) async fn read(&self, call: &mut Call) -> Result<(ServedBy, Response<Body>), Refusal> {
        let wrote = match cookie::read(&call.head.headers, &self.settings.dbs) {
            Seen::Nothing => return self.read_here(call).await,
            Seen::Invalid => {
                let (by, mut response) = self.read_here(call).await?;
                response.headers_mut().append(SET_COOKIE, cookie::clear());
                return Ok((by, response));
            }
            Seen::Wrote(wrote) => wrote,
        };
        let start = Instant::now();
        loop {
            if self.reach(&wrote).await {
                return self.read_here(call).await;
            }
            let why = match self.read_elsewhere(call).await? {
                Ok(answer) => return Ok(answer),
                Err(why) => why,
            };
            // During a failover both may take a while, and either will do.
            let limit = self.settings.primary_redirect_timeout;
            if call.hops > 0 || start.elapsed() >= limit {
                let waited = start.elapsed();
                let detail =
                    format!("this node has not got what the client wrote within {waited:.1?}, and {why}");
                return Err(Refusal::unsent(StatusCode::GATEWAY_TIMEOUT, "txid-not-reached", detail));
            }
        }
    }

    /// Has the primary serve a read that cannot be served here; `Err` inside says why it cannot either.
    async fn read_elsewhere(
        &self,
        call: &mut Call,
    ) -> Result<Result<(ServedBy, Response<Body>), String>, Refusal> {
        if self.gate.now().primary {
            return self.read_what_is_left(call).await.map(Ok);
        }
        let place = self.targets.watch().borrow().clone();
        match place {
            // Primary meanwhile.
            WriteTarget::Here => self.read_what_is_left(call).await.map(Ok),
            WriteTarget::There(name, None) => Ok(Ok((ServedBy::Primary, fly_replay(&name)))),
            WriteTarget::There(name, Some(authority)) if call.hops == 0 => {
                match self.forwarder.to_peer(To::Peer(&authority), &name, call).await {
                    Ok(response) => Ok(Ok((ServedBy::Primary, response))),
                    Err(Err(refusal)) => Err(refusal),
                    Err(Ok(why)) => {
                        self.targets.doubt();
                        Ok(Err(why))
                    }
                }
            }
            WriteTarget::There(name, _) => Ok(Err(format!("the primary is {name} by now"))),
            WriteTarget::Nowhere(why) => Ok(Err(why)),
        }
    }

    async fn read_here(&self, call: &mut Call) -> Result<(ServedBy, Response<Body>), Refusal> {
        let mut response = self.forwarder.to_app(call).await?;
        if response.status().is_server_error() && !self.gate.now().primary {
            self.hint_at_write(call, &mut response);
        }
        Ok((ServedBy::Here, response))
    }

    /// An application that writes while it answers a read fails on a node that is not primary, and only it knows why:
    /// locks are the kernel's, so nothing tells the daemon that somebody waits for one.
    fn hint_at_write(&self, call: &Call, response: &mut Response<Body>) {
        response.headers_mut().insert(HINT, HeaderValue::from_static(HINT_TEXT));
        let (path, status) = (call.head.uri.path(), response.status().as_u16());
        if let Some(suppressed) = log_rate_limit::due(("a read fails", path)) {
            tracing::warn!(method = %call.head.method, path, status, suppressed, "the application failed: {HINT_TEXT}");
        }
    }

    /// A primary has everything there is. What the client claims beyond that was lost, or is another cluster's: no node
    /// need wait for it any longer.
    async fn read_what_is_left(&self, call: &mut Call) -> Result<(ServedBy, Response<Body>), Refusal> {
        let (by, mut response) = self.read_here(call).await?;
        response.headers_mut().append(SET_COOKIE, cookie::clear());
        self.tell_committed(&mut response).await;
        Ok((by, response))
    }

    /// Waits until this node has all of it; `false` where it takes too long.
    async fn reach(&self, wrote: &[(DbName, Txid)]) -> bool {
        let start = Instant::now();
        let deadline = (start + self.settings.txid_timeout).into_std();
        let mut reached = true;
        for (db, txid) in wrote {
            reached = reached && self.site.wait_for(db.clone(), *txid, deadline).await;
        }
        metrics::histogram!(PROXY_TXID_WAIT_SECONDS).record(start.elapsed().as_secs_f64());
        reached
    }
}
