//! Certificates and tokens on gRPC's connections.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use super::{NodeStream, Peering, Purpose, Refusals, Token};

/// Metadata key of the token that a request shows.
const TOKEN: &str = "skein-token";

/// Requests to another node, with what this one has to show.
pub type PeerChannel = InterceptedService<Channel, ShowToken>;

/// Adds the token to requests.
#[derive(Clone)]
pub struct ShowToken(Option<MetadataValue<Ascii>>);

/// Lets requests pass that show the token.
#[derive(Clone)]
pub struct CheckToken {
    token: Option<Token>,
    refusals: Arc<Refusals>,
}

impl Peering {
    /// Connects to `endpoint`.
    ///
    /// # Errors
    /// Where nobody answers there, or one who is not to be believed.
    pub async fn connect(&self, endpoint: &Endpoint) -> Result<PeerChannel, tonic::transport::Error> {
        let channel = endpoint.connect_with_connector(self.dialer(false)).await?;
        Ok(InterceptedService::new(channel, self.show_token()))
    }

    /// Connects to `endpoint` when there is something to say, and again whenever the connection broke; `direct` to the
    /// node's Raft thread.
    pub fn connect_lazy(&self, endpoint: &Endpoint, direct: bool) -> PeerChannel {
        let channel = endpoint.connect_with_connector_lazy(self.dialer(direct));
        InterceptedService::new(channel, self.show_token())
    }

    fn dialer(
        &self,
        direct: bool,
    ) -> impl tower::Service<Uri, Response = TokioIo<NodeStream>, Error = io::Error, Future: Send + 'static>
    + Send
    + 'static {
        let peering = self.clone();
        tower::service_fn(move |uri: Uri| {
            let peering = peering.clone();
            async move {
                let missing = || io::Error::other("the address is not HOST:PORT");
                let (host, port) = uri.host().zip(uri.port_u16()).ok_or_else(missing)?;
                peering
                    .dial(host, port, if direct { Purpose::Raft } else { Purpose::Grpc })
                    .await
                    .map(TokioIo::new)
            }
        })
    }

    fn show_token(&self) -> ShowToken {
        let value = self.token().map(|token| {
            let mut value = MetadataValue::try_from(&*token.expose()).expect("a token is visible ASCII");
            value.set_sensitive(true);
            value
        });
        ShowToken(value)
    }

    /// What each request must pass.
    pub fn check_token(&self) -> CheckToken {
        CheckToken { token: self.token().cloned(), refusals: self.refusals().clone() }
    }
}

impl Interceptor for ShowToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert(TOKEN, value.clone());
        }
        Ok(request)
    }
}

impl Interceptor for CheckToken {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(token) = &self.token else { return Ok(request) };
        let shown = request.metadata().get(TOKEN);
        let why = match shown {
            Some(shown) if token.matches(shown.as_bytes()) => return Ok(request),
            Some(_) => "the join token is another one",
            None => "it shows no join token",
        };
        let peer = request.remote_addr().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.ip());
        self.refusals.tell(peer, "a request of a node", why);
        Err(Status::unauthenticated(format!(
            "{why}: give --join-token-file or SKEIN_JOIN_TOKEN with the cluster's token"
        )))
    }
}
