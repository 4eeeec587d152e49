//! Raft's messages between simulated nodes: the other node's Raft is called directly, after a delay, or never.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::error::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use super::world::World;
use super::{dice, large};
use crate::io::blobs::BlobStore;
use crate::ltx::BlobRef;
use crate::raft::acks::{Acks, Outstanding, Sent};
use crate::raft::handle::RaftHandle;
use crate::raft::transport::{BlobSender, Delivery};
use crate::raft::types::{Peer, TypeConfig, Vote};
use crate::types::LogIndex;

type Handle = openraft::type_config::alias::SnapshotOf<TypeConfig, ()>;
type Failure = RPCError<TypeConfig>;
type Answer = Result<StreamAppendResult<TypeConfig>, Failure>;

/// The network as one run of one node sees it.
#[derive(Clone)]
pub struct SimNetwork {
    pub world: Arc<World>,
    pub from: u64,
    /// Which run of the node.
    pub run: u64,
    /// How long a peer may be silent.
    pub patience: Duration,
    /// Who has answered the node as leader.
    pub acks: Acks,
}

/// The way from that node to one other.
#[derive(Clone)]
pub struct SimClient {
    network: SimNetwork,
    to: u64,
}

/// A message that will never arrive.
struct Lost;

fn unreachable(why: impl std::fmt::Display) -> Failure {
    RPCError::Unreachable(Unreachable::new(&std::io::Error::other(why.to_string())))
}

impl RaftNetworkFactory<TypeConfig> for SimNetwork {
    type Network = SimClient;

    async fn new_client(&mut self, target: u64, _node: &Peer) -> SimClient {
        SimClient { network: self.clone(), to: target }
    }
}

impl SimClient {
    async fn travel(&self, from: u64, to: u64) -> Result<(), Lost> {
        let world = &self.network.world;
        let delay = world.links().delay(from, to);
        tokio::time::sleep(delay).await;
        while world.links().waits(from, to) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if world.links().loses(from, to) { Err(Lost) } else { Ok(()) }
    }

    /// As a connection does it: what is lost is sent again.
    async fn travel_in_order(&self, from: u64, to: u64) {
        while self.travel(from, to).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn is_cut_off(&self) -> bool {
        !self.network.world.runs(self.network.from, self.network.run)
    }

    /// The other node's Raft and the number of its run.
    fn other(&self) -> Result<(RaftHandle, u64), Failure> {
        if self.is_cut_off() {
            return Err(unreachable("this node is dead"));
        }
        self.network.world.raft_of(self.to).ok_or_else(|| unreachable("nobody listens"))
    }

    /// One request and its answer. What is lost is noticed by silence only.
    async fn call<T, E, F>(&self, what: &str, ask: impl FnOnce(RaftHandle) -> F) -> Result<T, Failure>
    where
        E: std::fmt::Display,
        F: Future<Output = Result<T, E>>,
    {
        let (from, to) = (self.network.from, self.to);
        let silence = || async {
            tokio::time::sleep(self.network.patience).await;
            Err(unreachable(format!("no answer to {what}")))
        };
        self.other().map(drop).or_else(|error| if self.is_cut_off() { Err(error) } else { Ok(()) })?;
        if self.travel(from, to).await.is_err() {
            return silence().await;
        }
        let (raft, run) = self.other()?;
        self.network.world.count_message(what, from, to);
        let answer = ask(raft).await.map_err(unreachable)?;
        if self.travel(to, from).await.is_err() {
            return silence().await;
        }
        if self.is_cut_off() || !self.network.world.runs(to, run) {
            return Err(unreachable("the connection broke"));
        }
        Ok(answer)
    }

    async fn within<T>(
        &self,
        limit: Duration,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| Err(unreachable("no answer in time")))
    }

    /// A request that arrives once more, later: Raft has to bear it.
    fn repeat(&self, request: AppendEntriesRequest<TypeConfig>) {
        let (client, later) = (self.clone(), dice::millis(1, 700));
        tokio::spawn(async move {
            tokio::time::sleep(later).await;
            if let Ok((raft, _)) = client.other() {
                // Nobody hears the answer.
                let _ = raft.append_entries(request).await;
            }
        });
    }

    /// Requests as they arrive, in order, until either end dies.
    fn arriving<S>(
        &self,
        input: S,
        run: u64,
        sent: Outstanding,
    ) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let client = self.clone();
        futures::stream::unfold((input, client, sent), move |(mut input, client, sent)| async move {
            let request = input.next().await?;
            sent.send(request.vote.leader_id.term);
            client.travel_in_order(client.network.from, client.to).await;
            let whole = !client.is_cut_off() && client.network.world.runs(client.to, run);
            client.network.world.count_message("entries", client.network.from, client.to);
            whole.then_some((request, (input, client, sent)))
        })
    }
}

/// The answers to a stream of requests, as the real client waits for them.
struct Answers {
    client: SimClient,
    run: u64,
    stream: BoxStream<'static, Result<StreamAppendResult<TypeConfig>, Failure>>,
    outstanding: Outstanding,
}

impl Answers {
    async fn next(&mut self) -> Option<Answer> {
        loop {
            let (client, stream) = (&self.client, &mut self.stream);
            let arrives = async {
                let answer = stream.next().await;
                client.travel_in_order(client.to, client.network.from).await;
                answer
            };
            let arrived = tokio::time::timeout(client.network.patience, arrives).await;
            if self.client.is_cut_off() || !client.network.world.runs(client.to, self.run) {
                return Some(Err(unreachable("the connection broke")));
            }
            match arrived {
                Ok(answer) => {
                    let request = self.outstanding.answered();
                    if let Some(answer) = &answer {
                        self.client.network.acks.answered(self.client.to, request, answer);
                    }
                    return answer;
                }
                Err(_) if self.outstanding.is_empty() => {}
                Err(_) => return Some(Err(unreachable("no answer to entries"))),
            }
        }
    }
}

impl RaftNetworkV2<TypeConfig> for SimClient {
    type SnapshotData = ();

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, Failure> {
        if dice::one_in(40) {
            self.repeat(request.clone());
        }
        let sent = Sent { term: request.vote.leader_id.term, at: tokio::time::Instant::now() };
        let asked = self.call("append", |raft| async move { raft.append_entries(request).await });
        let answer = self.within(self.network.patience, asked).await?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            self.network.acks.heard(self.to, sent);
        }
        Ok(answer)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Answer>, Failure>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        // Now and then request by request, each of which may get lost by itself.
        if dice::one_in(4) {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let opened = self.call("open", |raft| async move { Ok::<_, Failure>(raft) });
            let raft = self.within(self.network.patience, opened).await?;
            let (_, run) = self.other()?;
            let outstanding = Outstanding::default();
            let requests = self.arriving(input, run, outstanding.clone());
            let stream =
                raft.stream_append(requests).map(|answer| answer.map_err(unreachable)).fuse().boxed();
            let answers = Answers { client: self.clone(), run, stream, outstanding };
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
    ) -> Result<VoteResponse<TypeConfig>, Failure> {
        let asked = self.call("vote", |raft| async move { raft.vote(request).await });
        self.within(option.hard_ttl(), asked).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Failure> {
        let asked = self.call("pre-vote", |raft| async move { raft.pre_vote(request).await });
        self.within(option.hard_ttl(), asked).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Handle,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let asked =
            self.call("snapshot", |raft| async move { raft.install_full_snapshot(vote, snapshot).await });
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            answer = asked => Ok(answer?),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, Failure> {
        let asked = self.call("transfer", |raft| async move { raft.handle_transfer_leader(request).await });
        self.within(self.network.patience, asked).await
    }

    fn backoff(&self) -> Option<Backoff> {
        let wait = self.network.patience / 5;
        Some(Backoff::new(std::iter::repeat(wait)))
    }
}

impl BlobSender for SimNetwork {
    fn send(&self, to: u64, _peer: &Peer, blobs: Arc<BlobStore>, blob: BlobRef) -> Delivery {
        let client = SimClient { network: self.clone(), to };
        Box::pin(async move {
            let world = client.network.world.clone();
            let receive = |_| async move {
                let live = world.live(to).ok_or("nobody listens")?;
                large::copy(&blobs, live.store.blobs(), blob).map_err(|error| error.to_string())
            };
            client.call("blob", receive).await.map_err(|error| error.to_string())
        })
    }

    fn greet(&self, _to: u64, _peer: &Peer) -> Delivery {
        Box::pin(async { Ok(()) })
    }

    fn drop_blob(&self, to: u64, _peer: &Peer, blob: BlobRef) -> Delivery {
        let client = SimClient { network: self.clone(), to };
        Box::pin(async move {
            let world = client.network.world.clone();
            let refuse = |_| async move {
                let live = world.live(to).ok_or("nobody listens")?;
                live.store.blobs().refuse_copy((blob.digest, blob.size_bytes));
                Ok::<_, &str>(())
            };
            client.call("drop_blob", refuse).await.map_err(|error| error.to_string())
        })
    }

    fn applied(&self, to: u64, _peer: &Peer, index: LogIndex) -> Delivery {
        let client = SimClient { network: self.clone(), to };
        Box::pin(async move {
            let world = client.network.world.clone();
            let wait = |_| async move {
                while world.live(to).ok_or("nobody listens")?.target.settled() < index {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok::<_, &str>(())
            };
            client.call("applied", wait).await.map_err(|error| error.to_string())
        })
    }
}
