use axum::http::{HeaderMap, HeaderValue, header};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request};

use super::document::{Document, Kind};
use super::refusal::Refusal;
use crate::http::escape_name;
use crate::security::SqlRight;
use crate::sql::engine::{RIGHTS_HEADER, WRITABLE_HEADER};
use crate::types::DbName;

/// Another node has sent it on: it is not sent on again.
pub(super) const FORWARDED_HEADER: &str = "skein-forwarded";

/// A request whose database and rights are known.
#[derive(Debug)]
pub(super) struct Ask {
    pub kind: Kind,
    pub db: DbName,
    pub right: SqlRight,
    pub document: Document,
    /// What lets the client in, shown again to the node that does it.
    pub authorization: Option<HeaderValue>,
    pub forwarded: bool,
}

/// What the engine may do with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Here {
    /// Read.
    Reads,
    /// Write, too: this node is primary.
    Writes,
    /// And make the database.
    Creates,
}

impl Ask {
    /// As this node's engine gets it.
    pub fn for_engine(&self, here: Here) -> Result<Request<Full<Bytes>>, Refusal> {
        let path = format!("http://engine{}{}", self.kind.engine_path(), escape_name(self.db.as_str()));
        let rights = if self.right == SqlRight::Write { "write" } else { "read" };
        let mut request = Request::builder().method(Method::POST).uri(path).header(RIGHTS_HEADER, rights);
        match here {
            Here::Reads => {}
            Here::Writes => request = request.header(WRITABLE_HEADER, "write"),
            Here::Creates => request = request.header(WRITABLE_HEADER, "create"),
        }
        let built = request.body(Full::new(self.document.body.clone()));
        built.map_err(|error| Refusal::invalid(error.to_string()))
    }

    /// As another node gets it.
    pub fn for_node(
        &self,
        authority: &str,
        kind: Kind,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Refusal> {
        let path = format!("http://{authority}/dev/{}{}", escape_name(self.db.as_str()), kind.node_path());
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(FORWARDED_HEADER, "1");
        if let Some(value) = &self.authorization {
            request = request.header(header::AUTHORIZATION, value.clone());
        }
        request.body(Full::new(body)).map_err(|error| Refusal::invalid(error.to_string()))
    }

    /// What of a client's headers a request takes along.
    pub fn authorization_of(headers: &HeaderMap) -> (Option<HeaderValue>, bool) {
        (headers.get(header::AUTHORIZATION).cloned(), headers.contains_key(FORWARDED_HEADER))
    }
}
