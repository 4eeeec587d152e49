//! The access log: a line for each request, where `proxy.access_log` asks for it.

use std::net::IpAddr;
use std::time::Duration;

use hyper::{Method, Request, Response};

use super::headers::NODE;

/// What a line says of a request, kept while the request is served.
pub(super) struct AccessLine {
    client: IpAddr,
    method: Method,
    /// Without the query: secrets stand there.
    path: String,
}

impl AccessLine {
    /// The line of a request that `client` has sent.
    pub fn of<B>(request: &Request<B>, client: IpAddr) -> Self {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        Self { client: client.to_canonical(), method, path }
    }

    /// Writes it, once the answer has begun.
    pub fn write<B>(self, kind: &'static str, served_by: &'static str, answer: &Response<B>, took: Duration) {
        let node = answer.headers().get(NODE).and_then(|node| node.to_str().ok()).unwrap_or("-");
        let ms = took.as_secs_f64() * 1000.0;
        tracing::info!(
            target: "skein::access",
            client = %self.client,
            method = %self.method,
            path = self.path,
            status = answer.status().as_u16(),
            kind,
            served_by,
            node,
            ms = format!("{ms:.3}"),
        );
    }
}
