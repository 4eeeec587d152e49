use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use super::wire::raft_client::RaftClient;
use super::{AddressBook, MESSAGE_BYTES_MAX, MISMATCH, RUN, Route, wire};
use crate::raft::acks::{Acks, Outstanding};
use crate::raft::codec;
use crate::raft::incarnations::Incarnations;
use crate::raft::types::{Peer, TypeConfig, Vote};
use crate::security::{PeerChannel, Peering};

type Handle = openraft::type_config::alias::SnapshotOf<TypeConfig, ()>;

/// Makes clients of the other voters.
#[derive(Clone)]
pub(in crate::raft) struct Network {
    /// The cluster's id.
    pub cluster: String,
    /// This node.
    pub id: u64,
    /// Where others were found.
    pub book: AddressBook,
    /// How they are reached.
    pub peering: Peering,
    /// Who has answered this node as leader.
    pub acks: Acks,
    /// How long a peer may be silent before it counts as gone: an election timeout.
    pub patience: Duration,
    /// Which runs of which voters have been met.
    pub incarnations: Arc<Incarnations>,
}

/// A connection to one voter, made when it is first needed and again whenever it broke.
pub(in crate::raft) struct PeerClient {
    network: Network,
    to: u64,
    peer: Peer,
    connection: Option<(String, RaftClient<PeerChannel>)>,
    /// Whether the peer's Raft thread itself serves it.
    direct: bool,
}

impl Network {
    /// A client of node `id`, which the membership describes as `peer`.
    pub fn client(&self, id: u64, peer: &Peer) -> PeerClient {
        PeerClient { network: self.clone(), to: id, peer: peer.clone(), connection: None, direct: true }
    }

    /// The same for what is large: it must not keep the peer's Raft thread busy.
    pub fn bulk_client(&self, id: u64, peer: &Peer) -> PeerClient {
        PeerClient { direct: false, ..self.client(id, peer) }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerClient;

    /// Also those for heartbeats and snapshots get a connection of their own: entries must not hold them up.
    async fn new_client(&mut self, target: u64, node: &Peer) -> PeerClient {
        self.client(target, node)
    }
}

fn unreachable(error: &(impl std::error::Error + 'static)) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::new(error))
}

fn failed(status: Status) -> RPCError<TypeConfig> {
    match status.code() {
        Code::Unavailable | Code::FailedPrecondition | Code::InvalidArgument => unreachable(&status),
        _ => RPCError::Network(NetworkError::new(&status)),
    }
}

fn silent(what: &str) -> RPCError<TypeConfig> {
    unreachable(&std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer to {what}")))
}

impl PeerClient {
    /// The present connection, made anew where the peer has moved.
    pub(super) fn connection(&mut self) -> Result<RaftClient<PeerChannel>, RPCError<TypeConfig>> {
        let addr = self.network.book.get(self.to).unwrap_or_else(|| self.peer.addr.clone());
        if let Some((known, client)) = &self.connection
            && *known == addr
        {
            return Ok(client.clone());
        }
        let patience = self.network.patience;
        let endpoint = Endpoint::from_shared(format!("http://{addr}"))
            .map_err(|error| unreachable(&error))?
            .tcp_nodelay(true)
            .connect_timeout(patience)
            // A peer that vanished is noticed by its silence, not by TCP's own patience of minutes.
            .http2_keep_alive_interval(patience)
            .keep_alive_timeout(patience)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20);
        let channel = self.network.peering.connect_lazy(&endpoint, self.direct);
        let client = RaftClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        self.connection = Some((addr, client.clone()));
        Ok(client)
    }

    /// A request to the peer.
    pub(super) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let Network { cluster, id, incarnations, .. } = &self.network;
        let (sender, expected) = (incarnations.own(), incarnations.met(self.to));
        Route { cluster: cluster.clone(), from: *id, to: self.to, sender, expected }.request(message)
    }

    /// Learns from a refusal which run of the peer answers, and whether this one is outdated.
    pub(super) fn learn(&self, status: &Status) {
        let word = |key| status.metadata().get(key).and_then(|value| value.to_str().ok());
        let incarnations = &self.network.incarnations;
        match word(MISMATCH) {
            Some("sender") => incarnations.note_outdated(self.to),
            Some("receiver") => {
                let name = &self.peer.name;
                tracing::warn!(%name, "a voter runs on an older copy of its data: it does not count, and ends");
            }
            Some(_) => {
                let mut words = word(RUN).unwrap_or_default().split(' ');
                incarnations.meet(self.to, super::run_of(&mut words));
                incarnations.store_soon();
            }
            None => {}
        }
    }

    async fn within<T>(
        &self,
        what: &str,
        limit: Duration,
        answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, RPCError<TypeConfig>> {
        let answer = tokio::time::timeout(limit, answer).await.map_err(|_| silent(what))?;
        let answer = answer.inspect_err(|status| self.learn(status));
        answer.map(tonic::Response::into_inner).map_err(failed)
    }

    async fn ask(
        &mut self,
        request: VoteRequest<TypeConfig>,
        pre_vote: bool,
        limit: Duration,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut client = self.connection()?;
        let request = self.request(wire::ballot(&request, pre_vote));
        let response = self.within("a vote", limit, client.vote(request)).await?;
        wire::voted_from(response).map_err(failed)
    }

    async fn open(
        &mut self,
        requests: impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static,
    ) -> Result<Answers, RPCError<TypeConfig>> {
        let mut client = self.connection()?;
        let outstanding = Outstanding::default();
        let sent = outstanding.clone();
        // What cannot be put into bytes ends the stream; openraft then begins another one.
        let messages = requests.scan((), move |(), request| {
            sent.send(request.vote.leader_id.term);
            std::future::ready(wire::append(&request).ok())
        });
        let request = self.request(messages);
        let patience = self.network.patience;
        let stream = self.within("a stream of entries", patience, client.append(request)).await?;
        Ok(Answers { stream, outstanding, patience, acks: self.network.acks.clone(), from: self.to })
    }
}

/// The answers to a stream of requests.
struct Answers {
    stream: tonic::Streaming<wire::AppendResponse>,
    outstanding: Outstanding,
    patience: Duration,
    acks: Acks,
    from: u64,
}

type Answer = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

impl Answers {
    async fn next(&mut self) -> Option<Answer> {
        loop {
            match tokio::time::timeout(self.patience, self.stream.message()).await {
                Ok(Ok(message)) => {
                    let request = self.outstanding.answered();
                    let answer = wire::appended_from(message?).map_err(failed);
                    self.acks.answered(self.from, request, &answer);
                    return Some(answer);
                }
                Ok(Err(status)) => return Some(Err(failed(status))),
                Err(_) if self.outstanding.is_empty() => {}
                Err(_) => return Some(Err(silent("entries"))),
            }
        }
    }
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = ();

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut answers = self.open(futures::stream::once(async { request })).await?;
        let answer = answers.next().await.unwrap_or_else(|| Err(silent("entries")))?;
        Ok(answer.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Answer>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let answers = self.open(input).await?;
            let answers = futures::stream::unfold(Some(answers), |answers| async move {
                let mut answers = answers?;
                let answer = answers.next().await?;
                let go_on = matches!(answer, Ok(Ok(_)));
                Some((answer, go_on.then_some(answers)))
            });
            Ok(answers.boxed())
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask(request, false, option.hard_ttl()).await
    }

    /// Openraft's default grants (trap 11).
    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask(request, true, option.hard_ttl()).await
    }

    /// The handle only; the receiver fetches what differs, which may take long.
    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Handle,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut client = self.connection()?;
        let members = codec::encode_members(&snapshot.meta.last_membership);
        let message = wire::SnapshotRequest {
            vote: Some(wire::vote(&vote)),
            last: snapshot.meta.last_log_id.map(wire::log_id),
            members: members.map_err(|error| unreachable(&error))?.into(),
        };
        let request = self.request(message);
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            response = client.install_snapshot(request) => {
                let response = response.inspect_err(|status| self.learn(status));
                let response = response.map_err(failed)?.into_inner();
                Ok(SnapshotResponse { vote: wire::vote_from(response.vote).map_err(failed)? })
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut client = self.connection()?;
        let message = self.request(wire::transfer(&request));
        let limit = self.network.patience;
        let response = self.within("a transfer", limit, client.transfer_leader(message)).await?;
        wire::transferred_from(response, *request.from_leader()).map_err(failed)
    }

    fn backoff(&self) -> Option<Backoff> {
        let wait = self.network.patience / 5;
        Some(Backoff::new(std::iter::repeat(wait)))
    }
}
