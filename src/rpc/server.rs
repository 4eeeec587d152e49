use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptorLayer;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::accept::{Elsewhere, accept};
use super::cluster::cluster_service;
use super::compress::Compressor;
use super::wire::replication_server::{Replication, ReplicationServer};
use super::{MESSAGE_BYTES_MAX, convert, status::to_status, wire};
use crate::ltx::BlobRef;
use crate::raft::RaftServer;
use crate::security::{GREETING_MAX, Peering};
use crate::store::ClusterControl;
use crate::stream::{FollowSession, Globs, Serving, SnapshotPiece, StreamError};
use crate::types::{Checksum, DbName, LogIndex};

/// Messages between a thread that reads the disk and the network.
const MESSAGES_IN_FLIGHT: usize = 4;
/// Checksums a peer may send in one message.
const CHECKSUMS_MAX: usize = 65536;
/// How long streams have to end when the node does.
const GRACE: Duration = Duration::from_secs(2);

/// The gRPC service in front of [`Serving`].
pub struct ReplicationService {
    serving: Arc<Serving>,
}

/// What a node serves to others besides the stream.
#[derive(Default)]
pub struct Services {
    /// Raft, where it is a voter.
    pub raft: Option<RaftServer>,
    /// What is asked of the cluster as a whole, with the cluster's id.
    pub cluster: Option<(String, Arc<dyn ClusterControl>)>,
}

/// Everything a node serves to others.
pub fn routes(serving: Arc<Serving>, services: Services) -> Routes {
    let service = ReplicationServer::new(ReplicationService { serving: serving.clone() })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let mut routes = Routes::new(service);
    if let Some(raft) = services.raft {
        routes = routes.add_service(raft);
    }
    if let Some((cluster, control)) = services.cluster {
        routes = routes.add_service(cluster_service(cluster, control, serving));
    }
    routes
}

/// Serves `routes` on `listener` until `shutdown`, then gives open streams two seconds to end. Other connections go
/// `elsewhere`. Only those are let in that `peering` believes.
///
/// # Errors
/// Where the listener fails.
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    elsewhere: Elsewhere,
    peering: Peering,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (sender, connections) = mpsc::channel(64);
    let check = peering.check_token();
    tokio::spawn(accept(listener, peering, sender, elsewhere, shutdown.clone()));
    let incoming = ReceiverStream::new(connections).map(Ok::<_, std::io::Error>);
    let served = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .max_concurrent_streams(1024)
        .http2_max_header_list_size(16 << 10)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .layer(InterceptorLayer::new(check))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
    tokio::select! {
        served = served => served,
        () = async { shutdown.cancelled().await; tokio::time::sleep(GRACE).await } => Ok(()),
    }
}

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Replication for ReplicationService {
    async fn identify(&self, _: Request<wire::IdentifyRequest>) -> Result<Response<wire::Identity>, Status> {
        Ok(Response::new(convert::identity_to_wire(self.serving.identity())))
    }

    async fn describe(&self, _: Request<wire::DescribeRequest>) -> Result<Response<wire::NodeFacts>, Status> {
        let source = self.serving.source().clone();
        let facts = tokio::task::spawn_blocking(move || source.facts()).await.ok().flatten();
        let facts = facts.ok_or_else(|| Status::unavailable("this node is starting"))?;
        Ok(Response::new(convert::facts_to_wire(facts)))
    }

    type FollowStream = Outgoing<wire::FollowFrame>;

    async fn follow(
        &self,
        request: Request<Streaming<wire::FollowMessage>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let peer = request.remote_addr();
        let mut messages = request.into_inner();
        let first = greeting(&mut messages).await?;
        let Some(wire::follow_message::Kind::Hello(hello)) = first.kind else {
            return Err(Status::invalid_argument("the first message of Follow must be Hello"));
        };
        let (hello, zstd) = convert::hello_from_wire(hello).map_err(|error| to_status(&error))?;
        tracing::info!(node = %hello.name, from = %hello.from, peer = %peer_text(peer), zstd, "a node follows");
        let session = self.serving.follow(hello).map_err(|error| to_status(&error))?;
        let compressor = match zstd {
            true => Some(Compressor::new().map_err(|error| Status::internal(error.to_string()))?),
            false => None,
        };
        let ended = CancellationToken::new();
        tokio::spawn(read_acks(messages, session.acknowledge(), ended.clone()));
        let frames = futures::stream::unfold(Some((session, ended)), |state| async move {
            let (mut session, ended) = state?;
            let frames = next_frames(&mut session, &ended).await?;
            let state = frames.is_ok().then_some((session, ended));
            Some((frames, state))
        });
        Ok(Response::new(Box::pin(encode_frames(frames, compressor))))
    }

    type FetchBlobStream = Outgoing<wire::BlobChunk>;

    async fn fetch_blob(
        &self,
        request: Request<wire::FetchBlobRequest>,
    ) -> Result<Response<Self::FetchBlobStream>, Status> {
        let wire::FetchBlobRequest { digest, size_bytes } = request.into_inner();
        let blob = BlobRef { digest, size_bytes };
        let permit = self.serving.copies().clone().acquire_owned().await;
        let source = self.serving.source().clone();
        let (sender, receiver) = mpsc::channel(MESSAGES_IN_FLIGHT);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut emit = |data| sender.blocking_send(Ok(wire::BlobChunk { data })).is_ok();
            let sent = crate::stream::open_blob(&*source, blob)
                .and_then(|reader| crate::stream::send_blob(blob, reader, &mut emit));
            report(sent, &sender);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type ListDatabasesStream = Outgoing<wire::DatabaseList>;

    async fn list_databases(
        &self,
        request: Request<wire::ListDatabasesRequest>,
    ) -> Result<Response<Self::ListDatabasesStream>, Status> {
        let globs = Globs::new(request.into_inner().globs)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let serving = self.serving.clone();
        let listing = tokio::task::spawn_blocking(move || serving.list(&globs))
            .await
            .map_err(|_| to_status(&StreamError::ShuttingDown))?
            .map_err(|error| to_status(&error))?;
        let applied_index = listing.applied.get();
        let mut messages: Vec<_> = listing
            .databases
            .chunks(1000)
            .map(|part| wire::DatabaseList {
                applied_index,
                databases: part.iter().map(convert::listed_to_wire).collect(),
                ..wire::DatabaseList::default()
            })
            .collect();
        if let Some(list) = &listing.names {
            let names: Vec<_> = list.names.iter().map(convert::name_to_wire).collect();
            let part = |names: &[_]| wire::DatabaseList {
                applied_index,
                names: names.to_vec(),
                has_names: true,
                ..wire::DatabaseList::default()
            };
            messages.extend(names.chunks(1000).map(part));
            if names.is_empty() {
                messages.push(part(&[]));
            }
        }
        if messages.is_empty() {
            messages.push(wire::DatabaseList { applied_index, ..wire::DatabaseList::default() });
        }
        Ok(Response::new(Box::pin(futures::stream::iter(messages.into_iter().map(Ok)))))
    }

    type SnapshotStream = Outgoing<wire::SnapshotFrame>;

    async fn snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotRequest>>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let mut messages = request.into_inner();
        let first = greeting(&mut messages).await?;
        let name = DbName::new(&first.name).map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.serving.check_ready().map_err(|error| to_status(&error))?;
        let (checksums, mut theirs) = mpsc::channel(1);
        tokio::spawn(read_checksums(first.checksums, messages, checksums));
        let permit = self.serving.copies().clone().acquire_owned().await;
        let source = self.serving.source().clone();
        let (sender, receiver) = mpsc::channel(MESSAGES_IN_FLIGHT);
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut part = Vec::new().into_iter();
            let mut have = || {
                loop {
                    if let Some(checksum) = part.next() {
                        return Ok(Some(Checksum::new(checksum)));
                    }
                    match theirs.blocking_recv() {
                        Some(Ok(next)) => part = Vec::into_iter(next),
                        Some(Err(error)) => return Err(error),
                        None => return Ok(None),
                    }
                }
            };
            let mut emit = |piece| sender.blocking_send(Ok(piece_to_wire(piece, first.zstd))).is_ok();
            let sent = crate::stream::send_snapshot(&*source, &name, &mut have, &mut emit);
            report(sent, &sender);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// The first message of a stream that a peer must begin.
async fn greeting<T>(messages: &mut Streaming<T>) -> Result<T, Status> {
    match tokio::time::timeout(GREETING_MAX, messages.message()).await {
        Ok(Ok(Some(first))) => Ok(first),
        Ok(Ok(None)) => Err(Status::invalid_argument("the stream ended before its first message")),
        Ok(Err(status)) => Err(status),
        Err(_) => Err(Status::deadline_exceeded("the first message did not come in time")),
    }
}

fn peer_text(peer: Option<SocketAddr>) -> String {
    peer.map_or_else(|| "unknown".into(), |peer| peer.to_string())
}

/// Tells the receiver why nothing more comes, if something went wrong.
fn report<T>(sent: Result<(), StreamError>, sender: &mpsc::Sender<Result<T, Status>>) {
    if let Err(error) = sent {
        // A receiver that left does not want to know.
        let _ = sender.blocking_send(Err(to_status(&error)));
    }
}

async fn read_acks(
    mut messages: Streaming<wire::FollowMessage>,
    acknowledge: impl Fn(LogIndex),
    ended: CancellationToken,
) {
    while let Ok(Some(message)) = messages.message().await {
        match message.kind {
            Some(wire::follow_message::Kind::Ack(ack)) => acknowledge(LogIndex::new(ack.applied_index)),
            // Fields of a later version.
            None => {}
            Some(wire::follow_message::Kind::Hello(_)) => break,
        }
    }
    ended.cancel();
}

async fn next_frames(
    session: &mut FollowSession,
    ended: &CancellationToken,
) -> Option<Result<Vec<wire::FollowFrame>, Status>> {
    tokio::select! {
        biased;
        () = ended.cancelled() => None,
        frame = session.next() => match frame? {
            Ok(frame) => Some(Ok(convert::frame_to_wire(frame))),
            Err(error) => Some(Err(to_status(&error))),
        }
    }
}

fn encode_frames(
    frames: impl Stream<Item = Result<Vec<wire::FollowFrame>, Status>> + Send,
    mut compressor: Option<Compressor>,
) -> impl Stream<Item = Result<wire::FollowFrame, Status>> + Send {
    let single = frames.flat_map(|frames| {
        let (frames, error) = match frames {
            Ok(frames) => (frames, None),
            Err(status) => (Vec::new(), Some(Err(status))),
        };
        futures::stream::iter(frames.into_iter().map(Ok).chain(error))
    });
    single.map(move |frame| match (&mut compressor, frame) {
        (Some(compressor), Ok(frame)) => {
            compressor.wrap(&frame).map_err(|error| Status::internal(format!("compressing: {error}")))
        }
        (_, frame) => frame,
    })
}

async fn read_checksums(
    first: Vec<u64>,
    mut messages: Streaming<wire::SnapshotRequest>,
    checksums: mpsc::Sender<Result<Vec<u64>, StreamError>>,
) {
    let mut part = Ok(first);
    loop {
        if let Ok(sums) = &part
            && sums.len() > CHECKSUMS_MAX
        {
            part = Err(StreamError::Invalid(format!("more than {CHECKSUMS_MAX} checksums in one message")));
        }
        let failed = part.is_err();
        if checksums.send(part).await.is_err() || failed {
            return;
        }
        part = match messages.message().await {
            Ok(Some(message)) => Ok(message.checksums),
            Ok(None) => return,
            Err(status) => Err(StreamError::Unavailable(status.to_string())),
        };
    }
}

fn piece_to_wire(piece: SnapshotPiece, zstd: bool) -> wire::SnapshotFrame {
    use wire::snapshot_frame::Kind;
    let kind = match piece {
        SnapshotPiece::Header(header) => Kind::Header(convert::header_to_wire(header)),
        SnapshotPiece::Pages(pages) => {
            let pages =
                pages.into_iter().map(|(pgno, data)| convert::page_to_wire(pgno, data, zstd)).collect();
            Kind::Pages(wire::Pages { pages })
        }
        SnapshotPiece::End(pages_sent) => Kind::End(wire::SnapshotEnd { pages_sent }),
    };
    wire::SnapshotFrame { kind: Some(kind) }
}
