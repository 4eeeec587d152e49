//! What `skein db verify` asks of each node: whether a database's bytes are what its position says.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::context::{Context, Name, db_name};
use super::problem::Problem;
use crate::store::{ClusterError, StoreError};
use crate::types::{NodeName, Role};

/// One of `GET /v1/nodes`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeDocument {
    /// Its name.
    pub name: String,
    /// `voter` or `replica`.
    pub role: String,
    /// The URL of its API; `null` where it does not answer.
    pub http: Option<String>,
}

/// `GET /v1/databases/{name}/check`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CheckDocument {
    /// The database.
    pub name: String,
    /// The node.
    pub node: String,
    /// Its position here: transaction, 16 hex digits,
    pub txid: String,
    /// and the checksum that belongs to it.
    pub checksum: String,
    /// The checksum of the pages as they were read now.
    pub computed: String,
}

impl CheckDocument {
    /// Whether the bytes are those of the position.
    pub fn is_sound(&self) -> bool {
        self.checksum == self.computed
    }
}

pub(super) async fn nodes(State(context): State<Context>) -> Result<Json<Vec<NodeDocument>>, Problem> {
    let nodes = context.api.nodes().await?;
    let document = |(name, role, http): (NodeName, Role, Option<String>)| NodeDocument {
        name: name.to_string(),
        role: role.to_string(),
        http,
    };
    Ok(Json(nodes.into_iter().map(document).collect()))
}

/// Reads every page: takes as long as the disk takes.
pub(super) async fn check(
    State(context): State<Context>,
    name: Name,
) -> Result<Json<CheckDocument>, Problem> {
    let name = db_name(name)?;
    let (api, db) = (context.api.clone(), name.clone());
    let checked = tokio::task::spawn_blocking(move || api.check(&db)).await;
    let ended = |_| Err(StoreError::Fatal("the check was given up while the node ended".into()));
    let (pos, computed) = checked.unwrap_or_else(ended).map_err(|error| Problem::of(&error, None))?;
    Ok(Json(CheckDocument {
        name: name.to_string(),
        node: context.api.overview().name.to_string(),
        txid: format!("{:016x}", pos.txid_or_zero()),
        checksum: pos.checksum.to_string(),
        computed: computed.to_string(),
    }))
}

pub(super) async fn repair(State(context): State<Context>, name: Name) -> Result<StatusCode, Problem> {
    let name = db_name(name)?;
    if context.api.database(&name).is_none() {
        return Err(Problem::no_database(&name));
    }
    // It waits for the database's lock.
    let (api, db) = (context.api.clone(), name.clone());
    let repaired = tokio::task::spawn_blocking(move || api.repair(&db)).await;
    let ended = |_| Err(ClusterError::Unavailable("this node is ending".into()));
    repaired.unwrap_or_else(ended)?;
    Ok(StatusCode::ACCEPTED)
}
