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
/// Size and LTX file checksum (the last 8 bytes) are compared with the name here; the content is checked against that
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
    let (mut size, mut tail) = (0u64, [0u8; 8]);
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
        keep_tail(&mut tail, &chunk);
        sink.write_all(&chunk).map_err(failed)?;
    }
    if size != blob.size_bytes || u64::from_be_bytes(tail) != blob.digest {
        return Err(StreamError::Invalid(format!("blob {blob} has another size ({size} bytes) or checksum")));
    }
    sink.keep(blob).map_err(failed)
}

/// The last 8 bytes of everything seen: an LTX file ends with its checksum.
fn keep_tail(tail: &mut [u8; 8], chunk: &[u8]) {
    let last = &chunk[chunk.len().saturating_sub(8)..];
    tail.rotate_left(last.len());
    tail[8 - last.len()..].copy_from_slice(last);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_same_however_the_bytes_are_cut() {
        let data: Vec<u8> = (0..40).collect();
        for cut in 1..=40 {
            let mut tail = [0; 8];
            data.chunks(cut).for_each(|chunk| keep_tail(&mut tail, chunk));
            assert_eq!(tail, data[32..], "chunks of {cut}");
        }
    }
}
