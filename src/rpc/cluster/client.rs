use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tonic::Response;

use super::wire::cluster_client::ClusterClient;
use super::{from_status, member_from_wire, wire};
use crate::rpc::endpoint;
use crate::rpc::status::innermost;
use crate::security::{PeerChannel, Peering};
use crate::store::{
    Candidate, ClusterAnswer, ClusterControl, ClusterError, Member, MemberChange, Preparation,
};
use crate::types::{Checksum, DbName, NodeName, Pos, Txid};

/// The addresses of nodes that may be asked, best first.
pub type Nodes = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// The cluster as reached through other nodes; whoever is not primary names who is.
pub struct RemoteCluster {
    cluster: String,
    peering: Peering,
    nodes: Nodes,
}

/// Nodes asked one after the other before it is given up.
const HOPS_MAX: usize = 8;
/// How long a node has to answer what is no more than a question.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long a change may take.
const CHANGE_MAX: Duration = Duration::from_secs(40);

type Client = ClusterClient<PeerChannel>;

/// A voter that is asked for those who follow it, again and again.
pub struct OtherVoter {
    client: Client,
}

impl OtherVoter {
    /// The voter at `addr` (HOST:PORT), connected to when it is first asked.
    ///
    /// # Errors
    /// `Unavailable` where that is no address.
    pub fn new(addr: &str, peering: &Peering) -> Result<Self, ClusterError> {
        let endpoint = endpoint(addr).map_err(|error| ClusterError::Unavailable(error.to_string()))?;
        Ok(Self { client: ClusterClient::new(peering.connect_lazy(&endpoint, false)) })
    }

    /// Those who follow it now.
    ///
    /// # Errors
    /// Where it cannot be reached, or answers what cannot be understood.
    pub async fn followers(&mut self) -> Result<Vec<Member>, ClusterError> {
        let answer = self.client.followers(wire::FollowersRequest {}).await;
        let answer = answer.map_err(|status| from_status(&status))?.into_inner();
        answer.followers.into_iter().map(member_from_wire).collect()
    }
}

impl RemoteCluster {
    /// The cluster with this id, through any of `nodes`, which are reached as `peering` says.
    pub fn new(cluster: String, peering: Peering, nodes: Nodes) -> Arc<Self> {
        Arc::new(Self { cluster, peering, nodes })
    }

    async fn ask<T, F>(&self, limit: Duration, call: impl Fn(Client) -> F) -> Result<T, ClusterError>
    where
        F: Future<Output = Result<Response<T>, tonic::Status>>,
    {
        let mut candidates = (self.nodes)();
        let mut last = ClusterError::NotPrimary(None);
        let mut asked = 0;
        while asked < HOPS_MAX && !candidates.is_empty() {
            let addr = candidates.remove(0);
            asked += 1;
            let answer = async {
                let unavailable = |error: &dyn std::fmt::Display| {
                    ClusterError::Unavailable(format!("node at {addr}: {error}"))
                };
                let endpoint = endpoint(&addr).map_err(|error| unavailable(&error))?;
                let channel = self.peering.connect(&endpoint).await;
                let channel = channel.map_err(|error| unavailable(&innermost(&error)))?;
                let answer = call(ClusterClient::new(channel)).await;
                answer.map(Response::into_inner).map_err(|status| from_status(&status))
            };
            let answer = tokio::time::timeout(limit, answer).await;
            match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(ClusterError::NotPrimary(Some(primary)))) => {
                    candidates.retain(|candidate| *candidate != primary);
                    if primary != addr {
                        candidates.insert(0, primary.clone());
                    }
                    last = ClusterError::NotPrimary(Some(primary));
                }
                Ok(Err(refused @ (ClusterError::Refused(_) | ClusterError::Removed(_)))) => {
                    return Err(refused);
                }
                Ok(Err(error)) => last = error,
                Err(_) => {
                    last = ClusterError::Unavailable(format!("node at {addr} did not answer in time"));
                }
            }
        }
        Err(last)
    }
}

impl ClusterControl for RemoteCluster {
    fn enlist(&self, candidate: Candidate) -> ClusterAnswer<'_, ()> {
        let request = wire::JoinRequest {
            cluster_id: self.cluster.clone(),
            node_id: candidate.node.get(),
            name: candidate.name.to_string(),
            addr: candidate.addr,
            http: candidate.http,
            returning: candidate.returning,
        };
        Box::pin(async move {
            let call = |mut client: Client| {
                let request = request.clone();
                async move { client.join(request).await }
            };
            self.ask(CHANGE_MAX, call).await.map(drop)
        })
    }

    fn change_member(&self, change: MemberChange) -> ClusterAnswer<'_, ()> {
        use wire::change_member_request::Change;
        let (name, change) = match change {
            MemberChange::Remove(name) => (name, Change::Remove),
            MemberChange::Promote(name) => (name, Change::Promote),
            MemberChange::Demote(name) => (name, Change::Demote),
        };
        let request = wire::ChangeMemberRequest { name: name.to_string(), change: change.into() };
        Box::pin(async move {
            let call = |mut client: Client| {
                let request = request.clone();
                async move { client.change_member(request).await }
            };
            self.ask(CHANGE_MAX, call).await.map(drop)
        })
    }

    fn hand_off(&self, to: Option<NodeName>) -> ClusterAnswer<'_, NodeName> {
        let request = wire::HandoffRequest { to: to.map(|name| name.to_string()).unwrap_or_default() };
        Box::pin(async move {
            let call = |mut client: Client| {
                let request = request.clone();
                async move { client.handoff(request).await }
            };
            let answer = self.ask(CHANGE_MAX, call).await?;
            let unnamed = |_| ClusterError::Unavailable("the new primary has no name".into());
            answer.primary.parse().map_err(unnamed)
        })
    }

    fn newest(&self, db: DbName) -> ClusterAnswer<'_, Pos> {
        Box::pin(async move {
            let call = |mut client: Client| {
                let request = wire::NewestRequest { database: db.to_string() };
                async move { client.newest(request).await }
            };
            let answer = self.ask(ANSWER_MAX, call).await?;
            Ok(Pos { txid: Txid::new(answer.txid), checksum: Checksum::new(answer.checksum) })
        })
    }

    fn preparation(&self) -> ClusterAnswer<'_, Preparation> {
        Box::pin(async move {
            let call =
                |mut client: Client| async move { client.preparation(wire::PreparationRequest {}).await };
            let wire::PreparationResponse { release, done } = self.ask(ANSWER_MAX, call).await?;
            Ok(Preparation { release, done })
        })
    }

    fn members(&self) -> ClusterAnswer<'_, Vec<Member>> {
        Box::pin(async move {
            let call = |mut client: Client| async move { client.members(wire::MembersRequest {}).await };
            let answer = self.ask(ANSWER_MAX, call).await?;
            answer.members.into_iter().map(member_from_wire).collect()
        })
    }
}
