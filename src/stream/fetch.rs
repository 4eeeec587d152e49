use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;

use super::relay::relay;
use super::{CHUNK_BYTES, ReplicaTarget, StreamError, Upstream};
use crate::ltx::BlobRef;

/// Chunks on their way from the network to the disk.
const CHUNKS_IN_FLIGHT: usize = 4;

/// Fetches a large change set and stores it; memory in use stays at a few chunks.
///
/// Size and LTX file checksum (the last 8 bytes) are compared with the name when it is kept; the content is checked against that
/// checksum when it is applied.
///
/// # Errors
/// [`StreamError::NotFound`] where the upstream node does not have it, [`StreamError::Invalid`] where it sends another.
pub(super) async fn fetch_blob(
    upstream: Arc<dyn Upstream>,
    target: Arc<dyn ReplicaTarget>,
    blob: BlobRef,
) -> Result<(), StreamError> {
    let chunks = upstream.fetch_blob(blob).await?.map(move |chunk| match chunk {
        Ok(chunk) if chunk.len() > CHUNK_BYTES => {
            Err(StreamError::Invalid(format!("blob {blob} comes in chunks above {CHUNK_BYTES} bytes")))
        }
        chunk => chunk,
    });
    relay(chunks, CHUNKS_IN_FLIGHT, move |receiver| store_blob(&*target, blob, receiver)).await
}

fn store_blob(
    target: &dyn ReplicaTarget,
    blob: BlobRef,
    mut chunks: mpsc::Receiver<Option<Bytes>>,
) -> Result<(), StreamError> {
    let failed = |source| StreamError::Io { what: format!("storing blob {blob}"), source };
    let mut sink = target.create_blob().map_err(failed)?;
    let mut size = 0u64;
    loop {
        let chunk = chunks.blocking_recv();
        let Some(chunk) =
            chunk.ok_or_else(|| StreamError::Unavailable(format!("blob {blob} was cut off")))?
        else {
            break;
        };
        size += chunk.len() as u64;
        if size > blob.size_bytes {
            return Err(StreamError::Invalid(format!("blob {blob} is longer than its name says")));
        }
        sink.write_all(&chunk).map_err(failed)?;
    }
    sink.keep(blob).map_err(|source| match source.kind() {
        std::io::ErrorKind::InvalidData => StreamError::Invalid(source.to_string()),
        _ => failed(source),
    })
}
