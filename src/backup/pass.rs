//! From the log to the bucket: what one look at the log brings.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, stream};
use tokio::time::{Duration, Instant};

use super::chain::{Base, Chain};
use super::layout::UPLOADED;
use super::level0::{Made, Naming, merge_sets, whole_database};
use super::tenure::{Context, Slot, Tenure};
use super::{ArchiveFile, BackupError, DatabaseBackup};
use crate::ltx::ChangeSet;
use crate::store::{Change, ChangeKind, LogReadError, StoreError};
use crate::telemetry::metrics::BACKUP_UPLOADED_BYTES;
use crate::types::{Checksum, DbName, LogIndex, PageCount, Timestamp, Txid, TxidRange};

/// Log read at a time, in bytes: what of it waits for the bucket is in memory.
const READ_BYTES: usize = 4 << 20;
/// Databases uploaded at a time.
const DATABASES_AT_A_TIME: usize = 8;
/// Directories looked at in one pass that nothing in the log concerns.
const LOOKS_PER_PASS: usize = 8;
/// A database that cannot be backed up is tried again after this time.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// Larger databases are not uploaded as a whole when they shrink, in bytes: see [`shrinks_visibly`].
const WHOLE_BYTES_MAX: u64 = 8 << 20;

/// What the log says about one database.
enum Event {
    /// It was changed.
    Commit(ChangeSet, Timestamp, LogIndex),
    /// It was dropped or renamed.
    Ended(Timestamp, LogIndex),
    /// Another one has taken its name.
    Replaced(Timestamp, LogIndex),
}

impl Tenure {
    /// Uploads what the log has behind the cursor.
    pub(super) async fn follow_log(&mut self) -> Result<(), BackupError> {
        loop {
            let applied = *self.context.log.applied().borrow();
            if applied <= self.cursor {
                return Ok(());
            }
            let (log, from) = (self.context.log.clone(), self.cursor.next());
            let read = tokio::task::spawn_blocking(move || log.read(from, READ_BYTES)).await;
            let entries = match read.map_err(|error| unreadable(&error.to_string()))? {
                Ok(entries) => entries,
                Err(LogReadError::Purged { .. }) => {
                    tracing::warn!(%from, "the log does not go back to where the backup is; databases that have changed since get a snapshot");
                    self.cursor = applied;
                    self.compare_all();
                    continue;
                }
                Err(error) => return Err(unreadable(&error.to_string())),
            };
            let (mut events, mut last) = (BTreeMap::new(), self.cursor);
            for (index, entry) in entries.into_iter().take_while(|(index, _)| *index <= applied) {
                last = index;
                if !entry.is_empty() {
                    let change = Change::decode(entry).map_err(|error| unreadable(&error.to_string()))?;
                    note(&mut events, change, index);
                }
            }
            if last == self.cursor {
                return Ok(());
            }
            events.retain(|db, _| self.context.options.databases.matches(db));
            self.upload(events).await?;
            self.cursor = last;
        }
    }

    /// Uploads what concerns each database, several at a time. What one of them fails with is its own, but for the bucket's
    /// not answering: then all is done again, and what is done is skipped.
    async fn upload(&mut self, events: BTreeMap<DbName, Vec<Event>>) -> Result<(), BackupError> {
        let mut work = Vec::new();
        for (db, events) in events {
            let slot = self.slots.remove(&db).unwrap_or(Slot::Listed(Vec::new()));
            work.push(advance(self.context.clone(), self.epoch, db, slot, events));
        }
        let mut advanced = stream::iter(work).buffer_unordered(DATABASES_AT_A_TIME);
        let mut failed = None;
        while let Some((db, slot, outcome)) = advanced.next().await {
            show(&self.context, &db, &slot);
            self.due.insert(db.clone(), Timestamp::now());
            self.slots.insert(db, slot);
            if let Err(error) = outcome {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Finds out about databases that nothing in the log concerns: their files may be behind, or of a database that is no
    /// more.
    pub(super) async fn look_at_some(&mut self) -> Result<(), BackupError> {
        let unknown = |slot: &Slot| match slot {
            Slot::Listed(_) => true,
            Slot::Failed(.., again) => *again <= Instant::now(),
            Slot::Known(_) => false,
        };
        let some: Vec<DbName> = self
            .slots
            .iter()
            .filter(|(_, slot)| unknown(slot))
            .take(LOOKS_PER_PASS)
            .map(|(db, _)| db.clone())
            .collect();
        for db in some {
            let slot = self.slots.remove(&db).unwrap_or(Slot::Listed(Vec::new()));
            let (mut slot, outcome) = known(&self.context, &db, slot).await;
            if let Slot::Known(chain) = &mut slot {
                compare(&self.context, self.cursor, &db, chain);
            }
            show(&self.context, &db, &slot);
            self.due.insert(db.clone(), Timestamp::now());
            self.slots.insert(db, slot);
            outcome?;
        }
        Ok(())
    }

    /// Compares every database with its files, because the log between them is gone.
    fn compare_all(&mut self) {
        for (db, slot) in &mut self.slots {
            if let Slot::Known(chain) = slot {
                compare(&self.context, self.cursor, db, chain);
            }
        }
        for database in self.context.store.list() {
            if self.context.options.databases.matches(&database.name) {
                self.slots.entry(database.name).or_insert_with(|| Slot::Listed(Vec::new()));
            }
        }
    }

    /// Whether a restore of some database gives less than it should, because a snapshot is not there yet.
    pub(super) fn lacks_base(&self) -> bool {
        self.slots.values().any(|slot| match slot {
            Slot::Known(chain) => chain.base != Base::There && chain.ended.is_none(),
            Slot::Failed(..) => true,
            Slot::Listed(_) => false,
        })
    }
}

fn unreadable(why: &str) -> BackupError {
    BackupError::Unavailable { what: "reading the log".into(), why: why.to_owned() }
}

/// Sorts an entry's content by database.
fn note(events: &mut BTreeMap<DbName, Vec<Event>>, change: Change, index: LogIndex) {
    let time = Timestamp::from_ms(change.timestamp_ms);
    let mut add = |db: DbName, event: Event| events.entry(db).or_default().push(event);
    match change.kind {
        ChangeKind::Commit(sets) => {
            for set in sets {
                add(set.db.clone(), Event::Commit(set, time, index));
            }
        }
        ChangeKind::Drop(db) => add(db, Event::Ended(time, index)),
        ChangeKind::Rename { from, to } => {
            add(from, Event::Ended(time, index));
            add(to, Event::Replaced(time, index));
        }
        ChangeKind::RenameDirectory { from, to, databases } => {
            for old in databases {
                if let Ok(new) = ChangeKind::name_below(&from, &to, &old) {
                    add(new, Event::Replaced(time, index));
                }
                add(old, Event::Ended(time, index));
            }
        }
        ChangeKind::Create { .. }
        | ChangeKind::SetAttributes { .. }
        | ChangeKind::MakeDirectory { .. }
        | ChangeKind::RemoveDirectory(_) => {}
    }
}

/// Where the files of a database are behind it by more than the log still to be read, they need a snapshot; where the
/// database is no more, they end.
fn compare(context: &Context, cursor: LogIndex, db: &DbName, chain: &mut Chain) {
    let database = context.store.get(db).filter(|database| database.pos().txid.is_some());
    match database {
        Some(database) => {
            let (pos, index) = (database.pos(), database.index());
            let current = chain.base != Base::There || chain.pos == pos;
            if index <= cursor && !current {
                tracing::info!(%db, bucket = %chain.pos, here = %pos, "the backup is behind the log; it goes on with a snapshot");
                chain.need_base();
            }
        }
        None if chain.ended.is_none() && !chain.files.is_empty() => chain.end_at(cursor, Timestamp::now()),
        None => {}
    }
}

/// The slot with everything known of the files, where that can be found out.
async fn known(context: &Context, db: &DbName, slot: Slot) -> (Slot, Result<(), BackupError>) {
    let listed = match slot {
        Slot::Listed(files) => files,
        Slot::Failed(why, files, again) if again > Instant::now() => {
            return (Slot::Failed(why, files, again), Ok(()));
        }
        Slot::Failed(_, files, _) => files,
        known => return (known, Ok(())),
    };
    match Chain::load(&context.objects, db, &context.options.cluster, listed.clone()).await {
        Ok(chain) => (Slot::Known(Box::new(chain)), Ok(())),
        Err(error) if error.is_temporary() => (Slot::Listed(listed), Err(error)),
        Err(error) => (failed(db, error, listed), Ok(())),
    }
}

/// A database that cannot be backed up does not keep the others from it.
fn failed(db: &DbName, error: BackupError, listed: Vec<ArchiveFile>) -> Slot {
    tracing::warn!(%db, %error, "cannot back up this database");
    Slot::Failed(error.to_string(), listed, Instant::now() + TRY_AGAIN_AFTER)
}

/// Brings one database's files up to date with what the log says.
async fn advance(
    context: Arc<Context>,
    epoch: u64,
    db: DbName,
    slot: Slot,
    events: Vec<Event>,
) -> (DbName, Slot, Result<(), BackupError>) {
    let (slot, outcome) = known(&context, &db, slot).await;
    let Slot::Known(mut chain) = slot else { return (db, slot, outcome) };
    let outcome = follow(&context, epoch, &db, &mut chain, events).await;
    match outcome {
        Ok(()) => (db, Slot::Known(chain), Ok(())),
        Err(error) if error.is_temporary() => (db, Slot::Known(chain), Err(error)),
        Err(error) => {
            // What the log says cannot be used: the database as it is can.
            tracing::warn!(%db, %error, "the backup goes on with a snapshot");
            chain.need_base();
            (db, Slot::Known(chain), Ok(()))
        }
    }
}

async fn follow(
    context: &Arc<Context>,
    epoch: u64,
    db: &DbName,
    chain: &mut Chain,
    events: Vec<Event>,
) -> Result<(), BackupError> {
    let mut run: Vec<(ChangeSet, Timestamp, LogIndex)> = Vec::new();
    for event in events {
        match event {
            Event::Commit(_, _, index) | Event::Ended(_, index) | Event::Replaced(_, index)
                if index <= chain.index => {}
            Event::Ended(time, index) => {
                upload_run(context, epoch, db, chain, std::mem::take(&mut run)).await?;
                chain.end_at(index, time);
                if chain.manifest.is_some() {
                    chain.store_manifest(&*context.objects, db, &context.options.cluster, epoch).await?;
                }
            }
            Event::Replaced(time, index) => {
                upload_run(context, epoch, db, chain, std::mem::take(&mut run)).await?;
                chain.end_at(index, time);
                // It has content already, which no entry brings.
                chain.ended = None;
            }
            Event::Commit(set, time, index) => {
                let (pos, page_size) = match run.last() {
                    Some((last, ..)) => (last.pos(), last.page_size),
                    None => (chain.pos, chain.page_size),
                };
                let continues = set.range.min() == pos.next_txid() && set.pre == pos.checksum;
                let fits = continues && set.page_size == page_size && set.commit > PageCount::ZERO;
                if chain.base == Base::Needed || !fits {
                    upload_run(context, epoch, db, chain, std::mem::take(&mut run)).await?;
                    // What comes now is in the snapshot that is made of it.
                    chain.ended = None;
                    if chain.base != Base::Needed {
                        chain.need_base();
                    }
                    continue;
                }
                run.push((set, time, index));
            }
        }
    }
    upload_run(context, epoch, db, chain, run).await
}

/// Uploads following change sets as one file of level 0.
async fn upload_run(
    context: &Arc<Context>,
    epoch: u64,
    db: &DbName,
    chain: &mut Chain,
    run: Vec<(ChangeSet, Timestamp, LogIndex)>,
) -> Result<(), BackupError> {
    let Some((last, time, index)) = run.last().cloned() else { return Ok(()) };
    let Some((first, ..)) = run.first() else { return Ok(()) };
    let Some(range) = TxidRange::new(first.range.min(), last.range.max()) else { return Ok(()) };
    let time = chain.time.max(time);
    if shrinks_visibly(chain, &last) {
        return upload_whole(context, epoch, db, chain).await;
    }
    let naming = Naming { range: chain.shifted(range)?, time };
    let (sets, before) = (run.into_iter().map(|(set, ..)| set).collect::<Vec<_>>(), chain.pages);
    let worker = context.clone();
    let made = tokio::task::spawn_blocking(move || {
        let scratch = worker.store.layout().tmp();
        merge_sets(&sets, before, naming, worker.store.blobs(), &scratch)
    });
    let made = made.await.map_err(|error| unreadable(&error.to_string()))??;
    // Known to the file only once it is there.
    let before = (chain.pos, chain.index, chain.time, chain.pages);
    (chain.pos, chain.index, chain.time, chain.pages) = (last.pos(), index, time, last.commit);
    let stored = put_file(context, epoch, chain, naming, made).await;
    if stored.is_err() {
        (chain.pos, chain.index, chain.time, chain.pages) = before;
    }
    stored
}

/// Whether a live reader of Litestream's would lose pages: it cannot make a database smaller unless the file that does has
/// all pages. That is done for small databases; for large ones it would be too much to send, and such a reader must
/// open the database anew.
fn shrinks_visibly(chain: &Chain, last: &ChangeSet) -> bool {
    last.commit < chain.pages
        && last.commit.bytes(last.page_size) <= WHOLE_BYTES_MAX
        && chain.base == Base::There
}

/// Uploads all pages of the database as it is now as a file of level 0.
async fn upload_whole(
    context: &Arc<Context>,
    epoch: u64,
    db: &DbName,
    chain: &mut Chain,
) -> Result<(), BackupError> {
    let (worker, name, from) = (context.clone(), db.clone(), chain.pos.next_txid());
    let (offset, now) = (chain.offset, chain.time.max(Timestamp::now()));
    let made = tokio::task::spawn_blocking(move || {
        let mut view = worker.store.snapshot(&name)?;
        let header = view.header();
        let shift = |txid: Txid| txid.checked_add(offset);
        let range = header.pos.txid.and_then(|to| TxidRange::new(shift(from)?, shift(to)?));
        let Some(range) = range else {
            return Err(StoreError::Invalid(format!("database {name} is behind its own log")).into());
        };
        let naming = Naming { range, time: now };
        let scratch = worker.store.layout().tmp();
        let made = whole_database(header, &mut |pgno, page| view.read_page(pgno, page), naming, &scratch)?;
        Ok::<_, BackupError>((header, naming, made))
    });
    let (header, naming, made) = made.await.map_err(|error| unreadable(&error.to_string()))??;
    let before = (chain.pos, chain.index, chain.time, chain.pages);
    (chain.pos, chain.index, chain.time, chain.pages) =
        (header.pos, header.index, naming.time, header.commit);
    let stored = put_file(context, epoch, chain, naming, made).await;
    if stored.is_err() {
        (chain.pos, chain.index, chain.time, chain.pages) = before;
    }
    stored
}

/// Stores a file of level 0 that leads to where the chain now stands.
async fn put_file(
    context: &Context,
    epoch: u64,
    chain: &mut Chain,
    naming: Naming,
    made: Made,
) -> Result<(), BackupError> {
    let key = context.objects.scheme().key(&chain.directory, UPLOADED, naming.range);
    let attributes = chain.attributes(&context.options.cluster, epoch).encode();
    let size_bytes = made.size_bytes;
    context.objects.put(&key, made.body, &attributes).await?;
    metrics::counter!(BACKUP_UPLOADED_BYTES).increment(size_bytes);
    let (level, range, time, pos) = (UPLOADED, naming.range, Some(naming.time), Some(chain.pos));
    chain.files.push(ArchiveFile { level, range, size_bytes, time, pos });
    Ok(())
}

/// Tells the status of a database.
pub(super) fn show(context: &Context, db: &DbName, slot: &Slot) {
    let name = db.to_string();
    let status = match slot {
        Slot::Listed(files) => DatabaseBackup { name, files: files.len(), ..DatabaseBackup::default() },
        Slot::Failed(why, files, _) => {
            DatabaseBackup { name, files: files.len(), error: Some(why.clone()), ..DatabaseBackup::default() }
        }
        Slot::Known(chain) if chain.files.is_empty() && context.store.get(db).is_none() => {
            return context.board.set_database(db, None);
        }
        Slot::Known(chain) => {
            let there =
                (chain.base == Base::There || chain.ended.is_some()) && chain.pos.checksum != Checksum::EMPTY;
            DatabaseBackup {
                name,
                position: there.then(|| chain.pos.to_string()),
                txid_offset: chain.offset,
                time: there.then(|| chain.time.to_string()),
                snapshot: chain.snapshot_time().map(|time| time.to_string()),
                files: chain.files.len(),
                ended: chain.ended.map(|time| time.to_string()),
                error: None,
                verified: None,
            }
        }
    };
    context.board.set_database(db, Some(status));
}
