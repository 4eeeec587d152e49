//! `GET /v1/databases/{name}/wait`: until this node has a transaction.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::problem::Problem;
use super::{Api, DatabaseDocument};
use crate::types::{DbName, Txid};

/// How long is waited where the client does not say.
const TIMEOUT_DEFAULT_MS: u64 = 30_000;
/// The longest a client may wait.
const TIMEOUT_MAX_MS: u64 = 3_600_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitQuery {
    txid: Option<String>,
    timeout_ms: Option<u64>,
}

/// Answers with the database once it has the transaction, and with 504 at the deadline. Without `txid`: the first.
pub(super) async fn wait(
    api: Arc<dyn Api>,
    name: DbName,
    query: WaitQuery,
    shutdown: CancellationToken,
) -> Result<DatabaseDocument, Problem> {
    let txid = match &query.txid {
        Some(text) => match text.bytes().all(|byte| byte == b'0') && text.len() == 16 {
            // Before the first transaction: where every database is from the beginning.
            true => return now(&*api, &name),
            false => text.parse::<Txid>().map_err(|error| Problem::bad_request(error.to_string()))?,
        },
        None => Txid::FIRST,
    };
    let timeout_ms = query.timeout_ms.unwrap_or(TIMEOUT_DEFAULT_MS);
    if timeout_ms > TIMEOUT_MAX_MS {
        return Err(Problem::bad_request(format!("timeout_ms {timeout_ms} is above {TIMEOUT_MAX_MS}")));
    }
    let deadline = Instant::now() + Duration::from_millis(timeout_ms);
    let reached = tokio::select! {
        reached = api.wait_for(name.clone(), txid, deadline) => reached,
        () = shutdown.cancelled() => {
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "this node is ending; ask another one"));
        }
    };
    if reached {
        return now(&*api, &name);
    }
    let at = match api.database(&name) {
        Some(db) => format!("it is at {}", db.pos),
        None => "it does not exist here".to_owned(),
    };
    Err(Problem::timeout(format!("database {name} has not reached {txid} within {timeout_ms} ms: {at}")))
}

fn now(api: &dyn Api, name: &DbName) -> Result<DatabaseDocument, Problem> {
    api.database(name).map(DatabaseDocument::from).ok_or_else(|| Problem::no_database(name))
}
