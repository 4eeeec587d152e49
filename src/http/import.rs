//! `PUT /v1/databases/{name}`: a database file becomes a database's content, as one transaction.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{mpsc, oneshot};

use super::Api;
use super::problem::Problem;
use crate::db::DbError;
use crate::store::StoreError;
use crate::types::DbName;

/// Parts between the network and the thread that writes the disk.
const PARTS_IN_FLIGHT: usize = 4;
/// Of a refused body this much is read, so that the client hears why instead of a broken connection.
const DRAIN_BYTES_MAX: usize = 64 << 20;
/// And for this long.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

enum Part {
    Bytes(Bytes),
    End,
}

/// Imports what `body` brings. A client that `waits` (`Expect: 100-continue`) sends nothing before it is asked to.
pub(super) async fn import(api: Arc<dyn Api>, name: DbName, body: Body, waits: bool) -> Result<(), Problem> {
    let overview = api.overview();
    if !overview.is_primary {
        if !waits {
            // The answer does not wait for the rest, which is read beside it.
            tokio::spawn(drain(body.into_data_stream()));
        }
        return Err(Problem::not_primary(overview.primary.as_ref()));
    }
    let mut body = body.into_data_stream();
    let result = receive(&api, name, &mut body).await;
    if result.is_err() {
        drain(body).await;
    }
    result
}

async fn receive(api: &Arc<dyn Api>, name: DbName, body: &mut BodyDataStream) -> Result<(), Problem> {
    let (parts, received) = mpsc::channel(PARTS_IN_FLIGHT);
    let (answer, answered) = oneshot::channel();
    let writer = {
        let api = api.clone();
        tokio::task::spawn_blocking(move || write(&*api, &name, received, answer))
    };
    let mut broken_off = None;
    loop {
        let part = match body.next().await {
            Some(Ok(bytes)) => Part::Bytes(bytes),
            Some(Err(error)) => {
                broken_off = Some(error);
                break;
            }
            None => Part::End,
        };
        let ended = matches!(part, Part::End);
        // A writer that is gone has answered.
        if parts.send(part).await.is_err() || ended {
            break;
        }
    }
    drop(parts);
    if let Some(error) = broken_off {
        return Err(Problem::bad_request(format!("the body is incomplete, nothing was changed: {error}")));
    }
    let written = match writer.await {
        Ok(written) => written,
        Err(error) => Err(StoreError::Fatal(format!("import ended early: {error}"))),
    };
    let result = match written {
        Err(error) => Err(error),
        Ok(()) => match answered.await {
            Ok(result) => result.map_err(StoreError::from),
            Err(_) => Err(StoreError::Fatal("import was given up while the node ended".into())),
        },
    };
    result.map_err(|error| Problem::of(&error, api.overview().primary.as_ref()))
}

/// Writes what comes; the import's fate goes to `answer` once it is finished.
fn write(
    api: &dyn Api,
    name: &DbName,
    mut parts: mpsc::Receiver<Part>,
    answer: oneshot::Sender<Result<(), DbError>>,
) -> Result<(), StoreError> {
    let mut import = api.import(name)?;
    let mut offset = 0u64;
    while let Some(part) = parts.blocking_recv() {
        match part {
            Part::Bytes(bytes) => {
                import.write_at(offset, &bytes)?;
                offset += bytes.len() as u64;
            }
            Part::End if offset == 0 => {
                return Err(StoreError::Invalid(format!(
                    "database {name}: the body is empty; send a SQLite database file"
                )));
            }
            Part::End => {
                // Nobody waits any more: the client is gone, the import stands.
                import.finish(Box::new(move |result| drop(answer.send(result))));
                return Ok(());
            }
        }
    }
    Err(StoreError::Invalid(format!("database {name}: the body is incomplete, nothing was changed")))
}

/// Reads what a client still sends, within limits.
async fn drain(mut body: BodyDataStream) {
    let reading = async {
        let mut bytes = 0;
        while let Some(Ok(part)) = body.next().await {
            bytes += part.len();
            if bytes > DRAIN_BYTES_MAX {
                break;
            }
        }
    };
    // However it goes: the answer stands.
    let _ = tokio::time::timeout(DRAIN_TIME_MAX, reading).await;
}
