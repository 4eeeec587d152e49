//! Requests that any node may serve that has what the client wrote.

use hyper::header::SET_COOKIE;
use hyper::{Response, StatusCode};
use tokio::time::Instant;

use super::answer::{Body, Refusal};
use super::cookie::{self, Seen};
use super::forward::Call;
use super::places::Place;
use super::service::{Proxy, ServedBy};
use super::upstream::To;
use super::write::fly_replay;
use crate::telemetry::metrics::PROXY_TXID_WAIT_SECONDS;
use crate::types::{DbName, Txid};

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
        if self.reach(&wrote).await {
            return self.read_here(call).await;
        }
        if self.gate.now().primary {
            return self.read_what_is_left(call).await;
        }
        let place = self.places.watch().borrow().clone();
        let why = match place {
            // Primary meanwhile.
            Place::Here => return self.read_what_is_left(call).await,
            Place::There(name, None) => return Ok((ServedBy::Primary, fly_replay(&name))),
            Place::There(name, Some(authority)) if call.hops == 0 => {
                match self.forwarder.to_peer(To::Peer(&authority), &name, call).await {
                    Ok(response) => return Ok((ServedBy::Primary, response)),
                    Err(Err(refusal)) => return Err(refusal),
                    Err(Ok(why)) => {
                        self.places.doubt();
                        why
                    }
                }
            }
            Place::There(name, _) => format!("the primary is {name} by now"),
            Place::Nowhere(why) => why,
        };
        let limit = self.settings.txid_timeout;
        let detail = format!("this node has not got what the client wrote within {limit:?}, and {why}");
        Err(Refusal::unsent(StatusCode::GATEWAY_TIMEOUT, "txid-not-reached", detail))
    }

    async fn read_here(&self, call: &mut Call) -> Result<(ServedBy, Response<Body>), Refusal> {
        Ok((ServedBy::Here, self.forwarder.to_app(call).await?))
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
