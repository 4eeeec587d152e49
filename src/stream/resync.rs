use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use tokio::sync::mpsc;

use super::relay::relay;
use super::{Globs, ReplicaTarget, StreamError, Upstream};
use crate::db::SnapshotHeader;
use crate::store::{CopyUnderWay, StoreError};
use crate::types::{DbName, LogIndex, Pgno};

/// Pages on their way from the network to the disk.
const PAGES_IN_FLIGHT: usize = 64;
/// Databases resynced at a time while everything is.
const DATABASES_IN_FLIGHT: usize = 4;
/// Attempts at a listing that stays the same while it is worked through.
const ROUNDS_MAX: usize = 5;

/// Brings one database in step with the upstream node's by difference.
///
/// # Errors
/// [`StreamError::NotFound`] where the upstream node has no such database.
pub(super) async fn resync_database(
    upstream: Arc<dyn Upstream>,
    target: Arc<dyn ReplicaTarget>,
    db: DbName,
) -> Result<SnapshotHeader, StreamError> {
    let counted = target.copying().begin();
    resync_counted(upstream, target, db, 0, Arc::new(counted)).await
}

/// The same as part of a copy that counts `listed_bytes` for the database.
async fn resync_counted(
    upstream: Arc<dyn Upstream>,
    target: Arc<dyn ReplicaTarget>,
    db: DbName,
    listed_bytes: u64,
    counted: Arc<CopyUnderWay>,
) -> Result<SnapshotHeader, StreamError> {
    let (reader, name) = (target.clone(), db.clone());
    let have = blocking(move || Ok(reader.page_checksums(&name)?)).await?;
    let (header, pages) = upstream.snapshot(db.clone(), have).await?;
    counted.add_total(header.bytes().saturating_sub(listed_bytes));
    relay(pages, PAGES_IN_FLIGHT, move |receiver| install(&*target, &db, header, receiver, &counted)).await?;
    Ok(header)
}

fn install(
    target: &dyn ReplicaTarget,
    db: &DbName,
    header: SnapshotHeader,
    mut pages: mpsc::Receiver<Option<(Pgno, Bytes)>>,
    counted: &CopyUnderWay,
) -> Result<(), StreamError> {
    let mut last = 0;
    let page_bytes = header.page_size.len() as u64;
    let refuse = |why: String| StoreError::Invalid(format!("snapshot of database {db}: {why}"));
    let mut next_page = || {
        let cut_off = || StoreError::Io {
            what: format!("snapshot of database {db}"),
            source: io::Error::new(io::ErrorKind::UnexpectedEof, "the connection broke"),
        };
        let Some((pgno, page)) = pages.blocking_recv().ok_or_else(cut_off)? else { return Ok(None) };
        if pgno.get() <= last || !header.commit.contains(pgno) || pgno == Pgno::lock_page(header.page_size) {
            return Err(refuse(format!("page {pgno} does not belong behind page {last}")));
        }
        if page.len() != header.page_size.len() {
            return Err(refuse(format!("page {pgno} has {} bytes", page.len())));
        }
        // Pages in between are here already.
        counted.add(u64::from(pgno.get() - last) * page_bytes);
        last = pgno.get();
        Ok(Some((pgno, page.into())))
    };
    target.install(db, header, &mut next_page)?;
    counted.add(u64::from(header.commit.get() - last) * page_bytes);
    Ok(())
}

/// Brings the whole set of databases in step; afterwards entries behind the index returned are to be applied.
///
/// # Errors
/// [`StreamError::Unavailable`] where the upstream node is itself behind `cursor`.
pub(super) async fn resync_all(
    upstream: Arc<dyn Upstream>,
    target: Arc<dyn ReplicaTarget>,
    globs: &Globs,
    cursor: LogIndex,
) -> Result<LogIndex, StreamError> {
    let mut listing = upstream.list(globs.clone()).await?;
    let counted = Arc::new(target.copying().begin());
    counted.add_total(listing.databases.iter().map(|db| db.size_bytes).sum());
    for _ in 0..ROUNDS_MAX {
        if listing.applied < cursor {
            return Err(StreamError::Unavailable(format!(
                "the upstream node stands at entry {}, behind this node's {cursor}",
                listing.applied
            )));
        }
        let names: Vec<DbName> = listing.databases.iter().map(|db| db.name.clone()).collect();
        futures::stream::iter(listing.databases.iter().map(Ok::<_, StreamError>))
            .try_for_each_concurrent(DATABASES_IN_FLIGHT, |listed| {
                let (upstream, target, counted) = (upstream.clone(), target.clone(), counted.clone());
                let (name, bytes) = (listed.name.clone(), listed.size_bytes);
                async move {
                    match resync_counted(upstream, target, name, bytes, counted).await {
                        // Dropped or renamed meanwhile: the second listing shows it.
                        Ok(_) | Err(StreamError::NotFound(_)) => Ok(()),
                        Err(error) => Err(error),
                    }
                }
            })
            .await?;
        let again = upstream.list(globs.clone()).await?;
        // A rename between the listing and a snapshot cannot be told from the pages; names that stayed can.
        if again.databases.iter().map(|db| &db.name).eq(names.iter()) {
            let applied = listing.applied;
            let list = again.names;
            let installed = move || {
                target.retain(&names, applied)?;
                list.map_or(Ok(()), |list| target.install_names(list, applied))
            };
            blocking(move || Ok(installed()?)).await?;
            return Ok(applied);
        }
        listing = again;
    }
    Err(StreamError::Unavailable("databases come and go too fast for a snapshot of them all".into()))
}

/// Runs blocking work of the target off the runtime's thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StreamError> + Send + 'static,
) -> Result<T, StreamError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| StreamError::ShuttingDown)?
}
