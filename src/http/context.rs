//! What handlers share: the node they ask, and the names in their paths.

use std::sync::Arc;

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use tokio_util::sync::CancellationToken;

use super::Api;
use super::problem::Problem;
use crate::telemetry::Exposition;
use crate::types::DbName;

/// What each request is answered with.
#[derive(Clone)]
pub(super) struct Context {
    /// The node.
    pub(super) api: Arc<dyn Api>,
    /// The metrics.
    pub(super) exposition: Exposition,
    /// Cancelled when the node ends: answers that go on for long stop.
    pub(super) shutdown: CancellationToken,
}

/// A name in a path, percent-decoded.
pub(super) type Name = Result<Path<String>, PathRejection>;

/// The database a path names.
pub(super) fn db_name(name: Name) -> Result<DbName, Problem> {
    let Path(name) = name.map_err(|error| Problem::bad_request(error.body_text()))?;
    DbName::new(&name).map_err(|error| Problem::bad_request(error.to_string()))
}
