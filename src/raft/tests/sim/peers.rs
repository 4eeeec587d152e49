//! How a simulated voter fetches databases by difference: from the other one's store, without a network.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use super::world::World;
use crate::db::SnapshotHeader;
use crate::ltx::BlobRef;
use crate::store::Store;
use crate::stream::{
    Acks, ClusterId, Connector, Frame, Globs, Hello, Listing, PROTOCOL_VERSION, PageStream, PeerIdentity,
    SnapshotPiece, SnapshotSource, StreamError, Upstream, send_snapshot,
};
use crate::types::{Checksum, DbName, NodeId, Pgno, Role};

/// The cluster of all simulations.
pub fn cluster() -> ClusterId {
    "simulation".parse().unwrap()
}

/// What a node is reached by.
pub fn address(node: u64) -> String {
    format!("n{node}")
}

/// Reaches simulated nodes.
pub struct SimConnector {
    pub world: Arc<World>,
}

struct SimUpstream {
    node: u64,
    store: Arc<Store>,
}

impl Connector for SimConnector {
    fn connect(&self, addr: &str) -> BoxFuture<'static, Result<Arc<dyn Upstream>, StreamError>> {
        let node = addr.trim_start_matches('n').parse().unwrap_or(0);
        let live = self.world.live(node);
        let unreachable = StreamError::Unavailable(format!("{addr} does not answer"));
        Box::pin(async move {
            let store = live.ok_or(unreachable)?.store.clone();
            Ok(Arc::new(SimUpstream { node, store }) as Arc<dyn Upstream>)
        })
    }
}

fn unused<T: Send + 'static>() -> BoxFuture<'static, Result<T, StreamError>> {
    Box::pin(async { Err(StreamError::NotFound("a stream of a simulated node".into())) })
}

impl Upstream for SimUpstream {
    fn identify(&self) -> BoxFuture<'_, Result<PeerIdentity, StreamError>> {
        let identity = PeerIdentity {
            cluster: cluster(),
            node: NodeId::new(self.node),
            name: address(self.node).parse().unwrap(),
            protocol_version: PROTOCOL_VERSION,
            role: Role::Voter,
            http: String::new(),
            proxy: String::new(),
        };
        Box::pin(async { Ok(identity) })
    }

    fn follow(
        &self,
        _hello: Hello,
        _acks: Acks,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Frame, StreamError>>, StreamError>> {
        unused()
    }

    fn fetch_blob(
        &self,
        _blob: BlobRef,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Bytes, StreamError>>, StreamError>> {
        unused()
    }

    fn list(&self, _globs: Globs) -> BoxFuture<'_, Result<Listing, StreamError>> {
        let applied = self.store.applied_index();
        let databases = SnapshotSource::list(&*self.store);
        let names = Some(SnapshotSource::names(&*self.store));
        Box::pin(async move { Ok(Listing { applied, databases, names }) })
    }

    fn snapshot(
        &self,
        name: DbName,
        have: Vec<Checksum>,
    ) -> BoxFuture<'_, Result<(SnapshotHeader, PageStream), StreamError>> {
        let taken = take(&self.store, &name, have);
        Box::pin(async move {
            let (header, pages) = taken?;
            Ok((header, futures::stream::iter(pages.into_iter().map(Ok)).boxed()))
        })
    }
}

fn take(
    store: &Store,
    name: &DbName,
    have: Vec<Checksum>,
) -> Result<(SnapshotHeader, Vec<(Pgno, Bytes)>), StreamError> {
    let (mut header, mut pages) = (None, Vec::new());
    let mut have = have.into_iter();
    send_snapshot(store, name, &mut || Ok(have.next()), &mut |piece| {
        match piece {
            SnapshotPiece::Header(first) => header = Some(first),
            SnapshotPiece::Pages(more) => pages.extend(more),
            SnapshotPiece::End(_) => {}
        }
        true
    })?;
    Ok((header.ok_or_else(|| StreamError::Invalid("a snapshot without a header".into()))?, pages))
}
