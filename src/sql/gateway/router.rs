//! The routes, and how a request is read.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::SqlSite;
use super::ask::Ask;
use super::document::{Document, Kind, version_1};
use super::engine_link::EngineLink;
use super::freshness::Wanted;
use super::refusal::Refusal;
use super::remote::Remote;
use super::service::Service;
use super::target::database;
use crate::config::SqlSettings;
use crate::proxy::WriteGate;
use crate::security::SqlGrant;
use crate::telemetry::metrics::{SQL_REQUESTS, SQL_SECONDS};

/// SQL over HTTP on one node.
#[derive(Clone)]
pub struct Gateway(Arc<Service>);

impl Gateway {
    /// For this node; `gate` is what planned moves of the primary close.
    pub fn new(site: Arc<dyn SqlSite>, settings: SqlSettings, gate: WriteGate) -> Self {
        let (engine, remote) = (EngineLink::new(site.clone()), Remote::new(site.clone()));
        Self(Arc::new(Service { site, settings, gate, engine, remote }))
    }

    /// Lets go of the engine, which ends then.
    pub async fn disconnect(self) {
        self.0.engine.disconnect().await;
    }

    /// Keeps transactions from holding up a move of the primary; ends with the node.
    pub async fn follow_moves(self) {
        self.0.follow_moves().await;
    }
}

/// The routes; their requests carry the [`SqlGrant`] of their token.
pub fn router(gateway: Gateway) -> Router {
    let database_missing = || async {
        let why = "the database's name is missing in the path: end the client's URL with a slash, /dev/NAME/";
        Refusal::new(StatusCode::NOT_FOUND, "DATABASE_NOT_FOUND", why)
    };
    let mut router = Router::new()
        .route("/v2", get(|| async { StatusCode::OK }))
        .route("/v3", get(|| async { StatusCode::OK }))
        .route("/dev/{db}/v2", get(|| async { StatusCode::OK }))
        .route("/dev/{db}/v3", get(|| async { StatusCode::OK }));
    for (path, kind) in [
        ("/v2/pipeline", Kind::Pipeline),
        ("/v3/pipeline", Kind::Pipeline),
        ("/v3/cursor", Kind::Cursor),
        ("/v1/execute", Kind::Execute),
        ("/v1/batch", Kind::Batch),
    ] {
        let of_host = move |gateway, grant, headers, body| handle(kind, None, gateway, grant, headers, body);
        let of_path = move |Path(db): Path<String>, gateway, grant, headers, body| {
            handle(kind, Some(db), gateway, grant, headers, body)
        };
        router = router
            .route(path, post(of_host))
            .route(&format!("/dev/{{db}}{path}"), post(of_path))
            .route(&format!("/dev{path}"), post(database_missing));
    }
    router.with_state(gateway)
}

async fn handle(
    kind: Kind,
    db: Option<String>,
    State(gateway): State<Gateway>,
    Extension(grant): Extension<SqlGrant>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let start = Instant::now();
    let answered = answer(kind, db.as_deref(), &gateway.0, &grant, &headers, body).await;
    let mut response = answered.unwrap_or_else(IntoResponse::into_response);
    let status = response.status().as_u16().to_string();
    metrics::counter!(SQL_REQUESTS, "kind" => kind.name(), "status" => status).increment(1);
    metrics::histogram!(SQL_SECONDS, "kind" => kind.name()).record(start.elapsed().as_secs_f64());
    // Answers are of one client and one moment.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn answer(
    kind: Kind,
    db: Option<&str>,
    service: &Service,
    grant: &SqlGrant,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let db = database(&*service.site, db, headers, service.settings.db.as_ref())?;
    let right = grant.of(&db).ok_or_else(|| {
        Refusal::new(StatusCode::FORBIDDEN, "BLOCKED", format!("the token is not for the database {db}"))
    })?;
    let limit = usize::try_from(service.settings.request_bytes).unwrap_or(usize::MAX);
    let body = Limited::new(body, limit).collect().await.map_err(|error| {
        match error.downcast_ref::<LengthLimitError>() {
            Some(_) => {
                let why = format!("the request's body is larger than {limit} bytes (sql.request_bytes)");
                Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "REQUEST_TOO_LARGE", why)
            }
            None => Refusal::invalid(format!("the request's body broke off: {error}")),
        }
    })?;
    let document = Document::read(kind, body.to_bytes())?;
    let wanted = Wanted::of(headers, &db, document.seen, &service.settings)?;
    let (authorization, forwarded) = Ask::authorization_of(headers);
    let ask = Ask { kind, db, right, document, authorization, forwarded };
    let response = service.answer(ask, wanted).await?;
    match kind {
        Kind::Execute | Kind::Batch if response.status() == StatusCode::OK => as_version_1(response).await,
        _ => Ok(response),
    }
}

async fn as_version_1(response: Response) -> Result<Response, Refusal> {
    let (mut head, body) = response.into_parts();
    let body =
        body.collect().await.map_err(|error| Refusal::unknown(format!("the answer broke off: {error}")))?;
    let failed = |failure| Refusal { status: StatusCode::BAD_REQUEST, failure };
    let body = version_1(&body.to_bytes()).map_err(failed)?;
    head.headers.remove(header::CONTENT_LENGTH);
    Ok(Response::from_parts(head, Body::from(body)))
}
