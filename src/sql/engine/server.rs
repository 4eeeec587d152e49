//! The engine's side of its connection to the daemon.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tower::ServiceExt;

use super::error::ABANDONED;
use super::interrupt::AbandonOnDrop;
use super::pool::Pool;
use super::session::{Allowed, Session};
use super::statement::Scope;
use super::streams::{Streams, Taken};
use super::{EngineOptions, cursor, pipeline, plan};
use crate::sql::hrana::{CursorRequest, Failure, PipelineAnswer, PipelineRequest, StreamRequest};

/// Does the requests of a stream; followed by the database's name.
pub const PIPELINE_PATH: &str = "/pipeline/";
/// Does a batch and sends its rows as they come.
pub const CURSOR_PATH: &str = "/cursor/";
/// Rolls back transactions that have written and wait for their clients.
pub const ABORT_PATH: &str = "/abort";
/// `read` or `write`: what the client may do.
pub const RIGHTS_HEADER: &str = "skein-rights";
/// There where this node is primary; `create` where it may make the database.
pub const WRITABLE_HEADER: &str = "skein-writable";
/// The transaction at which the database was when the answer was made, 16 hexadecimal digits.
pub const TXID_HEADER: &str = "skein-txid";

/// How often streams and connections are looked at.
const SWEEP: Duration = Duration::from_millis(500);
/// Chunks of a cursor's answer on their way to the client.
const CHUNKS_WAITING: usize = 4;
/// Requests of the daemon's at a time; more wait there.
const REQUESTS_MAX: u32 = 4096;

#[derive(Clone)]
struct Engine {
    options: Arc<EngineOptions>,
    pool: Arc<Pool>,
    streams: Arc<Streams>,
}

/// Why a request is not done at all.
struct Refused(Failure);

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match self.0.code.as_str() {
            "STREAM_EXPIRED" | "STREAM_BUSY" | "INVALID_REQUEST" => StatusCode::BAD_REQUEST,
            "SQLITE_CANTOPEN" => StatusCode::NOT_FOUND,
            "TOO_MANY_STREAMS" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        json(status, &self.0)
    }
}

fn json(status: StatusCode, document: &impl Serialize) -> Response {
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    match serde_json::to_vec(document) {
        Ok(body) => (status, kind, body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Serves the daemon on standard input until it closes it.
///
/// # Errors
/// Where standard input is no socket, or the connection breaks.
pub async fn serve_engine(options: EngineOptions) -> io::Result<()> {
    let socket = StdUnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    let socket = UnixStream::from_std(socket)?;
    let options = Arc::new(options);
    let engine = Engine {
        pool: Arc::new(Pool::new(options.clone())),
        streams: Streams::new(options.clone()),
        options,
    };
    tokio::spawn(sweep(engine.clone()));
    // The daemon ends it, in its order; a terminal's Ctrl-C comes to both.
    let (_int, _term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let router = Router::new()
        .route("/pipeline/{db}", post(do_pipeline))
        .route("/cursor/{db}", post(do_cursor))
        .route("/abort", post(do_abort))
        .layer(DefaultBodyLimit::disable())
        .with_state(engine);
    let service =
        router.map_request(|request: axum::http::Request<hyper::body::Incoming>| request.map(Body::new));
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(REQUESTS_MAX)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(service));
    served.await.map_err(io::Error::other)
}

async fn sweep(engine: Engine) {
    let mut due = tokio::time::interval(SWEEP);
    loop {
        let _now = due.tick().await;
        let (pool, streams) = (engine.pool.clone(), engine.streams.clone());
        // Closing and rolling back may wait for the daemon.
        let swept = tokio::task::spawn_blocking(move || {
            streams.expire();
            pool.close_idle();
        });
        let _panicked = swept.await;
    }
}

fn decode<T: DeserializeOwned>(body: &Bytes) -> Result<T, Failure> {
    serde_json::from_slice(body)
        .map_err(|error| Failure::new("INVALID_REQUEST", format!("the request's body: {error}")))
}

/// What a request says about its client and this node.
fn allowed(headers: &HeaderMap) -> (Allowed, bool) {
    let write = headers.get(RIGHTS_HEADER).is_some_and(|rights| rights == "write");
    let writable = headers.get(WRITABLE_HEADER);
    (Allowed { write, here: writable.is_some() }, write && writable.is_some_and(|how| how == "create"))
}

/// A request that is about to be done.
struct Begun {
    /// Its place among the streams; none where it ends its stream at once.
    taken: Option<Taken>,
    session: Session,
    allowed: Allowed,
    /// Ends the statement at work where the client goes.
    guard: AbandonOnDrop,
}

impl Engine {
    /// The stream of a request: the one its baton names, or a new one, which is remembered unless it `ends` at once.
    async fn begin(
        &self,
        db: &str,
        headers: &HeaderMap,
        baton: Option<&str>,
        ends: bool,
    ) -> Result<Begun, Failure> {
        let (allowed, create) = allowed(headers);
        let (taken, session) = match baton {
            Some(baton) => {
                let (taken, session) = self.streams.take(baton, db, allowed.write)?;
                (Some(taken), session)
            }
            None => {
                let taken = if ends { None } else { Some(self.streams.begin(db, allowed.write)?) };
                (taken, self.pool.session(db, create).await?)
            }
        };
        let guard = AbandonOnDrop::new(session.connection.interrupt.clone());
        Ok(Begun { taken, session, allowed, guard })
    }

    /// Whether requests may write where only the primary may; the time of the statements begins. Blocking: it compiles
    /// them.
    fn needs_primary(&self, session: &Session, allowed: Allowed, requests: &[StreamRequest]) -> bool {
        session.connection.interrupt.arm(self.options.statement_max);
        let elsewhere = allowed.write && !allowed.here && session.is_autocommit();
        elsewhere && !plan::reads_only(session, requests)
    }

    /// The transaction that the database is at, by the file that the mount has beside each.
    fn txid(&self, db: &str) -> Option<u64> {
        let path = self.options.mount.join(format!("{db}-pos"));
        let text = std::fs::read_to_string(path).ok()?;
        u64::from_str_radix(text.get(..16)?, 16).ok()
    }
}

/// The request needs the primary: what it takes along.
fn elsewhere(session: Session) -> Response {
    let texts = session.texts();
    session.end();
    json(StatusCode::MISDIRECTED_REQUEST, &texts)
}

async fn do_pipeline(
    State(engine): State<Engine>,
    Path(db): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refused> {
    let PipelineRequest { baton, requests } = decode(&body)?;
    let ends = matches!(requests.last(), Some(StreamRequest::Close {}));
    let Begun { taken, mut session, allowed, guard } =
        engine.begin(&db, &headers, baton.as_deref(), ends).await?;
    let at_work = engine.clone();
    let worked = tokio::task::spawn_blocking(move || {
        if at_work.needs_primary(&session, allowed, &requests) {
            return Err(Box::new(elsewhere(session)));
        }
        let scope = Scope { allowed, options: &at_work.options };
        let (mut results, closed) = pipeline::run(&mut session, scope, requests);
        let txid = at_work.txid(&db);
        pipeline::mark(&mut results, txid);
        let session = match closed {
            true => {
                session.end();
                None
            }
            false => Some(session),
        };
        Ok((results, session, txid))
    });
    let worked = worked.await.map_err(|error| Failure::new("INTERNAL", error.to_string()))?;
    guard.done();
    let (results, session, txid) = match worked {
        Ok(done) => done,
        Err(elsewhere) => return Ok(*elsewhere),
    };
    let baton = match session.zip(taken) {
        Some((session, taken)) => {
            let baton = taken.baton()?;
            taken.keep(session);
            Some(baton)
        }
        None => None,
    };
    let mut response = json(StatusCode::OK, &PipelineAnswer { baton, base_url: None, results });
    mark(&mut response, txid);
    Ok(response)
}

fn mark(response: &mut Response, txid: Option<u64>) {
    if let Some(Ok(value)) = txid.map(|txid| HeaderValue::try_from(format!("{txid:016x}"))) {
        response.headers_mut().insert(TXID_HEADER, value);
    }
}

async fn do_cursor(
    State(engine): State<Engine>,
    Path(db): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refused> {
    let CursorRequest { baton, batch } = decode(&body)?;
    let Begun { taken, mut session, allowed, guard } =
        engine.begin(&db, &headers, baton.as_deref(), false).await?;
    let (sender, chunks) = mpsc::channel(CHUNKS_WAITING);
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (runtime, at_work) = (tokio::runtime::Handle::current(), engine.clone());
    tokio::task::spawn_blocking(move || {
        let batch = [StreamRequest::Batch { batch }];
        if at_work.needs_primary(&session, allowed, &batch) {
            // Whoever asked has gone where it does not hear it.
            drop(begun.send(Some(elsewhere(session))));
            return;
        }
        let [StreamRequest::Batch { batch }] = batch else { return };
        let mut lines = cursor::Lines::new(sender, runtime, at_work.options.statement_max);
        let scope = Scope { allowed, options: &at_work.options };
        let baton = taken.as_ref().and_then(|taken| taken.baton().ok());
        if lines.head(baton).is_err() || begun.send(None).is_err() {
            return;
        }
        match cursor::run(&mut session, scope, &batch, &mut lines) {
            // Nobody has the baton.
            Err(failure) if failure.code == ABANDONED => return,
            Err(failure) => cursor::end_with(&mut lines, failure),
            Ok(()) => {}
        }
        // Before the last bytes: the client may go on at once.
        if let Some(taken) = taken {
            taken.keep(session);
        }
        let _gone = lines.flush();
    });
    match begins.await {
        Ok(None) => {}
        Ok(Some(elsewhere)) => {
            guard.done();
            return Ok(elsewhere);
        }
        Err(_) => return Err(Failure::new("INTERNAL", "the cursor ended before it began").into()),
    }
    let chunks = ReceiverStream::new(chunks).map(Ok::<_, io::Error>);
    // Lives as long as the body is wanted.
    let mut guard = Some(guard);
    let ended = tokio_stream::once(()).filter_map(move |()| {
        if let Some(a) = guard.take() {
            AbandonOnDrop::done(a)
        }
        None
    });
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"))];
    Ok((kind, Body::from_stream(chunks.chain(ended))).into_response())
}

async fn do_abort(State(engine): State<Engine>) -> StatusCode {
    let aborted = tokio::task::spawn_blocking(move || engine.streams.abort_writers());
    match aborted.await {
        Ok(()) => StatusCode::NO_CONTENT,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
