//! What a database was: its transactions, copies of earlier points, going back to one.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::context::{Context, Name, db_name};
use super::problem::Problem;
use super::{Api, DatabaseDocument};
use crate::db::DbError;
use crate::history::{History, HistoryError, Point, Transaction, Transactions};
use crate::store::StoreError;
use crate::types::{DbName, PointInTime};

/// Transactions in an answer where the client does not say,
const LIMIT_DEFAULT: usize = 100;
/// and at most.
const LIMIT_MAX: usize = 10_000;
/// Bytes that are read and written at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks between the thread that reads the disk and the network.
const CHUNKS_IN_FLIGHT: usize = 4;

/// `GET /v1/databases/{name}/history`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct HistoryDocument {
    /// The database.
    pub name: String,
    /// The node: each has its own.
    pub node: String,
    /// The oldest point: transaction, 16 hex digits; `null` where there is none.
    pub oldest_txid: Option<String>,
    /// When the database was like that, RFC 3339.
    pub oldest_time: Option<String>,
    /// Transactions, the newest first.
    pub transactions: Vec<TransactionDocument>,
    /// Whether there are older ones than these.
    pub more: bool,
    /// When it is not known what the database was, the newest first.
    pub gaps: Vec<GapDocument>,
}

/// One transaction, or several that are kept together.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TransactionDocument {
    /// Its number, 16 hex digits.
    pub txid: String,
    /// The first of those kept together with it; itself where it is alone.
    pub first_txid: String,
    /// When it was committed, RFC 3339.
    pub time: String,
    /// Pages it changed.
    pub pages: usize,
    /// Size of the database after it, in pages.
    pub size_pages: u32,
    /// Checksum of the database after it.
    pub checksum: String,
}

/// A time of which nothing is known.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GapDocument {
    /// Since when, RFC 3339.
    pub from: String,
    /// Until when; `null` where it lasts.
    pub to: Option<String>,
    /// Why.
    pub why: String,
}

/// `POST /v1/databases/{name}/rewind`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewindRequest {
    /// A transaction, a time, or how long ago.
    pub to: String,
}

/// `POST /v1/databases/{name}/branch`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BranchRequest {
    /// Name of the new database.
    pub name: String,
    /// The point that it begins as; the newest where there is none.
    pub at: Option<String>,
}

/// `GET /v1/databases/{name}/diff?from=..&to=..`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DiffDocument {
    /// The position at one point, `txid/checksum`,
    pub from: String,
    /// and at the other.
    pub to: String,
    /// Tables with a page that differs, in the table or in an index of it.
    pub tables: Vec<String>,
    /// Numbers of the pages that differ.
    pub pages: Vec<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AtQuery {
    at: Option<String>,
}

impl AtQuery {
    /// The point that is asked for, if one is.
    pub(super) fn point(&self) -> Result<Option<PointInTime>, Problem> {
        self.at.as_deref().map(parse).transpose()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiffQuery {
    from: String,
    to: String,
}

fn parse(text: &str) -> Result<PointInTime, Problem> {
    text.parse().map_err(|error: crate::types::InvalidPointInTime| Problem::bad_request(error.to_string()))
}

fn history_of(api: &Arc<dyn Api>) -> Result<Arc<History>, Problem> {
    api.history().ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, "no local history is kept here: history.keep is 0s")
    })
}

fn problem(error: HistoryError) -> Problem {
    match error {
        HistoryError::NotFound(why) => Problem::new(StatusCode::NOT_FOUND, why),
        error => Problem::of(&error.into(), None),
    }
}

/// Runs what reads the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HistoryError> + Send + 'static,
) -> Result<T, Problem> {
    let ended = |_| Err(HistoryError::NotFound("given up while the node ended".into()));
    tokio::task::spawn_blocking(work).await.unwrap_or_else(ended).map_err(problem)
}

fn transaction(one: &Transaction) -> TransactionDocument {
    TransactionDocument {
        txid: one.range.max().to_string(),
        first_txid: one.range.min().to_string(),
        time: one.time.to_string(),
        pages: one.pages,
        size_pages: one.commit.get(),
        checksum: one.checksum.to_string(),
    }
}

pub(super) async fn list(
    State(context): State<Context>,
    name: Name,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<HistoryDocument>, Problem> {
    let name = db_name(name)?;
    let Query(query) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    if limit > LIMIT_MAX {
        return Err(Problem::bad_request(format!("limit {limit} is above {LIMIT_MAX}")));
    }
    let (history, db) = (history_of(&context.api)?, name.clone());
    let Transactions { transactions, more, oldest, gaps } =
        blocking(move || history.transactions(&db, limit)).await?;
    Ok(Json(HistoryDocument {
        name: name.to_string(),
        node: context.api.overview().name.to_string(),
        oldest_txid: oldest.map(|oldest| oldest.txid.to_string()),
        oldest_time: oldest.map(|oldest| oldest.time.to_string()),
        transactions: transactions.iter().map(transaction).collect(),
        more,
        gaps: gaps
            .into_iter()
            .map(|gap| GapDocument {
                from: gap.from.to_string(),
                to: gap.to.map(|to| to.to_string()),
                why: gap.why,
            })
            .collect(),
    }))
}

/// A copy of an earlier point, streamed.
pub(super) async fn export(api: Arc<dyn Api>, name: DbName, at: PointInTime) -> Result<Response, Problem> {
    let history = history_of(&api)?;
    let point = blocking(move || history.point(&name, at)).await?;
    let header = point.header();
    let (chunks, body) = mpsc::channel::<Result<Bytes, StoreError>>(CHUNKS_IN_FLIGHT);
    tokio::task::spawn_blocking(move || {
        let failures = chunks.clone();
        let sent = in_chunks(&point, |_, chunk| {
            let gone = |_| HistoryError::NotFound("the client is gone".into());
            chunks.blocking_send(Ok(chunk)).map_err(gone)
        });
        if let Err(error) = sent {
            // The body breaks off: nobody takes it for a copy.
            let _ = failures.blocking_send(Err(error.into()));
        }
    });
    let mut response = Body::from_stream(ReceiverStream::new(body)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.sqlite3"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(header.bytes()));
    if let Ok(pos) = HeaderValue::try_from(header.pos.to_string()) {
        headers.insert("skein-pos", pos);
    }
    Ok(response)
}

/// Gives the pages of a point in pieces, with the offset of each; the last only where all of them are right.
fn in_chunks(
    point: &Point,
    mut give: impl FnMut(u64, Bytes) -> Result<(), HistoryError>,
) -> Result<(), HistoryError> {
    let (mut chunk, mut offset) = (BytesMut::with_capacity(CHUNK_BYTES), 0);
    point.for_each_page(|_, page| {
        chunk.extend_from_slice(page);
        if chunk.len() >= CHUNK_BYTES {
            let full = chunk.split().freeze();
            offset += full.len() as u64;
            give(offset - full.len() as u64, full)?;
        }
        Ok(())
    })?;
    match chunk.is_empty() {
        true => Ok(()),
        false => give(offset, chunk.freeze()),
    }
}

/// The database becomes what it was, by a new transaction.
pub(super) async fn rewind(
    State(context): State<Context>,
    name: Name,
    request: Result<Json<RewindRequest>, JsonRejection>,
) -> Result<Json<Option<DatabaseDocument>>, Problem> {
    let name = db_name(name)?;
    let Json(request) = request.map_err(|error| Problem::bad_request(error.body_text()))?;
    let at = parse(&request.to)?;
    become_point(&context.api, &name, &name, at).await
}

/// Another database begins as this one is, or was.
pub(super) async fn branch(
    State(context): State<Context>,
    name: Name,
    request: Result<Json<BranchRequest>, JsonRejection>,
) -> Result<Json<Option<DatabaseDocument>>, Problem> {
    let name = db_name(name)?;
    let Json(request) = request.map_err(|error| Problem::bad_request(error.body_text()))?;
    let new = DbName::new(&request.name).map_err(|error| Problem::bad_request(error.to_string()))?;
    if context.api.database(&new).is_some() {
        return Err(Problem::new(StatusCode::CONFLICT, format!("database {new} exists; drop it first")));
    }
    let at = match request.at.as_deref().map(parse).transpose()? {
        Some(at) => at,
        None => {
            let db = context.api.database(&name).ok_or_else(|| Problem::no_database(&name))?;
            let newest = db.pos.txid.ok_or_else(|| {
                Problem::new(StatusCode::CONFLICT, format!("database {name} has no content to branch from"))
            })?;
            PointInTime::Txid(newest)
        }
    };
    become_point(&context.api, &name, &new, at).await
}

async fn become_point(
    api: &Arc<dyn Api>,
    from: &DbName,
    to: &DbName,
    at: PointInTime,
) -> Result<Json<Option<DatabaseDocument>>, Problem> {
    let overview = api.overview();
    if !overview.is_primary {
        return Err(Problem::not_primary(overview.primary.as_ref()));
    }
    let (history, db) = (history_of(api)?, from.clone());
    let point = blocking(move || history.point(&db, at)).await?;
    let (answer, answered) = oneshot::channel::<Result<(), DbError>>();
    let (writer, name) = (api.clone(), to.clone());
    let staged = tokio::task::spawn_blocking(move || {
        let mut import = writer.import(&name)?;
        in_chunks(&point, |offset, chunk| Ok(import.write_at(offset, &chunk)?))?;
        // Nobody waits any more: the client is gone, the import stands.
        import.finish(Box::new(move |result| drop(answer.send(result))));
        Ok::<_, StoreError>(())
    });
    let ended = |_| Err(StoreError::Fatal("given up while the node ended".into()));
    let mut result = staged.await.unwrap_or_else(ended);
    if result.is_ok() {
        result = match answered.await {
            Ok(result) => result.map_err(StoreError::from),
            Err(_) => Err(StoreError::Fatal("given up while the node ended".into())),
        };
    }
    result.map_err(|error| Problem::of(&error, api.overview().primary.as_ref()))?;
    Ok(Json(api.database(to).map(DatabaseDocument::from)))
}

/// The pages in which two points differ.
pub(super) async fn diff(
    State(context): State<Context>,
    name: Name,
    query: Result<Query<DiffQuery>, QueryRejection>,
) -> Result<Json<DiffDocument>, Problem> {
    let name = db_name(name)?;
    let Query(query) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    let (from, to) = (parse(&query.from)?, parse(&query.to)?);
    let history = history_of(&context.api)?;
    let document = blocking(move || {
        let (from, to) = (history.point(&name, from)?, history.point(&name, to)?);
        let pages = from.differing_pages(&to)?;
        let mut tables = from.tables_with(&pages)?;
        tables.append(&mut to.tables_with(&pages)?);
        Ok(DiffDocument {
            tables: tables.into_iter().collect(),
            from: from.header().pos.to_string(),
            to: to.header().pos.to_string(),
            pages: pages.iter().map(|pgno| pgno.get()).collect(),
        })
    });
    Ok(Json(document.await?))
}
