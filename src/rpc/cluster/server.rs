use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::wire::cluster_server::{Cluster, ClusterServer as Generated};
use super::{member_to_wire, to_status, wire};
use crate::config::HostPort;
use crate::rpc::convert::is_one_word;
use crate::store::{Candidate, ClusterControl, ClusterError, MemberChange, Preparation};
use crate::stream::Serving;
use crate::types::{DbName, NodeId, NodeName};

/// The gRPC service in front of a [`ClusterControl`].
pub type ClusterServer = Generated<ClusterService>;

/// What answers for the cluster `cluster`.
pub struct ClusterService {
    cluster: String,
    control: Arc<dyn ClusterControl>,
    serving: Arc<Serving>,
}

/// The service of a node that belongs to `cluster` and serves others.
pub fn cluster_service(
    cluster: String,
    control: Arc<dyn ClusterControl>,
    serving: Arc<Serving>,
) -> ClusterServer {
    Generated::new(ClusterService { cluster, control, serving }).max_decoding_message_size(64 << 10)
}

fn invalid(error: impl std::fmt::Display) -> Status {
    to_status(&ClusterError::Refused(error.to_string()))
}

fn name(text: &str) -> Result<NodeName, Status> {
    text.parse().map_err(invalid)
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn join(&self, request: Request<wire::JoinRequest>) -> Answer<wire::JoinResponse> {
        let request = request.into_inner();
        if request.cluster_id != self.cluster {
            return Err(invalid(format!(
                "node belongs to cluster {}, not to {}: join a node of the same cluster, or use an empty data directory",
                request.cluster_id, self.cluster
            )));
        }
        let dialable = request.addr.parse::<HostPort>().is_ok_and(|addr| addr.port() != 0);
        if !dialable || !is_one_word(&request.http, 1000) {
            return Err(invalid(format!("{:?} is no address that others can dial", request.addr)));
        }
        let candidate = Candidate {
            node: NodeId::new(request.node_id),
            name: name(&request.name)?,
            addr: request.addr,
            http: request.http,
            returning: request.returning,
        };
        self.control.enlist(candidate).await.map_err(|error| to_status(&error))?;
        Ok(Response::new(wire::JoinResponse {}))
    }

    async fn change_member(
        &self,
        request: Request<wire::ChangeMemberRequest>,
    ) -> Answer<wire::ChangeMemberResponse> {
        use wire::change_member_request::Change;
        let request = request.into_inner();
        let subject = name(&request.name)?;
        let change = match request.change() {
            Change::Remove => MemberChange::Remove(subject),
            Change::Promote => MemberChange::Promote(subject),
            Change::Demote => MemberChange::Demote(subject),
            Change::Unknown => return Err(invalid("an unknown change of members")),
        };
        self.control.change_member(change).await.map_err(|error| to_status(&error))?;
        Ok(Response::new(wire::ChangeMemberResponse {}))
    }

    async fn handoff(&self, request: Request<wire::HandoffRequest>) -> Answer<wire::HandoffResponse> {
        let to = request.into_inner().to;
        let to = (!to.is_empty()).then(|| name(&to)).transpose()?;
        let primary = self.control.hand_off(to).await.map_err(|error| to_status(&error))?;
        Ok(Response::new(wire::HandoffResponse { primary: primary.to_string() }))
    }

    async fn newest(&self, request: Request<wire::NewestRequest>) -> Answer<wire::NewestResponse> {
        let db = DbName::new(&request.into_inner().database).map_err(invalid)?;
        let pos = self.control.newest(db).await.map_err(|error| to_status(&error))?;
        let response = wire::NewestResponse { txid: pos.txid_or_zero(), checksum: pos.checksum.get() };
        Ok(Response::new(response))
    }

    async fn preparation(&self, _: Request<wire::PreparationRequest>) -> Answer<wire::PreparationResponse> {
        let Preparation { release, done } =
            self.control.preparation().await.map_err(|error| to_status(&error))?;
        Ok(Response::new(wire::PreparationResponse { release, done }))
    }

    async fn members(&self, _: Request<wire::MembersRequest>) -> Answer<wire::MembersResponse> {
        let members = self.control.members().await.map_err(|error| to_status(&error))?;
        Ok(Response::new(wire::MembersResponse { members: members.iter().map(member_to_wire).collect() }))
    }

    async fn followers(&self, _: Request<wire::FollowersRequest>) -> Answer<wire::FollowersResponse> {
        let followers = self.serving.members().iter().map(member_to_wire).collect();
        Ok(Response::new(wire::FollowersResponse { followers }))
    }
}
