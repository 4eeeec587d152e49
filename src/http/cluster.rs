//! What is asked of the cluster as a whole.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::context::{Context, Name, db_name};
use super::problem::Problem;

use super::{Details, MemberDocument, StatusDocument, documents};
use crate::store::{ClusterError, Member, MemberChange};
use crate::types::NodeName;

/// How long the primary is waited for before a node tells what it knows itself.
const PRIMARY_MAX: Duration = Duration::from_millis(300);

/// `POST /v1/handoff`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandoffRequest {
    /// Who shall be primary; without it whoever is the least behind.
    #[serde(default)]
    pub to: Option<String>,
}

/// Its answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct HandoffDocument {
    /// The name of the new primary.
    pub primary: String,
}

/// `POST /v1/members`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddRequest {
    /// HOST:PORT of the gRPC of a running voter of this cluster.
    pub addr: String,
}

/// `GET /v1/databases/{name}/newest`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NewestDocument {
    /// The database.
    pub name: String,
    /// Its newest committed transaction, 16 hex digits; zeros where it has none.
    pub txid: String,
    /// The checksum after it.
    pub checksum: String,
}

impl From<ClusterError> for Problem {
    fn from(error: ClusterError) -> Self {
        let status = match &error {
            ClusterError::NoQuorum(why) => return Self::no_quorum(why),
            ClusterError::Refused(_) | ClusterError::Removed(_) => StatusCode::BAD_REQUEST,
            ClusterError::NotPrimary(_) | ClusterError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

/// The nodes as the primary sees them; where it does not answer, as this one does.
pub(super) async fn all_members(context: &Context) -> Vec<Member> {
    let asked = tokio::time::timeout(PRIMARY_MAX, context.api.cluster_members()).await;
    let mut members = match asked {
        Ok(Ok(members)) => members,
        Ok(Err(_)) | Err(_) => context.api.members(),
    };
    documents::sort(&mut members);
    members
}

/// What the node says of itself and has to read files for.
pub(super) async fn details(context: &Context) -> Details {
    let api = context.api.clone();
    tokio::task::spawn_blocking(move || api.details()).await.unwrap_or_default()
}

pub(super) async fn status(State(context): State<Context>) -> Json<StatusDocument> {
    let members = all_members(&context).await;
    let api = &context.api;
    let (details, facts) = tokio::join!(details(&context), api.member_facts(&members));
    Json(StatusDocument::new(&api.overview(), details, api.databases(), members, &facts))
}

pub(super) async fn list_members(State(context): State<Context>) -> Json<Vec<MemberDocument>> {
    let members = all_members(&context).await;
    let facts = context.api.member_facts(&members).await;
    Json(documents::member_documents(members, &facts))
}

pub(super) async fn add_member(
    State(context): State<Context>,
    request: Result<Json<AddRequest>, JsonRejection>,
) -> Result<StatusCode, Problem> {
    let Json(request) = request.map_err(|error| Problem::bad_request(error.body_text()))?;
    context.api.add_member(request.addr).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn change(
    context: Context,
    name: Name,
    change: impl FnOnce(NodeName) -> MemberChange,
) -> Result<StatusCode, Problem> {
    let Path(name) = name.map_err(|error| Problem::bad_request(error.body_text()))?;
    let name: NodeName = name
        .parse()
        .map_err(|error: crate::types::InvalidNodeName| Problem::bad_request(error.to_string()))?;
    context.api.change_member(change(name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn remove_member(State(context): State<Context>, name: Name) -> Result<StatusCode, Problem> {
    change(context, name, MemberChange::Remove).await
}

pub(super) async fn promote_member(
    State(context): State<Context>,
    name: Name,
) -> Result<StatusCode, Problem> {
    change(context, name, MemberChange::Promote).await
}

pub(super) async fn demote_member(State(context): State<Context>, name: Name) -> Result<StatusCode, Problem> {
    change(context, name, MemberChange::Demote).await
}

pub(super) async fn hand_off(
    State(context): State<Context>,
    body: axum::body::Bytes,
) -> Result<Json<HandoffDocument>, Problem> {
    let request: HandoffRequest = match body.is_empty() {
        true => HandoffRequest::default(),
        false => {
            serde_json::from_slice(&body).map_err(|error| Problem::bad_request(format!("body: {error}")))?
        }
    };
    let bad = |error: crate::types::InvalidNodeName| Problem::bad_request(error.to_string());
    let to = request.to.map(|to| to.parse()).transpose().map_err(bad)?;
    let primary = context.api.hand_off(to).await?;
    Ok(Json(HandoffDocument { primary: primary.to_string() }))
}

pub(super) async fn newest(
    State(context): State<Context>,
    name: Name,
) -> Result<Json<NewestDocument>, Problem> {
    let name = db_name(name)?;
    let pos = context.api.newest(name.clone()).await?;
    Ok(Json(NewestDocument {
        name: name.to_string(),
        txid: format!("{:016x}", pos.txid_or_zero()),
        checksum: pos.checksum.to_string(),
    }))
}
