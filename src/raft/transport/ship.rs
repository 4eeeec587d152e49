//! Large change sets on their way to the other voters, before the entries that name them.

use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::client::{Network, PeerClient};
use super::wire;
use crate::io::blobs::{BlobStore, BlobWriter};
use crate::ltx::BlobRef;
use crate::raft::types::Peer;

/// Bytes of one message.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces between the disk and the network.
const PIECES_IN_FLIGHT: usize = 4;

/// One voter receives a blob; ends when it holds it durably, or with the reason why it does not.
pub(in crate::raft) type Sending = BoxFuture<'static, Result<(), String>>;

/// The way of blobs to other voters.
pub(in crate::raft) trait BlobSender: Send + Sync {
    /// Sends a blob to voter `to`.
    fn send(&self, to: u64, peer: &Peer, blobs: Arc<BlobStore>, blob: BlobRef) -> Sending;
}

impl BlobSender for Network {
    fn send(&self, to: u64, peer: &Peer, blobs: Arc<BlobStore>, blob: BlobRef) -> Sending {
        let peer = self.bulk_client(to, peer);
        Box::pin(async move { send(peer, blobs, blob).await.map_err(|status| status.message().to_owned()) })
    }
}

/// Has a blob sent to other voters and returns when `need` of them hold it durably; the others go on receiving.
///
/// # Errors
/// Where too few can be reached; the text names the last reason.
pub(in crate::raft) async fn ship(others: Vec<Sending>, need: usize) -> Result<(), String> {
    let (told, mut results) = mpsc::channel(others.len().max(1));
    for sending in others {
        let told = told.clone();
        tokio::spawn(async move {
            // Nobody listening: enough others have it.
            let _ = told.send(sending.await).await;
        });
    }
    drop(told);
    let (mut held, mut last) = (0, "no other voter is known".to_owned());
    while held < need {
        match results.recv().await {
            Some(Ok(())) => held += 1,
            Some(Err(why)) => last = why,
            None => return Err(format!("a large change set reached {held} of {need} other voters: {last}")),
        }
    }
    Ok(())
}

async fn send(mut peer: PeerClient, blobs: Arc<BlobStore>, blob: BlobRef) -> Result<(), Status> {
    let mut client = peer.connection().map_err(|error| Status::unavailable(error.to_string()))?;
    let (sender, pieces) = mpsc::channel(PIECES_IN_FLIGHT);
    let reading = tokio::task::spawn_blocking(move || read(&blobs, blob, &sender));
    let request = peer.route().request(ReceiverStream::new(pieces));
    client.put_blob(request).await?;
    match reading.await {
        Ok(read) => read.map_err(|error| Status::internal(error.to_string())),
        Err(_) => Err(Status::unavailable("the node is shutting down")),
    }
}

fn read(blobs: &BlobStore, blob: BlobRef, pieces: &mpsc::Sender<wire::BlobPiece>) -> std::io::Result<()> {
    let mut file = blobs.open_blob((blob.digest, blob.size_bytes))?;
    let mut piece = wire::BlobPiece { digest: blob.digest, size_bytes: blob.size_bytes, data: Bytes::new() };
    loop {
        let mut data = Vec::with_capacity(PIECE_BYTES);
        Read::by_ref(&mut file).take(PIECE_BYTES as u64).read_to_end(&mut data)?;
        if data.is_empty() && piece.digest == 0 {
            return Ok(());
        }
        piece.data = data.into();
        if pieces.blocking_send(std::mem::take(&mut piece)).is_err() {
            // The receiver says why.
            return Ok(());
        }
    }
}

/// Stores a blob that another voter sends.
pub(super) async fn receive(
    mut pieces: Streaming<wire::BlobPiece>,
    blobs: Arc<BlobStore>,
) -> Result<(), Status> {
    let empty = || Status::invalid_argument("a blob without a name");
    let first = pieces.next().await.ok_or_else(empty)??;
    let key = (first.digest, first.size_bytes);
    if blobs.contains(key) {
        return Ok(());
    }
    let mut writer = blobs.create().map_err(failed)?;
    let mut received = 0;
    let mut data = first.data;
    loop {
        received += data.len() as u64;
        if received > key.1 {
            return Err(Status::invalid_argument("a blob is longer than its name says"));
        }
        writer = store(writer, data).await?;
        match pieces.next().await {
            Some(piece) => data = piece?.data,
            None => break,
        }
    }
    let kept = tokio::task::spawn_blocking(move || blobs.keep(writer, key)).await;
    kept.map_err(|_| Status::unavailable("the node is shutting down"))?.map_err(failed)
}

async fn store(mut writer: BlobWriter, data: Bytes) -> Result<BlobWriter, Status> {
    let written = tokio::task::spawn_blocking(move || writer.write_all(&data).map(|()| writer)).await;
    written.map_err(|_| Status::unavailable("the node is shutting down"))?.map_err(failed)
}

fn failed(error: std::io::Error) -> Status {
    match error.kind() {
        std::io::ErrorKind::InvalidData => Status::invalid_argument(error.to_string()),
        _ => Status::internal(format!("storing a blob: {error}")),
    }
}
