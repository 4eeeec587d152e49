use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use std::sync::Arc;
use tokio::sync::watch;

use super::{Frame, Globs, Hello, Listing, PeerIdentity, StreamError};
use crate::db::SnapshotHeader;
use crate::ltx::BlobRef;
use crate::types::{Checksum, DbName, LogIndex, Pgno};

/// Pages of a snapshot in ascending order; the stream's regular end is the snapshot's end.
pub type PageStream = BoxStream<'static, Result<(Pgno, Bytes), StreamError>>;

/// A follower's last applied entry, as it moves.
pub type Acks = watch::Receiver<LogIndex>;

/// Reaches a node by its address; implemented over gRPC.
pub trait Connector: Send + Sync + 'static {
    /// Connects to `HOST:PORT`. Called on the runtime that will drive the connection.
    fn connect(&self, addr: &str) -> BoxFuture<'static, Result<Arc<dyn Upstream>, StreamError>>;
}

/// A node that serves committed change sets.
pub trait Upstream: Send + Sync + 'static {
    /// Who it is.
    fn identify(&self) -> BoxFuture<'_, Result<PeerIdentity, StreamError>>;

    /// Entries from `hello.from` on, without end. The follower's position is told from `acks`.
    fn follow(
        &self,
        hello: Hello,
        acks: Acks,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Frame, StreamError>>, StreamError>>;

    /// The bytes of a large change set, in pieces.
    fn fetch_blob(
        &self,
        blob: BlobRef,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Bytes, StreamError>>, StreamError>>;

    /// Its databases.
    fn list(&self, globs: Globs) -> BoxFuture<'_, Result<Listing, StreamError>>;

    /// The pages of one database whose checksum differs from `have` (in page order).
    fn snapshot(
        &self,
        name: DbName,
        have: Vec<Checksum>,
    ) -> BoxFuture<'_, Result<(SnapshotHeader, PageStream), StreamError>>;
}
