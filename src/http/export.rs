//! `GET /v1/databases/{name}/export`: a consistent copy, streamed.

use std::ops::ControlFlow;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use super::problem::Problem;
use super::{Api, ExportSink};
use crate::db::SnapshotHeader;
use crate::store::StoreError;
use crate::types::DbName;

/// Chunks between the thread that reads the disk and the network.
const CHUNKS_IN_FLIGHT: usize = 4;

struct Outgoing {
    header: Option<oneshot::Sender<SnapshotHeader>>,
    chunks: mpsc::Sender<Result<Bytes, StoreError>>,
}

impl ExportSink for Outgoing {
    fn begin(&mut self, header: SnapshotHeader) {
        // Nobody to tell: the client is gone, as the next chunk will show.
        let _ = self.header.take().map(|sender| sender.send(header));
    }

    fn chunk(&mut self, bytes: Bytes) -> ControlFlow<()> {
        match self.chunks.blocking_send(Ok(bytes)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}

pub(super) async fn export(api: Arc<dyn Api>, name: DbName) -> Result<Response, Problem> {
    let (header, begun) = oneshot::channel();
    let (chunks, body) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let reader = {
        let (api, chunks) = (api.clone(), chunks.clone());
        tokio::task::spawn_blocking(move || {
            let failures = chunks.clone();
            let result = api.export(&name, &mut Outgoing { header: Some(header), chunks });
            if let Err(error) = result {
                // Breaks the body off where it has begun; otherwise it is the answer.
                let _ = failures.blocking_send(Err(error));
            }
        })
    };
    drop(chunks);
    let mut body = body;
    let Ok(header) = begun.await else {
        let failure = body.recv().await;
        return Err(match failure {
            Some(Err(error)) => Problem::of(&error, api.overview().primary.as_ref()),
            _ => {
                let why = match reader.await {
                    Ok(()) => "it gave nothing".to_owned(),
                    Err(error) => error.to_string(),
                };
                Problem::of(&StoreError::Fatal(format!("export ended early: {why}")), None)
            }
        });
    };
    let size_bytes = header.commit.bytes(header.page_size);
    let mut response = Body::from_stream(ReceiverStream::new(body)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.sqlite3"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size_bytes));
    if let Ok(pos) = HeaderValue::try_from(header.pos.to_string()) {
        headers.insert("skein-pos", pos);
    }
    Ok(response)
}
