//! What the proxy itself answers.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

use super::headers::UNSENT;
use crate::telemetry::metrics::PROXY_REFUSALS;

/// The body of an answer, streamed.
pub(super) type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// On every answer that is the proxy's own: why, in one word.
const REASON: HeaderName = HeaderName::from_static("skein-proxy-error");

/// Why the proxy does not pass a request on, or an answer back.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    reason: &'static str,
    detail: String,
    unsent: bool,
}

impl Refusal {
    /// The application cannot have seen the request: whoever sent it may send it again.
    pub fn unsent(status: StatusCode, reason: &'static str, detail: impl Into<String>) -> Self {
        Self { status, reason, detail: detail.into(), unsent: true }
    }

    /// The application may have done what it was asked.
    pub fn unknown(status: StatusCode, reason: &'static str, detail: impl Into<String>) -> Self {
        Self { status, reason, detail: detail.into(), unsent: false }
    }

    /// The answer, counted; one line of text.
    pub fn answer(self) -> Response<Body> {
        metrics::counter!(PROXY_REFUSALS, "reason" => self.reason).increment(1);
        let fate = if self.unsent { "" } else { " (the application may have seen the request)" };
        let mut response = text(self.status, format!("skein proxy: {}{fate}\n", self.detail));
        let headers = response.headers_mut();
        headers.insert(REASON, HeaderValue::from_static(self.reason));
        if self.unsent {
            headers.insert(UNSENT, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// An answer of one text.
pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// An answer without content.
pub(super) fn empty() -> Response<Body> {
    Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync())
}
