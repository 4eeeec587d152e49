//! `GET /v1/events`: what happens on this node, as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::{Api, DatabaseDocument, PrimaryDocument};
use crate::store::{PrimaryInfo, StoreEvent};
use crate::telemetry::metrics::EVENTS_LOST;
use crate::types::Timestamp;

/// `init` first (the state that the following events change), then events until the client goes or the node ends.
///
/// A reader that is too slow gets `lost {events}` followed by a new `init`.
pub(super) fn events(api: Arc<dyn Api>, shutdown: CancellationToken) -> Response {
    // Subscribed before the state is read: what happens in between comes twice, never not at all.
    let receiver = api.events();
    let first = vec![init(&*api)];
    let later = stream::unfold((api, receiver), |(api, mut receiver)| async move {
        let batch = next(&*api, &mut receiver).await?;
        Some((batch, (api, receiver)))
    });
    let events = stream::iter([first])
        .chain(later)
        .flat_map(stream::iter)
        .take_until(shutdown.cancelled_owned())
        .map(|(name, data)| Ok::<_, Infallible>(Event::default().event(name).data(data.to_string())));
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

type Message = (&'static str, Value);

async fn next(api: &dyn Api, receiver: &mut broadcast::Receiver<StoreEvent>) -> Option<Vec<Message>> {
    match receiver.recv().await {
        Ok(event) => Some(vec![message(event)]),
        Err(RecvError::Lagged(events)) => {
            metrics::counter!(EVENTS_LOST).increment(events);
            Some(vec![("lost", json!({ "events": events })), init(api)])
        }
        Err(RecvError::Closed) => None,
    }
}

fn init(api: &dyn Api) -> Message {
    let overview = api.overview();
    let databases: Vec<_> = api.databases().into_iter().map(DatabaseDocument::from).collect();
    let data = json!({
        "node": overview.name.as_str(),
        "role": overview.role.to_string(),
        "primary": primary(overview.primary),
        "index": overview.index.get(),
        "databases": databases,
    });
    ("init", data)
}

fn message(event: StoreEvent) -> Message {
    match event {
        StoreEvent::Tx { db, pos, commit, page_size, timestamp_ms, index } => {
            let data = json!({
                "db": db.as_str(),
                "txid": format!("{:016x}", pos.txid_or_zero()),
                "checksum": pos.checksum.to_string(),
                "commit": commit,
                "page_size": page_size.get(),
                "timestamp": Timestamp::from_ms(timestamp_ms).to_string(),
                "index": index.get(),
            });
            ("tx", data)
        }
        StoreEvent::Dropped(db) => ("drop", json!({ "db": db.as_str() })),
        StoreEvent::Primary(info) => ("primary", json!({ "primary": primary(info) })),
    }
}

fn primary(info: Option<PrimaryInfo>) -> Option<PrimaryDocument> {
    info.map(PrimaryDocument::from)
}
