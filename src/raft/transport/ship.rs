//! Large change sets on their way to the other voters, before the entries that name them.

use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::client::{Network, PeerClient};
use super::wire;
use crate::io::blobs::{BlobStore, BlobWriter};
use crate::ltx::BlobRef;
use crate::raft::types::Peer;
use crate::types::LogIndex;

/// Bytes of one message.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces between the disk and the network.
const PIECES_IN_FLIGHT: usize = 4;

/// One voter does what it is asked to; ends when it has, or with the reason why it has not.
pub(in crate::raft) type Delivery = BoxFuture<'static, Result<(), String>>;

/// The way of large change sets to other voters.
pub(in crate::raft) trait BlobSender: Send + Sync {
    /// Sends a blob to voter `to`; it then holds it durably.
    fn send(&self, to: u64, peer: &Peer, blobs: Arc<BlobStore>, blob: BlobRef) -> Delivery;
    /// Has voter `to` remove a blob that no entry will ever name.
    fn drop_blob(&self, to: u64, peer: &Peer, blob: BlobRef) -> Delivery;
    /// Makes this node's run known to voter `to`, which has stored it then.
    fn greet(&self, to: u64, peer: &Peer) -> Delivery;
    /// Waits until the databases of node `to` have everything up to entry `index`.
    fn applied(&self, to: u64, peer: &Peer, index: LogIndex) -> Delivery;
}

impl BlobSender for Network {
    fn send(&self, to: u64, peer: &Peer, blobs: Arc<BlobStore>, blob: BlobRef) -> Delivery {
        let peer = self.bulk_client(to, peer);
        Box::pin(async move { send(peer, blobs, blob).await.map_err(|status| status.message().to_owned()) })
    }

    fn drop_blob(&self, to: u64, peer: &Peer, blob: BlobRef) -> Delivery {
        let mut peer = self.bulk_client(to, peer);
        Box::pin(async move {
            let mut client = peer.connection().map_err(|error| error.to_string())?;
            let message = wire::DropBlobRequest { digest: blob.digest, size_bytes: blob.size_bytes };
            let request = peer.request(message);
            client.drop_blob(request).await.map(drop).map_err(|status| status.message().to_owned())
        })
    }

    fn greet(&self, to: u64, peer: &Peer) -> Delivery {
        let mut peer = self.client(to, peer);
        Box::pin(async move {
            let mut client = peer.connection().map_err(|error| error.to_string())?;
            match client.greet(peer.request(wire::GreetRequest {})).await {
                // An older program, which knows nothing of runs.
                Err(status) if status.code() != Code::Unimplemented => {
                    peer.learn(&status);
                    Err(status.message().to_owned())
                }
                _ => Ok(()),
            }
        })
    }

    fn applied(&self, to: u64, peer: &Peer, index: LogIndex) -> Delivery {
        let mut peer = self.bulk_client(to, peer);
        Box::pin(async move {
            let mut client = peer.connection().map_err(|error| error.to_string())?;
            let request = peer.request(wire::AwaitAppliedRequest { index: index.get() });
            client.await_applied(request).await.map(drop).map_err(|status| status.message().to_owned())
        })
    }
}

async fn send(mut peer: PeerClient, blobs: Arc<BlobStore>, blob: BlobRef) -> Result<(), Status> {
    let mut client = peer.connection().map_err(|error| Status::unavailable(error.to_string()))?;
    let (sender, pieces) = mpsc::channel(PIECES_IN_FLIGHT);
    let reading = tokio::task::spawn_blocking(move || read(&blobs, blob, &sender));
    let request = peer.request(ReceiverStream::new(pieces));
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
