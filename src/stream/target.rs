use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::db::SnapshotHeader;
use crate::io::blobs::BlobWriter;
use crate::ltx::BlobRef;
use crate::store::{Change, Copying, NameList, PrimaryInfo, Store, StoreError};
use crate::telemetry::metrics::{APPLY_LAG_SECONDS, APPLY_SECONDS};
use crate::telemetry::traces;
use crate::types::{Checksum, DbName, LogIndex, Pgno};

/// What is older was not made just now: an entry redone after a start.
const LAG_MAX: Duration = Duration::from_secs(3600);

/// What a follower brings up to date; the store of a replica. Blocking, callable from any thread.
pub trait ReplicaTarget: Send + Sync + 'static {
    /// Applies an entry; skips what the databases already have.
    fn apply(&self, index: LogIndex, change: &Change) -> Result<(), StoreError>;

    /// Notes that everything up to `index` is applied.
    fn applied(&self, index: LogIndex);

    /// Notes that everything up to `index` has been given to its databases; some may still wait for their turn.
    fn taken(&self, _index: LogIndex) {}

    /// Notes that entries of a database wait, or do no more. Must not block.
    fn set_behind(&self, _db: &DbName, _behind: bool) {}

    /// A database has caught up: nothing waits for it any more.
    fn caught_up(self: Arc<Self>, _db: &DbName) {}

    /// Whether a change was proposed by this node, which keeps its databases claimed until it is applied.
    fn is_claimed(&self, _change: &Change) -> bool {
        false
    }

    /// Stops serving a database that cannot be brought in step now; its files stay.
    fn fail(&self, _db: &DbName, _why: &str) {}

    /// Whether a database is here and not served.
    fn is_failed(&self, _db: &DbName) -> bool {
        false
    }

    /// Last entry applied.
    fn applied_index(&self) -> LogIndex;

    /// Entries at or below it need no redo after a restart.
    fn durable_index(&self) -> LogIndex;

    /// Whether [`apply`](Self::apply) to this database would have to wait now (an application reads it).
    fn would_block(&self, _db: &DbName) -> bool {
        false
    }

    /// Whether a database with a transaction is here.
    fn has_data(&self) -> bool;

    /// Checksums of a database's pages in page order; empty where there is none.
    fn page_checksums(&self, name: &DbName) -> Result<Vec<Checksum>, StoreError>;

    /// Brings a database to `target` with the pages that differ.
    fn install(
        &self,
        name: &DbName,
        target: SnapshotHeader,
        next_page: &mut dyn FnMut() -> Result<Option<(Pgno, Vec<u8>)>, StoreError>,
    ) -> Result<(), StoreError>;

    /// Removes the databases that are not in `keep`.
    fn retain(&self, keep: &[DbName], index: LogIndex) -> Result<(), StoreError>;

    /// Makes attributes, directories and databases without content what a node has that stands at `index`.
    fn install_names(&self, _names: NameList, _index: LogIndex) -> Result<(), StoreError> {
        Ok(())
    }

    /// Where what is fetched is counted.
    fn copying(&self) -> Arc<Copying> {
        Arc::default()
    }

    /// Notes who is primary.
    fn set_primary(&self, primary: Option<PrimaryInfo>);

    /// Whether a large change set is here.
    fn contains_blob(&self, blob: BlobRef) -> bool;

    /// Removes a large change set that is not needed any more.
    fn remove_blob(&self, blob: BlobRef) -> io::Result<()>;

    /// Starts storing a large change set.
    fn create_blob(&self) -> io::Result<Box<dyn BlobSink + '_>>;
}

/// A large change set being stored; vanishes unless kept.
pub trait BlobSink: Write {
    /// Makes it durable under its name.
    fn keep(self: Box<Self>, blob: BlobRef) -> io::Result<()>;
}

struct StoreBlob<'a> {
    store: &'a Store,
    writer: BlobWriter,
}

impl Write for StoreBlob<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.writer.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl BlobSink for StoreBlob<'_> {
    fn keep(self: Box<Self>, blob: BlobRef) -> io::Result<()> {
        self.store.blobs().keep(self.writer, (blob.digest, blob.size_bytes))
    }
}

impl ReplicaTarget for Store {
    fn copying(&self) -> Arc<Copying> {
        Store::copying(self).clone()
    }

    fn would_block(&self, db: &DbName) -> bool {
        self.apply_may_wait(db)
    }

    fn apply(&self, index: LogIndex, change: &Change) -> Result<(), StoreError> {
        let begun = Instant::now();
        Store::apply(self, index, change)?;
        metrics::histogram!(APPLY_SECONDS).record(begun.elapsed().as_secs_f64());
        let made = UNIX_EPOCH + Duration::from_millis(u64::try_from(change.timestamp_ms).unwrap_or_default());
        // Redone after a start it tells nothing; where the clocks disagree it may come from the future.
        if let Ok(age) = SystemTime::now().duration_since(made)
            && age < LAG_MAX
        {
            metrics::histogram!(APPLY_LAG_SECONDS).record(age.as_secs_f64());
        }
        traces::applied(index, change, begun);
        Ok(())
    }

    fn applied(&self, index: LogIndex) {
        Store::applied(self, index);
    }

    fn taken(&self, index: LogIndex) {
        Store::taken(self, index);
    }

    fn set_behind(&self, db: &DbName, behind: bool) {
        Store::set_behind(self, db, behind);
    }

    fn caught_up(self: Arc<Self>, db: &DbName) {
        Store::caught_up(&self, db);
    }

    fn is_claimed(&self, change: &Change) -> bool {
        Store::is_claimed(self, change)
    }

    fn fail(&self, db: &DbName, why: &str) {
        Store::fail(self, db, why);
    }

    fn is_failed(&self, db: &DbName) -> bool {
        self.get(db).is_some_and(|database| database.failure().is_some())
    }

    fn applied_index(&self) -> LogIndex {
        Store::applied_index(self)
    }

    fn durable_index(&self) -> LogIndex {
        Store::durable_index(self)
    }

    fn has_data(&self) -> bool {
        !self.list().is_empty()
    }

    fn page_checksums(&self, name: &DbName) -> Result<Vec<Checksum>, StoreError> {
        Store::page_checksums(self, name)
    }

    fn install(
        &self,
        name: &DbName,
        target: SnapshotHeader,
        next_page: &mut dyn FnMut() -> Result<Option<(Pgno, Vec<u8>)>, StoreError>,
    ) -> Result<(), StoreError> {
        Store::install(self, name, target, next_page)
    }

    fn retain(&self, keep: &[DbName], index: LogIndex) -> Result<(), StoreError> {
        Store::retain(self, keep, index)
    }

    fn install_names(&self, names: NameList, index: LogIndex) -> Result<(), StoreError> {
        Store::install_names(self, names, index)
    }

    fn set_primary(&self, primary: Option<PrimaryInfo>) {
        Store::set_primary(self, primary);
    }

    fn contains_blob(&self, blob: BlobRef) -> bool {
        self.blobs().contains((blob.digest, blob.size_bytes))
    }

    fn remove_blob(&self, blob: BlobRef) -> io::Result<()> {
        self.blobs().remove((blob.digest, blob.size_bytes))
    }

    fn create_blob(&self) -> io::Result<Box<dyn BlobSink + '_>> {
        Ok(Box::new(StoreBlob { store: self, writer: self.blobs().create()? }))
    }
}
