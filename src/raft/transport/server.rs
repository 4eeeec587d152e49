use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use openraft::storage::{Snapshot, SnapshotMeta};
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptorLayer;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::ship::receive;
use super::wire::raft_server::{Raft, RaftServer as Generated};
use super::{MESSAGE_BYTES_MAX, MISMATCH, RUN, Route, wire};
use crate::io::blobs::BlobStore;
use crate::raft::codec;
use crate::raft::first_committed::FirstCommitted;
use crate::raft::handle::RaftHandle;
use crate::raft::incarnations::{Incarnations, Mismatch};
use crate::raft::types::position;
use crate::security::{CheckToken, MovedStream};
use crate::types::LogIndex;

/// The gRPC service in front of a node's Raft.
pub type RaftServer = Generated<RaftService>;

/// What answers the other voters.
pub struct RaftService {
    cluster: String,
    id: u64,
    raft: Arc<OnceLock<RaftHandle>>,
    blobs: Arc<BlobStore>,
    settled: watch::Receiver<LogIndex>,
    committed: FirstCommitted,
    incarnations: Arc<Incarnations>,
    heard: Arc<Heard>,
}

/// When another voter last spoke as leader.
#[derive(Debug)]
pub struct Heard {
    last: Mutex<Instant>,
    again: Notify,
}

impl Default for Heard {
    fn default() -> Self {
        Self { last: Mutex::new(Instant::now()), again: Notify::new() }
    }
}

impl Heard {
    /// How long ago that was, or the start.
    pub fn silence(&self) -> Duration {
        self.last().elapsed()
    }

    /// Returns when a leader speaks the next time.
    pub async fn next(&self) {
        self.again.notified().await;
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Instant> {
        self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn note(&self) {
        *self.last() = Instant::now();
        self.again.notify_waiters();
    }
}

impl RaftService {
    #[allow(clippy::too_many_arguments, reason = "each is another thing the service answers from")]
    /// The service of node `id`; until `raft` is set it answers that the node is starting.
    pub(in crate::raft) fn server(
        cluster: String,
        id: u64,
        raft: Arc<OnceLock<RaftHandle>>,
        blobs: Arc<BlobStore>,
        settled: watch::Receiver<LogIndex>,
        committed: FirstCommitted,
        incarnations: Arc<Incarnations>,
        heard: Arc<Heard>,
    ) -> RaftServer {
        Generated::new(Self { cluster, id, raft, blobs, settled, committed, incarnations, heard })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn raft<T>(&self, request: &Request<T>) -> Result<(RaftHandle, Route), Status> {
        let route = self.route(request, false)?;
        let raft = self.raft.get().ok_or_else(|| Status::unavailable("this node is starting"))?;
        Ok((raft.clone(), route))
    }

    /// Who speaks, where this node is meant and both run on all that they have promised.
    fn route<T>(&self, request: &Request<T>, introduces: bool) -> Result<Route, Status> {
        let route = Route::of(request.metadata())?;
        if route.cluster != self.cluster {
            return Err(Status::failed_precondition(format!(
                "this node belongs to cluster {}, not to {}",
                self.cluster, route.cluster
            )));
        }
        if route.to != self.id {
            return Err(Status::failed_precondition(format!(
                "node {:016x} is meant, and this is {:016x}: an address of the cluster has changed hands",
                route.to, self.id
            )));
        }
        self.incarnations.check(route.from, route.sender, route.expected, introduces).map_err(
            |mismatch| {
                let (word, text) = match mismatch {
                    Mismatch::SenderOutdated => ("sender", "the sender runs on an older copy of its data"),
                    Mismatch::ReceiverOutdated => ("receiver", "this node runs on an older copy of its data"),
                    Mismatch::ReceiverUnknown => ("unknown", "this node was started again"),
                };
                let own = self.incarnations.own();
                let mut status = Status::failed_precondition(text);
                status.metadata_mut().insert(MISMATCH, MetadataValue::from_static(word));
                if let Ok(run) = format!("{} {:016x}", own.number, own.run).try_into() {
                    status.metadata_mut().insert(RUN, run);
                }
                status
            },
        )?;
        self.incarnations.store_soon();
        Ok(route)
    }
}

/// Serves connections that other voters have made for it on the present thread until `stop`.
pub(in crate::raft) async fn serve_direct(
    service: RaftServer,
    check: CheckToken,
    connections: mpsc::Receiver<MovedStream>,
    stop: CancellationToken,
) {
    let incoming = ReceiverStream::new(connections).filter_map(|stream| {
        let stream = stream.arrive().inspect_err(|error| tracing::warn!(%error, "a connection is lost"));
        std::future::ready(stream.ok().map(Ok::<_, std::io::Error>))
    });
    let served = Server::builder()
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .layer(InterceptorLayer::new(check))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "the server for voters ended");
    }
}

fn fatal(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("raft: {error}"))
}

#[tonic::async_trait]
impl Raft for RaftService {
    type AppendStream = Pin<Box<dyn Stream<Item = Result<wire::AppendResponse, Status>> + Send>>;

    async fn append(
        &self,
        request: Request<Streaming<wire::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let (raft, _) = self.raft(&request)?;
        // A message that breaks the protocol ends the stream, like a connection that breaks.
        let (heard, committed) = (self.heard.clone(), self.committed.clone());
        let requests = request.into_inner().scan((), move |(), message| {
            heard.note();
            let request = message.and_then(wire::append_from);
            if let Ok(request) = &request {
                committed.heard(request.leader_commit.map_or(0, |id| position(id.index)));
            }
            if let Err(status) = &request {
                tracing::debug!(%status, "a stream of entries ends");
            }
            std::future::ready(request.ok())
        });
        let answers = raft.stream_append(requests).map(|answer| match answer {
            Ok(answer) => Ok(wire::appended(&answer)),
            Err(error) => Err(fatal(error)),
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn vote(
        &self,
        request: Request<wire::proto::VoteRequest>,
    ) -> Result<Response<wire::proto::VoteResponse>, Status> {
        let (raft, _) = self.raft(&request)?;
        let message = request.into_inner();
        let pre_vote = message.pre_vote;
        let ballot = wire::ballot_from(message)?;
        let answer = if pre_vote { raft.pre_vote(ballot).await } else { raft.vote(ballot).await };
        Ok(Response::new(wire::voted(&answer.map_err(fatal)?)))
    }

    async fn install_snapshot(
        &self,
        request: Request<wire::SnapshotRequest>,
    ) -> Result<Response<wire::SnapshotResponse>, Status> {
        let (raft, _) = self.raft(&request)?;
        let message = request.into_inner();
        let vote = wire::vote_from(message.vote)?;
        let last_membership = codec::decode_members(&message.members)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let last_log_id = message.last.map(wire::log_id_from);
        if last_log_id.is_some_and(|last| last.leader_id.term > vote.leader_id.term) {
            return Err(Status::invalid_argument("a snapshot behind the term of its sender"));
        }
        let meta = SnapshotMeta { last_log_id, last_membership };
        let installed = raft.install_full_snapshot(vote, Snapshot { meta, snapshot: () }).await;
        let vote = Some(wire::vote(&installed.map_err(fatal)?.vote));
        Ok(Response::new(wire::SnapshotResponse { vote }))
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferRequest>,
    ) -> Result<Response<wire::TransferResponse>, Status> {
        let (raft, _) = self.raft(&request)?;
        let transfer = wire::transfer_from(request.into_inner())?;
        let answer = raft.handle_transfer_leader(transfer).await.map_err(fatal)?;
        Ok(Response::new(wire::transferred(&answer)))
    }

    async fn put_blob(
        &self,
        request: Request<Streaming<wire::BlobPiece>>,
    ) -> Result<Response<wire::PutBlobResponse>, Status> {
        self.raft(&request)?;
        receive(request.into_inner(), self.blobs.clone()).await?;
        Ok(Response::new(wire::PutBlobResponse {}))
    }

    async fn greet(
        &self,
        request: Request<wire::GreetRequest>,
    ) -> Result<Response<wire::GreetResponse>, Status> {
        self.route(&request, true)?;
        let incarnations = self.incarnations.clone();
        let stored = tokio::task::spawn_blocking(move || incarnations.store()).await;
        stored.map_err(fatal)?.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(wire::GreetResponse {}))
    }

    async fn drop_blob(
        &self,
        request: Request<wire::DropBlobRequest>,
    ) -> Result<Response<wire::DropBlobResponse>, Status> {
        self.raft(&request)?;
        let blob = request.into_inner();
        self.blobs.refuse_copy((blob.digest, blob.size_bytes));
        Ok(Response::new(wire::DropBlobResponse {}))
    }

    async fn await_applied(
        &self,
        request: Request<wire::AwaitAppliedRequest>,
    ) -> Result<Response<wire::AwaitAppliedResponse>, Status> {
        self.raft(&request)?;
        let (mut settled, index) = (self.settled.clone(), LogIndex::new(request.into_inner().index));
        let ended = settled.wait_for(|settled| *settled >= index).await.is_err();
        if ended { Err(fatal("it ended")) } else { Ok(Response::new(wire::AwaitAppliedResponse {})) }
    }
}
