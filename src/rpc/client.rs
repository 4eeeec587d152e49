use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tonic::transport::Endpoint;

use super::compress::Decompressor;
use super::convert::{self, FrameReader};
use super::status::{from_status, innermost};
use super::wire::replication_client::ReplicationClient;
use super::{MESSAGE_BYTES_MAX, wire};
use crate::db::SnapshotHeader;
use crate::ltx::BlobRef;
use crate::security::{PeerChannel, Peering};
use crate::store::NodeFacts;
use crate::stream::{
    Acks, Connector, Frame, Globs, Hello, Listing, PageStream, PeerIdentity, StreamError, Upstream,
};
use crate::types::{Checksum, DbName, LogIndex, PageSize};

/// Whether what comes from another node is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    /// Except from this machine, where time costs more than bytes.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Reaches nodes over gRPC.
#[derive(Clone, Debug, Default)]
pub struct GrpcConnector {
    compression: Compression,
    peering: Peering,
}

/// Acks are sent at most this often.
const ACK_PAUSE: Duration = Duration::from_millis(10);
/// Acks are sent at least this often.
const ACK_SILENCE: Duration = Duration::from_secs(1);
/// Databases a node may have.
const DATABASES_MAX: usize = 1_000_000;
/// Checksums of one message: 256 KiB.
const CHECKSUMS: usize = 32768;

impl GrpcConnector {
    /// Reaches nodes with the given compression.
    pub fn new(compression: Compression) -> Self {
        Self { compression, peering: Peering::default() }
    }

    /// Reaches nodes as `peering` says.
    pub fn with_peering(peering: Peering) -> Self {
        Self { compression: Compression::default(), peering }
    }

    fn compresses(&self, addr: &str) -> bool {
        match self.compression {
            Compression::On => true,
            Compression::Off => false,
            Compression::Auto => !is_loopback(addr),
        }
    }
}

fn is_loopback(addr: &str) -> bool {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// The settings of every connection to a node at `HOST:PORT`.
///
/// # Errors
/// [`StreamError::Invalid`] where the address is none.
pub fn endpoint(addr: &str) -> Result<Endpoint, StreamError> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(|error| StreamError::Invalid(format!("address {addr:?} is not HOST:PORT: {error}")))?;
    Ok(endpoint
        .tcp_nodelay(true)
        .tcp_keepalive(Some(Duration::from_secs(30)))
        .connect_timeout(Duration::from_secs(3))
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20))
}

/// What the node at `addr` (HOST:PORT) says of itself.
///
/// # Errors
/// Where it cannot be reached, is starting, or is of a version that does not tell.
pub async fn describe(addr: &str, peering: &Peering) -> Result<NodeFacts, StreamError> {
    let channel = peering.connect_lazy(&endpoint(addr)?, false);
    let facts = ReplicationClient::new(channel).describe(wire::DescribeRequest {}).await.map_err(failed)?;
    convert::facts_from_wire(facts.into_inner())
}

impl Connector for GrpcConnector {
    fn connect(&self, addr: &str) -> BoxFuture<'static, Result<Arc<dyn Upstream>, StreamError>> {
        let (addr, zstd, peering) = (addr.to_owned(), self.compresses(addr), self.peering.clone());
        async move {
            let channel = peering.connect(&endpoint(&addr)?).await.map_err(|error| {
                StreamError::Unavailable(format!("cannot connect to {addr}: {}", innermost(&error)))
            })?;
            let client = ReplicationClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            Ok(Arc::new(GrpcUpstream { client, zstd }) as Arc<dyn Upstream>)
        }
        .boxed()
    }
}

struct GrpcUpstream {
    client: ReplicationClient<PeerChannel>,
    zstd: bool,
}

fn failed(status: tonic::Status) -> StreamError {
    from_status(&status)
}

impl Upstream for GrpcUpstream {
    fn identify(&self) -> BoxFuture<'_, Result<PeerIdentity, StreamError>> {
        let mut client = self.client.clone();
        async move {
            let identity = client.identify(wire::IdentifyRequest {}).await.map_err(failed)?;
            convert::identity_from_wire(identity.into_inner())
        }
        .boxed()
    }

    fn follow(
        &self,
        hello: Hello,
        acks: Acks,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Frame, StreamError>>, StreamError>> {
        let (mut client, zstd) = (self.client.clone(), self.zstd);
        async move {
            let hello = convert::hello_to_wire(hello, zstd);
            let messages = futures::stream::once(async { hello }).chain(send_acks(acks));
            let frames = client.follow(messages).await.map_err(failed)?.into_inner();
            let decompressor = Decompressor::new()
                .map_err(|source| StreamError::Io { what: "preparing decompression".into(), source })?;
            let reader = FrameReader::default();
            Ok(frames
                .scan((decompressor, reader), |(decompressor, reader), frame| {
                    let frame = frame
                        .map_err(failed)
                        .and_then(|frame| decompressor.unwrap(frame))
                        .and_then(|frame| reader.read(frame));
                    futures::future::ready(Some(frame))
                })
                .boxed())
        }
        .boxed()
    }

    fn fetch_blob(
        &self,
        blob: BlobRef,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Bytes, StreamError>>, StreamError>> {
        let mut client = self.client.clone();
        async move {
            let request = wire::FetchBlobRequest { digest: blob.digest, size_bytes: blob.size_bytes };
            let chunks = client.fetch_blob(request).await.map_err(failed)?.into_inner();
            Ok(chunks.map(|chunk| chunk.map(|chunk| chunk.data).map_err(failed)).boxed())
        }
        .boxed()
    }

    fn list(&self, globs: Globs) -> BoxFuture<'_, Result<Listing, StreamError>> {
        let mut client = self.client.clone();
        async move {
            let request = wire::ListDatabasesRequest { globs: globs.patterns().to_vec() };
            let mut parts = client.list_databases(request).await.map_err(failed)?.into_inner();
            let (mut listing, mut said) = (Listing::default(), false);
            while let Some(part) = parts.message().await.map_err(failed)? {
                (listing.applied, said) = (LogIndex::new(part.applied_index), true);
                for db in part.databases {
                    listing.databases.push(convert::listed_from_wire(db)?);
                }
                if part.has_names {
                    let names = &mut listing.names.get_or_insert_default().names;
                    for name in part.names {
                        names.push(convert::name_from_wire(name)?);
                    }
                }
                let names = listing.names.as_ref().map_or(0, |list| list.names.len());
                if listing.databases.len() > DATABASES_MAX || names > 2 * DATABASES_MAX {
                    return Err(StreamError::Invalid(format!(
                        "more than {DATABASES_MAX} databases, or twice as many names, are listed"
                    )));
                }
            }
            // Nothing said must not be taken for "no databases": those here would be removed.
            said.then_some(listing).ok_or_else(|| StreamError::Invalid("an empty listing".into()))
        }
        .boxed()
    }

    fn snapshot(
        &self,
        name: DbName,
        have: Vec<Checksum>,
    ) -> BoxFuture<'_, Result<(SnapshotHeader, PageStream), StreamError>> {
        let (mut client, zstd) = (self.client.clone(), self.zstd);
        async move {
            let first = wire::SnapshotRequest { name: name.to_string(), zstd, checksums: Vec::new() };
            let mut at = 0;
            let rest = std::iter::from_fn(move || {
                let part = have.get(at..)?.chunks(CHECKSUMS).next()?;
                at += part.len();
                let checksums = part.iter().map(|checksum| checksum.get()).collect();
                Some(wire::SnapshotRequest { checksums, ..wire::SnapshotRequest::default() })
            });
            let messages = futures::stream::iter(std::iter::once(first).chain(rest));
            let mut frames = client.snapshot(messages).await.map_err(failed)?.into_inner();
            let Some(wire::snapshot_frame::Kind::Header(header)) =
                frames.message().await.map_err(failed)?.and_then(|frame| frame.kind)
            else {
                return Err(StreamError::Invalid("a snapshot does not begin with its header".into()));
            };
            let header = convert::header_from_wire(&header)?;
            let pages = Pages { frames, page_size: header.page_size, received: 0 };
            let stream = futures::stream::unfold(Some(pages), Pages::next_batch);
            Ok((header, stream.flat_map(futures::stream::iter).boxed()))
        }
        .boxed()
    }
}

/// The pages of a snapshot as they come.
struct Pages {
    frames: tonic::Streaming<wire::SnapshotFrame>,
    page_size: PageSize,
    received: u64,
}

type Batch = Vec<Result<(crate::types::Pgno, Bytes), StreamError>>;

impl Pages {
    async fn next_batch(state: Option<Self>) -> Option<(Batch, Option<Self>)> {
        let mut pages = state?;
        match pages.read().await {
            Ok(Some(batch)) => Some((batch.into_iter().map(Ok).collect(), Some(pages))),
            Ok(None) => None,
            Err(error) => Some((vec![Err(error)], None)),
        }
    }

    async fn read(&mut self) -> Result<Option<Vec<(crate::types::Pgno, Bytes)>>, StreamError> {
        use wire::snapshot_frame::Kind;
        let frame = self.frames.message().await.map_err(failed)?;
        let cut_off = || StreamError::Unavailable("a snapshot was cut off".into());
        match frame.ok_or_else(cut_off)?.kind {
            Some(Kind::Pages(batch)) => {
                self.received += batch.pages.len() as u64;
                let size = self.page_size;
                batch
                    .pages
                    .into_iter()
                    .map(|page| convert::page_from_wire(page, size))
                    .collect::<Result<_, _>>()
                    .map(Some)
            }
            Some(Kind::End(end)) if u64::from(end.pages_sent) == self.received => Ok(None),
            Some(Kind::End(_)) => Err(StreamError::Invalid("a snapshot lacks pages".into())),
            Some(Kind::Header(_)) => Err(StreamError::Invalid("a snapshot has two headers".into())),
            // Of a later version.
            None => Ok(Some(Vec::new())),
        }
    }
}

/// The follower's position whenever it moved, at a bounded rate, and now and then when it did not.
fn send_acks(acks: Acks) -> impl futures::Stream<Item = wire::FollowMessage> + Send + 'static {
    futures::stream::unfold((acks, false), |(mut acks, paused)| async move {
        if paused {
            tokio::time::sleep(ACK_PAUSE).await;
        }
        if let Ok(Err(_)) = tokio::time::timeout(ACK_SILENCE, acks.changed()).await {
            return None;
        }
        let index = *acks.borrow_and_update();
        Some((convert::ack_to_wire(index), (acks, true)))
    })
}
