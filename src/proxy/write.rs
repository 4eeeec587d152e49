//! Requests that only the primary's application may serve.

use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue, SET_COOKIE};
use hyper::{Response, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::answer::{Body, Refusal, empty};
use super::cookie;
use super::forward::Call;
use super::gate::Passage;
use super::service::{Proxy, ServedBy};
use super::upstream::To;
use super::write_targets::WriteTarget;
use crate::telemetry::metrics::PROXY_PRIMARY_WAIT_SECONDS;

/// Proxies a request goes through at most, where they differ about who is primary.
const HOPS_MAX: u32 = 3;
/// How long a request that another proxy has passed on waits for a primary: that one can look elsewhere.
const PASSED_ON_WAIT_MAX: Duration = Duration::from_secs(1);
/// Pause before the same proxy is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(100);

pub(super) const FLY_REPLAY: HeaderName = HeaderName::from_static("fly-replay");

impl Proxy {
    /// Sends a request to where the primary is, once. Waits while nobody is.
    pub(super) async fn write(&self, call: &mut Call) -> Result<(ServedBy, Response<Body>), Refusal> {
        let start = Instant::now();
        let limit = match call.hops {
            0 => self.settings.primary_redirect_timeout,
            _ => self.settings.primary_redirect_timeout.min(PASSED_ON_WAIT_MAX),
        };
        let mut targets = self.targets.watch();
        let mut why = None;
        loop {
            let place = targets.borrow_and_update().clone();
            match place {
                WriteTarget::Here => {
                    if let Some(passage) = self.gate.enter() {
                        waited(start);
                        return Ok((ServedBy::Here, self.write_here(call, passage).await?));
                    }
                    why.get_or_insert_with(|| "the primary is being moved".to_owned());
                }
                WriteTarget::There(name, None) => return Ok((ServedBy::Primary, fly_replay(&name))),
                WriteTarget::There(..) if call.hops >= HOPS_MAX => {
                    why = Some("the nodes do not agree who is primary".to_owned());
                }
                WriteTarget::There(name, Some(authority)) => {
                    waited(start);
                    call.payload.hold(self.settings.held_body_bytes, &self.held).await?;
                    match self.forwarder.to_peer(To::Peer(&authority), &name, call).await {
                        Ok(response) => return Ok((ServedBy::Primary, response)),
                        Err(Err(refusal)) => return Err(refusal),
                        Err(Ok(unsent)) => why = Some(unsent),
                    }
                    self.targets.doubt();
                }
                WriteTarget::Nowhere(reason) => why = Some(reason),
            }
            let deadline = start + limit;
            let again = (Instant::now() + TRY_AGAIN).min(deadline);
            // What was learned meanwhile is looked at, also where it is the same.
            let _looked = timeout_at(again, targets.changed()).await;
            if Instant::now() >= deadline {
                waited(start);
                let why = why.unwrap_or_default();
                let detail = format!("{why}, and nobody took the request within {limit:?}");
                return Err(Refusal::unsent(StatusCode::SERVICE_UNAVAILABLE, "no-primary", detail));
            }
        }
    }

    /// The application of this node writes; the client is told which transaction to wait for elsewhere.
    async fn write_here(&self, call: &mut Call, _inside: Passage) -> Result<Response<Body>, Refusal> {
        let mut response = self.forwarder.to_app(call).await?;
        self.tell_committed(&mut response).await;
        Ok(response)
    }

    /// Sets the cookie to what is committed here now.
    pub(super) async fn tell_committed(&self, response: &mut Response<Body>) {
        let mut seen = Vec::new();
        for db in &self.settings.dbs {
            if let Some(txid) = self.site.committed(db.clone()).await {
                seen.push((db.clone(), txid));
            }
        }
        if let Some(cookie) = cookie::set(&seen, &self.settings.dbs) {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
    }
}

fn waited(start: Instant) {
    metrics::histogram!(PROXY_PRIMARY_WAIT_SECONDS).record(start.elapsed().as_secs_f64());
}

/// Has Fly.io's proxy send the request to another machine.
pub(super) fn fly_replay(name: &str) -> Response<Body> {
    let mut response = empty();
    if let Ok(instance) = HeaderValue::try_from(format!("instance={name}")) {
        response.headers_mut().insert(FLY_REPLAY, instance);
    }
    response
}
