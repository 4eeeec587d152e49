//! Which node does a request, and what happens when that changes in the middle.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request};

use super::SqlSite;
use super::ask::{Ask, Here};
use super::document::{Kind, baton_of, storing};
use super::engine_link::EngineLink;
use super::freshness::Wanted;
use super::refusal::Refusal;
use super::remote::{Failed, Remote};
use super::site::NodeAddress;
use crate::config::SqlSettings;
use crate::proxy::WriteGate;
use crate::security::SqlRight;
use crate::sql::engine::{ABORT_PATH, node_of};
use crate::sql::hrana::StoredText;

/// Names the node that did a request.
const NODE_HEADER: &str = "skein-node";
/// Pause before a primary that did not take a request is looked for again, where nothing tells that it changed.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long transactions that wait for their clients go on while the primary is to be moved.
const MOVE_GRACE: Duration = Duration::from_millis(500);

/// What answers requests on one node.
pub(super) struct Service {
    pub site: Arc<dyn SqlSite>,
    pub settings: SqlSettings,
    pub gate: WriteGate,
    pub engine: EngineLink,
    pub remote: Remote,
}

/// Who does a request.
enum Answer {
    /// It is done.
    Done(Response),
    /// The primary has to, on a stream with these texts.
    Primary(Vec<StoredText>),
}

impl Service {
    /// Answers a request.
    pub async fn answer(&self, ask: Ask, wanted: Wanted) -> Result<Response, Refusal> {
        if let Err(why) = self.site.node().ready() {
            return Err(Refusal::unavailable(why));
        }
        let owner = ask.document.baton.as_deref().map(|baton| node_of(baton).unwrap_or_default());
        match owner {
            Some(owner) if owner != self.site.node().name().as_str() => {
                if ask.forwarded {
                    return Err(Refusal::lost("the stream's node goes by another name now"));
                }
                return self.on_its_stream(&ask, owner).await;
            }
            Some(_) => match self.here(&ask).await? {
                Answer::Done(response) => Ok(response),
                Answer::Primary(texts) => self.at_primary(&ask, texts).await,
            },
            None => {
                if !wanted.wait(&*self.site, &ask.db, &self.settings).await? && !self.gate.now().is_open() {
                    return self.at_primary(&ask, Vec::new()).await;
                }
                match self.here(&ask).await? {
                    Answer::Done(response) => Ok(response),
                    Answer::Primary(texts) => self.at_primary(&ask, texts).await,
                }
            }
        }
    }

    /// Lets this node's engine do it; it says itself where it needs the primary.
    async fn here(&self, ask: &Ask) -> Result<Answer, Refusal> {
        let new = ask.document.baton.is_none();
        // A stream that has begun to write is waited for by a planned move, see `follow_moves`.
        let inside = if ask.right == SqlRight::Write { self.gate.enter() } else { None };
        let exists = self.site.exists(&ask.db);
        let primary = inside.is_some() || (!new && self.gate.now().primary);
        let here = match (primary, exists) {
            (true, false) if self.settings.create => Here::Creates,
            (true, _) => Here::Writes,
            (false, _) => Here::Reads,
        };
        if !exists && here != Here::Creates {
            // Another node may have it by now, or make it.
            return if !primary && !ask.forwarded {
                Ok(Answer::Primary(Vec::new()))
            } else {
                let why =
                    format!("database {} does not exist (sql.create lets clients make databases)", ask.db);
                Err(Refusal::new(StatusCode::NOT_FOUND, "DATABASE_NOT_FOUND", why))
            };
        }
        let response = self.engine.send(ask.for_engine(here)?).await?;
        if response.status() == StatusCode::MISDIRECTED_REQUEST {
            let body = collect(response).await?;
            let texts = serde_json::from_slice(&body).unwrap_or_default();
            return Ok(Answer::Primary(texts));
        }
        Ok(Answer::Done(done_by(response, self.site.node().name().as_str())))
    }

    /// Sends a request to where its stream is.
    async fn on_its_stream(&self, ask: &Ask, owner: &str) -> Result<Response, Refusal> {
        let node = self.site.locate(owner.to_owned()).await.map_err(Refusal::lost)?;
        let request = ask.for_node(&node.authority, ask.kind, ask.document.body.clone())?;
        match self.remote.send(request).await {
            Ok(response) => Ok(done_by(response, &node.name)),
            Err(Failed::Unsent(why)) => Err(Refusal::lost(format!("node {owner} cannot be reached: {why}"))),
            Err(Failed::Unknown(why)) => Err(Refusal::unknown(format!("node {owner} broke off: {why}"))),
        }
    }

    /// Sends a request to the primary, which may be this node by now; waits for one where there is none.
    async fn at_primary(&self, ask: &Ask, texts: Vec<StoredText>) -> Result<Response, Refusal> {
        if ask.forwarded {
            let why = "this node is not primary";
            return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, "NOT_PRIMARY", why));
        }
        let deadline = Instant::now() + self.settings.primary_timeout;
        loop {
            let why = match self.try_primary(ask, &texts).await? {
                Ok(response) => return Ok(response),
                Err(why) => why,
            };
            if Instant::now() >= deadline {
                return Err(Refusal::unavailable(why));
            }
            let mut gate = self.gate.watch();
            let _changed_or_not = tokio::time::timeout(LOOK_AGAIN, gate.changed()).await;
        }
    }

    /// One attempt; `Err` inside says why it may be done again.
    async fn try_primary(
        &self,
        ask: &Ask,
        texts: &[StoredText],
    ) -> Result<Result<Response, String>, Refusal> {
        if self.gate.now().is_open() && ask.document.baton.is_none() {
            return Ok(match self.here(ask).await? {
                Answer::Done(response) => Ok(response),
                Answer::Primary(_) => Err("the primary is being moved".to_owned()),
            });
        }
        let Some(primary) = self.site.node().primary() else {
            return Ok(Err("no primary is known".to_owned()));
        };
        if primary.name == self.site.node().name().as_str() {
            return Ok(Err("this node is about to be primary, or is no more".to_owned()));
        }
        let node = match self.site.address_of(&primary) {
            Ok(node) => node,
            Err(why) => return Ok(Err(why)),
        };
        let baton = match texts {
            [] => None,
            texts => match self.carry(ask, &node, texts).await? {
                Ok(baton) => Some(baton),
                Err(why) => return Ok(Err(why)),
            },
        };
        let body = ask.document.with_baton(baton.as_deref())?;
        match self.remote.send(ask.for_node(&node.authority, ask.kind, body)?).await {
            Ok(response) if response.status() == StatusCode::MISDIRECTED_REQUEST => {
                Ok(Err(format!("node {} is not primary any more", node.name)))
            }
            Ok(response) => Ok(Ok(done_by(response, &node.name))),
            Err(Failed::Unsent(why)) => {
                Ok(Err(format!("the primary {} cannot be reached: {why}", node.name)))
            }
            Err(Failed::Unknown(why)) => {
                Err(Refusal::unknown(format!("the primary {} broke off: {why}", node.name)))
            }
        }
    }

    /// Stores the texts of a stream on a new one on another node, and gives its baton.
    async fn carry(
        &self,
        ask: &Ask,
        node: &NodeAddress,
        texts: &[StoredText],
    ) -> Result<Result<String, String>, Refusal> {
        let request = ask.for_node(&node.authority, Kind::Pipeline, storing(texts)?)?;
        match self.remote.send(request).await {
            Ok(response) if response.status() == StatusCode::OK => {
                let body = collect(response).await?;
                Ok(baton_of(&body).ok_or_else(|| format!("node {} gave no baton", node.name)))
            }
            Ok(response) => Ok(Err(format!("node {} answers {}", node.name, response.status()))),
            // Nothing is written yet.
            Err(Failed::Unsent(why) | Failed::Unknown(why)) => Ok(Err(why)),
        }
    }

    /// While the primary is being moved, and when it has gone, no transaction of ours holds it up: those that have written
    /// and wait for their clients are rolled back. Ends with the node.
    pub async fn follow_moves(&self) {
        let mut gate = self.gate.watch();
        let mut was_primary = false;
        loop {
            let now = *gate.borrow_and_update();
            if now.primary && now.pauses > 0 {
                // Most end by themselves.
                let over = gate.wait_for(|state| state.pauses == 0 || !state.primary);
                if tokio::time::timeout(MOVE_GRACE, over).await.is_err() {
                    self.abort().await;
                    if gate.wait_for(|state| state.pauses == 0).await.is_err() {
                        return;
                    }
                }
                continue;
            }
            if was_primary && !now.primary {
                self.abort().await;
            }
            was_primary = now.primary;
            if gate.changed().await.is_err() {
                return;
            }
        }
    }

    async fn abort(&self) {
        let request = Request::builder().method(Method::POST).uri(format!("http://engine{ABORT_PATH}"));
        if let Ok(request) = request.body(Full::new(Bytes::new())) {
            self.engine.send_if_running(request).await;
        }
    }
}

async fn collect(response: hyper::Response<Incoming>) -> Result<Bytes, Refusal> {
    let body = response.into_body().collect().await;
    Ok(body.map_err(|error| Refusal::unavailable(format!("an answer broke off: {error}")))?.to_bytes())
}

/// The answer as the client gets it, with the name of the node that did it.
fn done_by(response: hyper::Response<Incoming>, node: &str) -> Response {
    let mut response = response.map(Body::new);
    if let Ok(value) = HeaderValue::try_from(node) {
        // Another node has said so itself.
        response.headers_mut().entry(NODE_HEADER).or_insert(value);
    }
    response
}
