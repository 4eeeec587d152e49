//! `GET /events`: what happens on this node, one JSON object a line, as LiteFS tells it.
//!
//! Source: LiteFS's `Event` in store.go, as its Go client reads it.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::Api;
use crate::store::{PrimaryInfo, StoreEvent};
use crate::telemetry::metrics::EVENTS_LOST;
use crate::types::Timestamp;

/// One line; the fields stand in LiteFS's order.
#[derive(Serialize)]
struct Line {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    db: Option<String>,
    data: Data,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data {
    #[serde(rename_all = "camelCase")]
    Primary {
        is_primary: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        hostname: Option<String>,
    },
    #[serde(rename_all = "camelCase")]
    Tx {
        #[serde(rename = "txID")]
        txid: String,
        post_apply_checksum: String,
        page_size: u32,
        commit: u32,
        timestamp: String,
    },
    /// Not in LiteFS, which closes the connection of a slow reader without a word.
    Lost { events: u64 },
    /// Not in LiteFS, where a database is dropped by a transaction that leaves no pages.
    Drop {},
}

/// `init` first, then events until the client goes or the node ends. A reader that is too slow gets `lost`, and `init`
/// anew.
pub(super) fn events(api: Arc<dyn Api>, shutdown: CancellationToken) -> Response {
    // Subscribed before the state is read: what happens in between comes twice, never not at all.
    let receiver = api.events();
    let first = vec![primary("init", &*api, api.overview().primary)];
    let later = stream::unfold((api, receiver), |(api, mut receiver)| async move {
        let batch = next(&*api, &mut receiver).await?;
        Some((batch, (api, receiver)))
    });
    let lines = stream::iter([first])
        .chain(later)
        .flat_map(stream::iter)
        .take_until(shutdown.cancelled_owned())
        .map(|line| serde_json::to_vec(&line).map(with_newline));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

fn with_newline(mut line: Vec<u8>) -> Bytes {
    line.push(b'\n');
    line.into()
}

async fn next(api: &dyn Api, receiver: &mut broadcast::Receiver<StoreEvent>) -> Option<Vec<Line>> {
    match receiver.recv().await {
        Ok(event) => Some(vec![line(api, event)]),
        Err(RecvError::Lagged(events)) => {
            metrics::counter!(EVENTS_LOST).increment(events);
            let lost = Line { kind: "lost", db: None, data: Data::Lost { events } };
            Some(vec![lost, primary("init", api, api.overview().primary)])
        }
        Err(RecvError::Closed) => None,
    }
}

fn line(api: &dyn Api, event: StoreEvent) -> Line {
    match event {
        StoreEvent::Tx { db, pos, commit, page_size, timestamp_ms, .. } => {
            let data = Data::Tx {
                txid: format!("{:016x}", pos.txid_or_zero()),
                post_apply_checksum: pos.checksum.to_string(),
                page_size: page_size.get(),
                commit,
                timestamp: Timestamp::from_ms(timestamp_ms).to_string(),
            };
            Line { kind: "tx", db: Some(db.to_string()), data }
        }
        StoreEvent::Dropped(db) => Line { kind: "drop", db: Some(db.to_string()), data: Data::Drop {} },
        StoreEvent::Primary(info) => primary("primaryChange", api, info),
    }
}

fn primary(kind: &'static str, api: &dyn Api, info: Option<PrimaryInfo>) -> Line {
    let is_primary = info.as_ref().is_some_and(|info| info.name == api.overview().name.as_str());
    let hostname = info.map(|info| info.host().to_owned());
    Line { kind, db: None, data: Data::Primary { is_primary, hostname } }
}
