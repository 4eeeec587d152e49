//! The network between voters: Raft's messages over gRPC.
//!
//! Connections are driven by Raft's own thread; each names the cluster and both ends, so that a node that answers at
//! a wrong address does no harm.

mod addresses;
mod client;
mod server;
mod ship;
pub(super) mod wire;

pub use addresses::AddressBook;
pub(super) use client::Network;
pub use server::RaftServer;
pub(super) use server::RaftService;
pub(super) use server::serve_direct;
pub(super) use ship::{BlobSender, Delivery};

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Request, Status};

/// Largest message, in bytes: 4 MiB of entries, or one larger entry.
pub(super) const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Metadata key of [`Route`].
const ROUTE: &str = "skein-raft";

/// Who speaks to whom, in which cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Route {
    /// The cluster's id.
    pub cluster: String,
    /// The speaker.
    pub from: u64,
    /// Who is meant.
    pub to: u64,
}

impl Route {
    /// A request that says so.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Ok(value) = self.header() {
            request.metadata_mut().insert(ROUTE, value);
        }
        request
    }

    fn header(&self) -> Result<MetadataValue<Ascii>, tonic::metadata::errors::InvalidMetadataValue> {
        format!("1 {} {:016x} {:016x}", self.cluster, self.from, self.to).try_into()
    }

    /// What a request says.
    fn of(metadata: &MetadataMap) -> Result<Self, Status> {
        let missing = || Status::invalid_argument("the request does not name its cluster and nodes");
        let text = metadata.get(ROUTE).and_then(|value| value.to_str().ok()).ok_or_else(missing)?;
        let mut parts = text.split(' ');
        let version = parts.next();
        if version != Some("1") {
            return Err(Status::failed_precondition(format!(
                "peer speaks raft protocol {}, this program 1: upgrade the older node",
                version.unwrap_or_default()
            )));
        }
        let cluster = parts.next().ok_or_else(missing)?.to_owned();
        let mut node = || parts.next().and_then(|hex| u64::from_str_radix(hex, 16).ok()).ok_or_else(missing);
        Ok(Self { cluster, from: node()?, to: node()? })
    }
}
