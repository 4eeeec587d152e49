use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::StatusDocument;
use super::problem::{Problem, Reason};
use crate::security::{SecurityError, Token, api_client};

/// The largest document a node may answer with, in bytes.
const DOCUMENT_BYTES_MAX: usize = 256 << 20;
/// How long a node has to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Why a node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL is none.
    #[error("url {0:?} is not of the form http://HOST:PORT or https://HOST:PORT")]
    Url(String),
    /// The URL is `https`, and it is not said whom to believe.
    #[error("url {0:?} needs --ca FILE or SKEIN_CA: the authority of the nodes' certificates")]
    Authority(String),
    /// The authority is not usable.
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// Nobody answers.
    #[error("no node answers at {url}: {why}; start it, or name another one with --url or SKEIN_URL")]
    Unreachable {
        /// The node.
        url: String,
        /// What happened.
        why: String,
    },
    /// The node refuses.
    #[error("{detail}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it says.
        detail: String,
        /// Why, where that is one of a few reasons.
        reason: Option<Reason>,
    },
    /// The answer is not what a node answers.
    #[error("{url} does not answer like a skein node: {why}")]
    Strange {
        /// The node.
        url: String,
        /// What is strange.
        why: String,
    },
}

type Outgoing = UnsyncBoxBody<Bytes, std::io::Error>;

/// What a client shows, and whom it believes.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// The token that lets it in.
    pub token: Option<Token>,
    /// The authority of the nodes' certificates, for `https` URLs: a file, or the PEM text.
    pub ca: Option<String>,
}

/// What SQL over HTTP says instead of a problem document.
#[derive(Deserialize)]
struct SqlRefusal {
    message: String,
}

/// Talks to one node.
#[derive(Clone)]
pub struct Client {
    base: String,
    credentials: Credentials,
    inner: legacy::Client<HttpsConnector<HttpConnector>, Outgoing>,
}

/// A database's name as one component of a path.
pub fn escape_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

impl Client {
    /// A client of the node at `url`.
    ///
    /// # Errors
    /// Where the URL is none, or not `http`.
    pub fn new(url: &str) -> Result<Self, ClientError> {
        Self::with(url, Credentials::default())
    }

    /// A client of another node, with what this one shows.
    ///
    /// # Errors
    /// As [`Client::with`].
    pub fn at(&self, url: &str) -> Result<Self, ClientError> {
        Self::with(url, self.credentials.clone())
    }

    /// A client of the node at `url`.
    ///
    /// # Errors
    /// Where the URL is none, or it is `https` and no authority is given.
    pub fn with(url: &str, credentials: Credentials) -> Result<Self, ClientError> {
        let base = url.trim_end_matches('/');
        let bad = || ClientError::Url(url.to_owned());
        let uri: Uri = base.parse().map_err(|_| bad())?;
        if uri.scheme_str() == Some("https") && credentials.ca.is_none() {
            return Err(ClientError::Authority(url.to_owned()));
        }
        if !matches!(uri.scheme_str(), Some("http" | "https"))
            || uri.host().is_none_or(str::is_empty)
            || uri.query().is_some()
        {
            return Err(bad());
        }
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_MAX));
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(api_client(credentials.ca.as_deref())?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let inner = legacy::Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { base: base.to_owned(), credentials, inner })
    }

    /// The URL it was made with, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.base
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Outgoing,
    ) -> Result<Response<Incoming>, ClientError> {
        let size = body.size_hint().exact();
        let request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        let mut request = request.body(body).map_err(|_| ClientError::Url(format!("{}{path}", self.base)))?;
        if request.method() == Method::POST {
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(token) = &self.credentials.token {
            let mut shown = HeaderValue::try_from(format!("Bearer {}", token.expose()))
                .expect("a token is visible ASCII");
            shown.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, shown);
        }
        if let Some(size) = size.filter(|size| *size > 0) {
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(size));
        }
        let response = self.inner.request(request).await.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let is_problem =
            response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/problem+json");
        let text = self.collect(response).await?;
        match serde_json::from_slice::<Problem>(&text) {
            Ok(problem) if is_problem => {
                let Problem { detail, reason, .. } = problem;
                Err(ClientError::Refused { status: status.as_u16(), detail, reason })
            }
            _ => match serde_json::from_slice::<SqlRefusal>(&text) {
                Ok(SqlRefusal { message: detail }) => {
                    Err(ClientError::Refused { status: status.as_u16(), detail, reason: None })
                }
                Err(_) => Err(self.strange(format!("{status} without a problem document"))),
            },
        }
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), DOCUMENT_BYTES_MAX).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| self.strange(error.to_string()))
    }

    fn strange(&self, why: String) -> ClientError {
        ClientError::Strange { url: self.base.clone(), why }
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> ClientError {
        // The innermost cause is what the operator can do something about ("Connection refused").
        let mut cause = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        ClientError::Unreachable { url: self.base.clone(), why: cause.to_string().to_lowercase() }
    }

    /// `GET path` as a JSON document.
    ///
    /// # Errors
    /// Where the node is not reached, refuses, or answers something else.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.send(Method::GET, path, empty()).await?;
        let body = self.collect(response).await?;
        serde_json::from_slice(&body).map_err(|error| self.strange(error.to_string()))
    }

    /// `GET /v1/status`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn status(&self) -> Result<StatusDocument, ClientError> {
        self.get("/v1/status").await
    }

    /// `GET path` as text.
    ///
    /// # Errors
    /// Where the node is not reached, or refuses.
    pub async fn text(&self, path: &str) -> Result<String, ClientError> {
        let response = self.send(Method::GET, path, empty()).await?;
        Ok(String::from_utf8_lossy(&self.collect(response).await?).into_owned())
    }

    /// `POST path` with a JSON document; the answer has no content.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post(&self, path: &str, document: &impl Serialize) -> Result<(), ClientError> {
        self.send(Method::POST, path, json(document)).await.map(drop)
    }

    /// `POST path` with a JSON document, answered by another.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        document: &impl Serialize,
    ) -> Result<T, ClientError> {
        let response = self.send(Method::POST, path, json(document)).await?;
        let body = self.collect(response).await?;
        serde_json::from_slice(&body).map_err(|error| self.strange(error.to_string()))
    }

    /// `DELETE path`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.send(Method::DELETE, path, empty()).await.map(drop)
    }

    /// Gives the body at `path` to `sink` piece by piece; `begin` first hears its size in bytes, where it is known.
    ///
    /// # Errors
    /// As [`Client::get`], and where the body breaks off. `sink`'s own errors come back inside.
    pub async fn download<E>(
        &self,
        path: &str,
        begin: impl FnOnce(Option<u64>),
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Result<(), E>, ClientError> {
        let mut body = self.send(Method::GET, path, empty()).await?.into_body();
        begin(body.size_hint().exact());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.unreachable(&error))?;
            if let Some(data) = frame.data_ref()
                && let Err(error) = sink(data)
            {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    /// `PUT path` with a body that is sent as its parts come; it ends with the channel, and breaks off at an error.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn upload(
        &self,
        path: &str,
        parts: mpsc::Receiver<std::io::Result<Bytes>>,
    ) -> Result<(), ClientError> {
        let frames = ReceiverStream::new(parts).map(|part| part.map(Frame::data));
        self.send(Method::PUT, path, StreamBody::new(frames).boxed_unsync()).await.map(drop)
    }
}

fn json(document: &impl Serialize) -> Outgoing {
    let bytes = serde_json::to_vec(document).expect("a document is plain data");
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync()
}

fn empty() -> Outgoing {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_one_component() {
        assert_eq!(escape_name("tenants/7/a b%.db"), "tenants%2F7%2Fa%20b%25.db");
        assert_eq!(escape_name("ä"), "%C3%A4");
    }

    #[test]
    fn only_http_urls_are_taken() {
        assert_eq!(Client::new("http://127.0.0.1:20202/").unwrap().url(), "http://127.0.0.1:20202");
        for url in ["", "127.0.0.1:20202", "https://h:1", "http://", "http://h:1/?x", "file:///etc"] {
            assert!(Client::new(url).is_err(), "{url}");
        }
    }
}
