use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{MatchedPath, Query, RawQuery, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::context::{Context, Name, db_name};
use super::problem::Problem;
use super::wait::WaitQuery;
use super::{
    Api, DatabaseDocument, Overview, backup, cluster, dashboard, documents, events, export, gauges, history,
    import, litefs_events, verify, wait,
};
use crate::store::StoreError;
use crate::telemetry::Exposition;
use crate::telemetry::metrics::{HTTP_REQUESTS, HTTP_SECONDS};

/// The routes of a node's API, and `more` beside them.
pub fn router(
    api: Arc<dyn Api>,
    exposition: Exposition,
    shutdown: CancellationToken,
    more: Router,
) -> Router {
    Router::new()
        .route("/", get(dashboard::dashboard))
        .route("/console", get(dashboard::console))
        .route("/v1/status", get(cluster::status))
        .route("/v1/databases", get(databases))
        .route("/v1/databases/{name}", get(one_database).put(put_database).delete(delete_database))
        .route("/v1/databases/{name}/export", get(export_database))
        .route("/v1/databases/{name}/wait", get(wait_database))
        .route("/v1/databases/{name}/newest", get(cluster::newest))
        .route("/v1/databases/{name}/check", get(verify::check))
        .route("/v1/databases/{name}/repair", post(verify::repair))
        .route("/v1/databases/{name}/history", get(history::list))
        .route("/v1/databases/{name}/rewind", post(history::rewind))
        .route("/v1/databases/{name}/branch", post(history::branch))
        .route("/v1/databases/{name}/diff", get(history::diff))
        .route("/v1/nodes", get(verify::nodes))
        .route("/v1/members", get(cluster::list_members).post(cluster::add_member))
        .route("/v1/members/{name}", delete(cluster::remove_member))
        .route("/v1/members/{name}/promote", post(cluster::promote_member))
        .route("/v1/members/{name}/demote", post(cluster::demote_member))
        .route("/v1/handoff", post(cluster::hand_off))
        .route("/v1/backup", get(backup::status))
        .route("/v1/events", get(watch_events))
        .route("/events", get(watch_litefs_events))
        .route("/metrics", get(show_metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness))
        .with_state(Context { api, exposition, shutdown })
        .merge(more)
        .fallback(|request: Request| async move {
            Problem::new(StatusCode::NOT_FOUND, format!("path {} does not exist", request.uri().path()))
        })
        .method_not_allowed_fallback(|request: Request| async move {
            let (method, path) = (request.method(), request.uri().path());
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not know the method {method}"))
        })
        .layer(middleware::from_fn(measure))
}

async fn measure(request: Request, next: Next) -> Response {
    // What no route matches counts as one, so that a metric has few values.
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.map_or_else(|| "other".to_owned(), |path| path.as_str().to_owned());
    let method = match *request.method() {
        Method::GET => "GET",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    };
    let start = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    metrics::counter!(HTTP_REQUESTS, "method" => method, "route" => route.clone(), "status" => status)
        .increment(1);
    metrics::histogram!(HTTP_SECONDS, "route" => route).record(start.elapsed().as_secs_f64());
    response
}

async fn databases(State(context): State<Context>) -> Json<Vec<DatabaseDocument>> {
    Json(context.api.databases().into_iter().map(DatabaseDocument::from).collect())
}

async fn one_database(State(context): State<Context>, name: Name) -> Result<Json<DatabaseDocument>, Problem> {
    let name = db_name(name)?;
    let db = context.api.database(&name).ok_or_else(|| Problem::no_database(&name))?;
    Ok(Json(db.into()))
}

async fn put_database(
    State(context): State<Context>,
    name: Name,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Option<DatabaseDocument>>, Problem> {
    let name = db_name(name)?;
    let waits =
        headers.get(header::EXPECT).is_some_and(|what| what.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    import::import(context.api.clone(), name.clone(), body, waits).await?;
    Ok(Json(context.api.database(&name).map(DatabaseDocument::from)))
}

async fn delete_database(State(context): State<Context>, name: Name) -> Result<StatusCode, Problem> {
    let name = db_name(name)?;
    let overview = context.api.overview();
    if !overview.is_primary {
        return Err(Problem::not_primary(overview.primary.as_ref()));
    }
    if context.api.database(&name).is_none() {
        return Err(Problem::no_database(&name));
    }
    let (answer, answered) = oneshot::channel();
    // Of one that is in no log yet the files are removed at once.
    let (api, db) = (context.api.clone(), name.clone());
    let dropping = move || api.drop_database(&db, Box::new(move |result| drop(answer.send(result))));
    let _asked = tokio::task::spawn_blocking(dropping).await;
    let result = match answered.await {
        Ok(result) => result.map_err(StoreError::from),
        Err(_) => Err(StoreError::Fatal("the drop was given up while the node ended".into())),
    };
    match result {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(Problem::of(&error, context.api.overview().primary.as_ref())),
    }
}

async fn export_database(
    State(context): State<Context>,
    name: Name,
    query: Result<Query<history::AtQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let name = db_name(name)?;
    let Query(query) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    match query.point()? {
        Some(at) => history::export(context.api, name, at).await,
        None => export::export(context.api, name).await,
    }
}

async fn wait_database(
    State(context): State<Context>,
    name: Name,
    query: Result<Query<WaitQuery>, QueryRejection>,
) -> Result<Json<DatabaseDocument>, Problem> {
    let name = db_name(name)?;
    let Query(query) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    Ok(Json(wait::wait(context.api, name, query, context.shutdown).await?))
}

async fn watch_events(State(context): State<Context>) -> Response {
    events::events(context.api, context.shutdown)
}

async fn watch_litefs_events(State(context): State<Context>) -> Response {
    litefs_events::events(context.api, context.shutdown)
}

async fn show_metrics(State(context): State<Context>) -> Response {
    // It counts files.
    let api = context.api.clone();
    let _observed = tokio::task::spawn_blocking(move || gauges::observe(&*api)).await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], context.exposition.render()).into_response()
}

async fn readiness(State(context): State<Context>, RawQuery(query): RawQuery) -> Response {
    let overview = context.api.overview();
    if query.is_some_and(|query| query.split('&').any(|part| part == "verbose" || part == "verbose=true")) {
        let status = if overview.ready.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        return (status, verbose(&context, &overview).await).into_response();
    }
    let warnings = context.api.backups().into_iter().filter_map(|backup| backup.warning).collect();
    readiness_line(overview, warnings).into_response()
}

/// The verdict, then a line for each thing that an operator may want to know; `/readyz?verbose`.
async fn verbose(context: &Context, overview: &Overview) -> String {
    let members = cluster::all_members(context).await;
    let details = cluster::details(context).await;
    let primary = overview.primary.as_ref().map_or("unknown", |primary| primary.name.as_str());
    let answering = members.iter().filter(|member| member.healthy).count();
    let or_ok = |what: &Result<(), String>| what.as_ref().err().cloned().unwrap_or_else(|| "ok".to_owned());
    let mut lines = vec![
        documents::verdict(overview, &members),
        format!("ready: {}", or_ok(&overview.ready)),
        format!("quorum: {}", or_ok(&overview.no_quorum.clone().map_or(Ok(()), Err))),
        format!("primary: {primary}"),
        format!("members: {answering} of {} healthy", members.len()),
        format!("version: {}", details.version),
        format!("uptime_s: {}", details.uptime.as_secs()),
        format!("passthrough: {}", if details.passthrough { "on" } else { "off" }),
    ];
    let backups = context.api.backups();
    lines.extend(backups.iter().map(|backup| match &backup.warning {
        Some(warning) => format!("backup: warning: {warning}"),
        None => format!("backup: {}: {}", backup.url, backup.state),
    }));
    lines.extend(context.api.databases().into_iter().filter(|db| !db.held_by.is_empty()).map(|db| {
        let pids: Vec<_> = db.held_by.iter().map(ToString::to_string).collect();
        format!("held: {}: open by pid {} through the mount of an earlier run", db.name, pids.join(", "))
    }));
    lines.extend(overview.copying.map(|copying| format!("copying: {copying}")));
    lines.extend(details.disk_free_bytes.map(|bytes| format!("disk_free_bytes: {bytes}")));
    lines.extend(
        details.certificate_left.map(|left| format!("certificate_days_left: {}", left.as_secs() / 86_400)),
    );
    lines.join("\n") + "\n"
}

fn readiness_line(overview: Overview, warnings: Vec<String>) -> Result<String, Problem> {
    match overview.ready {
        // Reading goes on.
        Ok(()) => {
            let verdict =
                overview.no_quorum.map_or_else(|| "ok".to_owned(), |why| format!("ok, for reading: {why}"));
            Ok(warnings
                .into_iter()
                .fold(verdict + "\n", |text, warning| format!("{text}warning: {warning}\n")))
        }
        Err(why) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, why)),
    }
}
