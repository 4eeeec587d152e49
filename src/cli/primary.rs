use crate::http::{Client, escape_name};
use crate::types::DbName;

/// Where the API has a database.
pub(super) fn path_of(db: &DbName) -> String {
    format!("/v1/databases/{}", escape_name(db.as_str()))
}

/// A client of the primary, as the node knows it.
pub(super) async fn primary(client: Client) -> anyhow::Result<Client> {
    let status = client.status().await?;
    match status.primary {
        Some(primary) if primary.name != status.node => Ok(client.at(&primary.http)?),
        // Where none is known the node itself says so, in answer to the request.
        _ => Ok(client),
    }
}
