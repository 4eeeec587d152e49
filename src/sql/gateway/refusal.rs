//! Requests that are not done, as the clients of libSQL read them.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::sql::hrana::Failure;

/// Why a request is not done, with the status of its answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub failure: Failure,
}

impl Refusal {
    /// With this status and code.
    pub fn new(status: StatusCode, code: &str, why: impl Into<String>) -> Self {
        Self { status, failure: Failure::new(code, why) }
    }

    /// The request means nothing.
    pub fn invalid(why: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "INVALID_REQUEST", why)
    }

    /// Nothing was done; the same request may be sent again.
    pub fn unavailable(why: impl Into<String>) -> Self {
        let why = format!("{}: nothing was done, and the request may be sent again", why.into());
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", why)
    }

    /// It may have been done.
    pub fn unknown(why: impl Into<String>) -> Self {
        let why = format!(
            "{}: what was to be written may or may not be committed; look before you try again",
            why.into()
        );
        Self::new(StatusCode::BAD_GATEWAY, "OUTCOME_UNKNOWN", why)
    }

    /// The stream of a baton is lost, before this request was sent to it.
    pub fn lost(why: impl Into<String>) -> Self {
        let why = format!(
            "{}: the stream is lost, and a transaction that was open on it is rolled back; it may be tried again",
            why.into()
        );
        Self::new(StatusCode::BAD_REQUEST, "STREAM_EXPIRED", why)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.failure).expect("a message and a code are plain data");
        let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        (self.status, kind, Body::from(body)).into_response()
    }
}
