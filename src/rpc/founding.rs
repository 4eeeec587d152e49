//! How nodes without a cluster meet, over gRPC.

use std::sync::Arc;

use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};

use super::convert::is_one_word;
use super::status::{from_status, innermost};
use super::{MESSAGE_BYTES_MAX, endpoint};
use crate::config::HostPort;
use crate::security::Peering;
use crate::store::Candidate;
use crate::stream::StreamError;
use crate::types::NodeId;
use wire::founding_client::FoundingClient;
use wire::founding_server::{Founding, FoundingServer};

/// Generated from `proto/founding.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub(super) mod wire {
    tonic::include_proto!("skein.founding.v1");
}

/// A node without a cluster, as it meets others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meeting {
    /// The node.
    pub node: Candidate,
    /// How many voters it waits for, itself included.
    pub expect: u32,
    /// It asks for the other's promise to join the cluster that it founds, and no other one.
    pub founds: bool,
}

/// What a node that was met answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Met {
    /// It has a cluster.
    HasCluster,
    /// It has none either.
    Waiting {
        /// Who it is.
        node: Candidate,
        /// How many voters it waits for.
        expect: u32,
        /// Whom it has promised to join.
        promised_to: Option<NodeId>,
    },
}

/// Answers for a node without a cluster: who it is, and whom it has promised to join once the asking node is heard.
pub type Answer = Arc<dyn Fn(Meeting) -> Result<Met, StreamError> + Send + Sync>;

/// Asks the node at `addr`.
///
/// # Errors
/// Where it cannot be reached, or answers what cannot be understood.
pub async fn meet(addr: &str, peering: &Peering, meeting: &Meeting) -> Result<Met, StreamError> {
    let channel = peering.connect(&endpoint(addr)?).await.map_err(|error| {
        StreamError::Unavailable(format!("cannot connect to {addr}: {}", innermost(&error)))
    })?;
    let request = wire::MeetRequest {
        from: Some(to_wire(&meeting.node)),
        expect: meeting.expect,
        founds: meeting.founds,
    };
    match FoundingClient::new(channel).meet(request).await {
        Ok(answer) => {
            let wire::MeetResponse { from, expect, promised_to, .. } = answer.into_inner();
            let promised_to = (promised_to != 0).then_some(NodeId::new(promised_to));
            Ok(Met::Waiting { node: from_wire(from)?, expect, promised_to })
        }
        Err(status) if status.code() == Code::Unimplemented => Ok(Met::HasCluster),
        Err(status) => Err(from_status(&status)),
    }
}

/// What a node without a cluster serves: `answer`, which may block.
pub fn founding_routes(answer: Answer) -> Routes {
    let service = FoundingServer::new(FoundingService { answer })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    Routes::new(service)
}

struct FoundingService {
    answer: Answer,
}

#[tonic::async_trait]
impl Founding for FoundingService {
    async fn meet(
        &self,
        request: Request<wire::MeetRequest>,
    ) -> Result<Response<wire::MeetResponse>, Status> {
        let wire::MeetRequest { from, expect, founds } = request.into_inner();
        let node = from_wire(from).map_err(|error| super::to_status(&error))?;
        let (asking, answer) = (node.node, self.answer.clone());
        let answered = tokio::task::spawn_blocking(move || answer(Meeting { node, expect, founds })).await;
        let answered = answered.map_err(|error| Status::internal(error.to_string()))?;
        match answered.map_err(|error| super::to_status(&error))? {
            Met::HasCluster => Err(Status::unimplemented("this node has a cluster")),
            Met::Waiting { node, expect, promised_to } => Ok(Response::new(wire::MeetResponse {
                from: Some(to_wire(&node)),
                expect,
                promised: promised_to == Some(asking),
                promised_to: promised_to.map_or(0, NodeId::get),
            })),
        }
    }
}

/// A target for [`crate::fuzz`]: nodes that wait for one another.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(data: &[u8]) {
    use prost::Message;
    if let Ok(request) = wire::MeetRequest::decode(data)
        && let Ok(node) = from_wire(request.from)
    {
        assert!(from_wire(Some(to_wire(&node))).is_ok_and(|again| again == node));
    }
    drop(wire::MeetResponse::decode(data).map(|answer| from_wire(answer.from)));
}

/// A valid message for it.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz_sample() -> Vec<u8> {
    use prost::Message;
    let from = wire::Founder {
        node_id: 7,
        name: "n1".into(),
        addr: "10.0.0.1:1".into(),
        http: "http://10.0.0.1:2".into(),
    };
    wire::MeetRequest { from: Some(from), expect: 3, ..Default::default() }.encode_to_vec()
}

fn to_wire(node: &Candidate) -> wire::Founder {
    let Candidate { node, name, addr, http, .. } = node.clone();
    wire::Founder { node_id: node.get(), name: name.to_string(), addr, http }
}

fn from_wire(node: Option<wire::Founder>) -> Result<Candidate, StreamError> {
    let invalid = |why: String| StreamError::Invalid(format!("a node that waits for others: {why}"));
    let wire::Founder { node_id, name, addr, http } =
        node.ok_or_else(|| invalid("does not say who it is".into()))?;
    let name = name.parse().map_err(|error| invalid(format!("{error}")))?;
    addr.parse::<HostPort>().map_err(|error| invalid(format!("address: {error}")))?;
    if node_id == 0 || !is_one_word(&http, 1000) {
        return Err(invalid("has no number, or a URL that is none".into()));
    }
    Ok(Candidate { node: NodeId::new(node_id), name, addr, http, returning: false })
}
