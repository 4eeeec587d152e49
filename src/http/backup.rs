//! `GET /v1/backup`: how the backups stand.

use axum::Json;
use axum::extract::State;

use super::context::Context;
use crate::backup::BackupStatus;

pub(super) async fn status(State(context): State<Context>) -> Json<Vec<BackupStatus>> {
    Json(context.api.backups())
}
