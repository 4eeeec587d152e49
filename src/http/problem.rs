//! The one place where errors become HTTP answers.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::db::DbError;
use crate::store::{PrimaryInfo, StoreError};

/// An error as `application/problem+json`.
///
/// Source: RFC 9457.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Problem {
    #[serde(default)]
    title: String,
    status: u16,
    pub(super) detail: String,
    /// The URL of the primary's API, where that is the one to ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) primary: Option<String>,
    /// What programs tell apart, where it is one of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<Reason>,
}

/// Why a request fails, for programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// What was waited for has not come in time.
    Timeout,
    /// Another node is primary.
    NotPrimary,
    /// Too few voters answer.
    NoQuorum,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("error").to_owned();
        Self { title, status: status.as_u16(), detail: detail.into(), primary: None, reason: None }
    }

    /// The answer after a time that was waited in vain.
    pub(super) fn timeout(detail: impl Into<String>) -> Self {
        Self { reason: Some(Reason::Timeout), ..Self::new(StatusCode::GATEWAY_TIMEOUT, detail) }
    }

    /// The answer while too few voters answer; `why` says how many.
    pub(super) fn no_quorum(why: &str) -> Self {
        Self {
            reason: Some(Reason::NoQuorum),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("no quorum: {why}"))
        }
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(super) fn no_database(name: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("database {name} does not exist"))
    }

    /// This node does not take writes: 421 where it is known who does, else 503.
    pub(super) fn not_primary(primary: Option<&PrimaryInfo>) -> Self {
        match primary {
            Some(primary) => Self {
                primary: Some(primary.http.clone()),
                reason: Some(Reason::NotPrimary),
                ..Self::new(
                    StatusCode::MISDIRECTED_REQUEST,
                    format!("this node is not primary; ask {} at {}", primary.name, primary.http),
                )
            },
            None => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "this node is not primary, and no primary is known now; try again",
            ),
        }
    }

    /// The answer for an error of the store; `primary` is who takes writes.
    pub(super) fn of(error: &StoreError, primary: Option<&PrimaryInfo>) -> Self {
        let status = match error {
            StoreError::Db(DbError::NotPrimary(_)) | StoreError::NotPrimary(_) => {
                return Self::not_primary(primary);
            }
            StoreError::NotFound(_) => StatusCode::NOT_FOUND,
            StoreError::Invalid(_) | StoreError::Db(DbError::Invalid { .. }) => StatusCode::BAD_REQUEST,
            StoreError::Db(DbError::Conflict { .. }) | StoreError::Exists(_) | StoreError::NotEmpty(_) => {
                StatusCode::CONFLICT
            }
            StoreError::Db(DbError::Unavailable { .. })
            | StoreError::Refused { .. }
            | StoreError::Unknown { .. } => StatusCode::SERVICE_UNAVAILABLE,
            StoreError::Io { source, .. } | StoreError::Db(DbError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::StorageFull =>
            {
                StatusCode::INSUFFICIENT_STORAGE
            }
            StoreError::Fatal(_)
            | StoreError::Io { .. }
            | StoreError::Db(DbError::Corrupt { .. } | DbError::Io { .. }) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        if status.is_server_error() {
            tracing::warn!("http: {error}");
        }
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).expect("a problem is plain data");
        let kind = HeaderValue::from_static("application/problem+json");
        let mut response = (status, [(header::CONTENT_TYPE, kind)], body).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
