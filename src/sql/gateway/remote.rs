//! Requests on their way to other nodes.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;

use super::SqlSite;
use crate::proxy::{NodeConnector, innermost, node_client};

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// The request was not sent.
    Unsent(String),
    /// It may have been.
    Unknown(String),
}

/// The connections to other nodes.
pub(super) struct Remote {
    client: Client<NodeConnector, Full<Bytes>>,
}

impl Remote {
    /// Connects when there is something to send.
    pub fn new(site: Arc<dyn SqlSite>) -> Self {
        let authority = |uri: &hyper::Uri| uri.authority().map(ToString::to_string).unwrap_or_default();
        Self { client: node_client(move |uri| site.connect(authority(uri))) }
    }

    /// Sends a request once.
    ///
    /// # Errors
    /// Where there is no answer; whether the request was sent is said.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failed> {
        self.client.request(request).await.map_err(|error| {
            let why = innermost(&error);
            if error.is_connect() { Failed::Unsent(why) } else { Failed::Unknown(why) }
        })
    }
}
