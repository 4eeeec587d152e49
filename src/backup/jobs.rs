//! What takes long and is done beside the following of the log: snapshots, merges, and the removal of old files.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::{mpsc, oneshot};

use super::archive::by_directory;
use super::attributes::FileAttributes;
use super::chain::{Base, Chain};
use super::layout::{MERGED, SNAPSHOT, UPLOADED, manifest_key};
use super::level0::{Made, Naming, merge_files, whole_database};
use super::pass::show;
use super::tenure::{Assignment, Context, Done, Opened, Slot, Tenure};
use super::upkeep::{Merge, merge_due, retire};
use super::{ArchiveFile, BackupError};
use crate::telemetry::metrics::{BACKUP_SNAPSHOTS, BACKUP_UPLOADED_BYTES};
use crate::types::{DbName, Timestamp, Txid, TxidRange};

/// Jobs begun and not ended, at most; [`Context::jobs`] says how many of them work.
const BEGUN_MAX: usize = 16;
/// Between two looks at a database that changes.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// A job that failed is begun again after this time.
const AGAIN_AFTER: Duration = Duration::from_secs(30);
/// Files fetched at a time to be merged.
const FETCHES: usize = 4;

impl Tenure {
    /// Begins what is due.
    pub(super) async fn begin_jobs(&mut self) -> Result<(), BackupError> {
        let now = Timestamp::now();
        let without_base = self.slots.iter().filter(|(_, slot)| {
            matches!(slot, Slot::Known(chain) if chain.base == Base::Needed && chain.ended.is_none() && !chain.busy)
        });
        let without_base: Vec<DbName> = without_base.map(|(db, _)| db.clone()).collect();
        for db in without_base {
            let rests = self.due.get(&db).is_some_and(|at| *at > now);
            if !rests && self.jobs.len() < BEGUN_MAX {
                self.begin_snapshot(&db, true);
            }
        }
        let due: Vec<DbName> =
            self.due.iter().filter(|(_, at)| **at <= now).map(|(db, _)| db.clone()).collect();
        for db in due {
            if self.jobs.len() >= BEGUN_MAX {
                break;
            }
            self.due.remove(&db);
            self.look_after(&db, now).await?;
        }
        Ok(())
    }

    fn chain(&mut self, db: &DbName) -> Option<&mut Chain> {
        match self.slots.get_mut(db) {
            Some(Slot::Known(chain)) => Some(chain),
            _ => None,
        }
    }

    /// Merges, takes a snapshot, or removes what is old, whichever is due first; says when to look again.
    async fn look_after(&mut self, db: &DbName, now: Timestamp) -> Result<(), BackupError> {
        let (retention, every) = (self.context.options.retention, self.context.options.snapshot_interval);
        let Some(chain) = self.chain(db).filter(|chain| !chain.busy) else { return Ok(()) };
        if let Some(ended) = chain.ended {
            let gone = later(ended, retention);
            if gone <= now {
                return self.remove_all(db).await;
            }
            self.due.insert(db.clone(), gone);
            return Ok(());
        }
        if chain.base != Base::There {
            return Ok(());
        }
        let changed = chain.has_changed_since_snapshot();
        if let Some(merge) = merge_due(&chain.files, now) {
            self.begin_merge(db, merge);
            return Ok(());
        }
        if changed && chain.snapshot_time().is_none_or(|time| later(time, every) <= now) {
            self.begin_snapshot(db, false);
            return Ok(());
        }
        let old = retire(&chain.files, retention, now);
        let mut next = old.next;
        if changed {
            let soon = later(now, LOOK_EVERY);
            next = Some(next.map_or(soon, |next| next.min(soon)));
        }
        self.remove(db, old.files).await?;
        if let Some(next) = next {
            self.due.insert(db.clone(), next.max(later(now, Duration::from_secs(1))));
        }
        Ok(())
    }

    /// Removes files: first from the manifest, then from the bucket.
    async fn remove(&mut self, db: &DbName, files: Vec<ArchiveFile>) -> Result<(), BackupError> {
        if files.is_empty() {
            return Ok(());
        }
        let (context, epoch) = (self.context.clone(), self.epoch);
        let Some(chain) = self.chain(db) else { return Ok(()) };
        chain.files.retain(|file| !files.contains(file));
        chain.store_manifest(&*context.objects, db, &context.options.cluster, epoch).await?;
        let scheme = context.objects.scheme();
        let keys = files.iter().map(|file| scheme.key(&chain.directory, file.level, file.range)).collect();
        context.objects.delete(keys).await
    }

    /// Removes all of a database that ended long ago; the manifest last.
    async fn remove_all(&mut self, db: &DbName) -> Result<(), BackupError> {
        let Some(chain) = self.chain(db) else { return Ok(()) };
        let (files, manifest) = (chain.files.clone(), manifest_key(&chain.directory));
        self.remove(db, files).await?;
        self.context.objects.delete(vec![manifest]).await?;
        self.slots.remove(db);
        self.context.board.set_database(db, None);
        Ok(())
    }

    fn begin_snapshot(&mut self, db: &DbName, is_base: bool) {
        let (context, opened) = (self.context.clone(), self.opened.0.clone());
        let Some(chain) = self.chain(db) else { return };
        chain.busy = true;
        let (db, generation) = (db.clone(), chain.generation);
        self.jobs.spawn(async move {
            let result = snapshot(&context, &db, generation, is_base, opened).await;
            Done::Snapshot { db, generation, is_base, result }
        });
    }

    fn begin_merge(&mut self, db: &DbName, merge: Merge) {
        let (context, epoch) = (self.context.clone(), self.epoch);
        let Some(chain) = self.chain(db) else { return };
        chain.busy = true;
        let (db, generation, directory) = (db.clone(), chain.generation, chain.directory.clone());
        self.jobs.spawn(async move {
            let result = merge_in_bucket(&context, epoch, &directory, merge).await;
            Done::Merged { db, generation, result }
        });
    }

    /// Says how a snapshot is stored. The files go on behind a base at once, while it is still on its way.
    pub(super) async fn snapshot_opened(&mut self, opened: Opened) -> Result<(), BackupError> {
        let (context, epoch) = (self.context.clone(), self.epoch);
        let Opened { db, generation, is_base, header, time, assign } = opened;
        let Some(chain) = self.chain(&db).filter(|chain| chain.generation == generation) else {
            return Ok(());
        };
        let Some(txid) = header.pos.txid else { return Ok(()) };
        let cluster = &context.options.cluster;
        if is_base {
            chain.begin_at(header.pos, header.index, (header.page_size, header.commit), time);
            // A file without a manifest would be one of another program.
            chain.store_manifest(&*context.objects, &db, cluster, epoch).await?;
        } else {
            let end = chain.end().map_or(0, Txid::get);
            let goes_on = header.index >= chain.index && header.page_size == chain.page_size;
            let reaches = txid.get() + chain.offset > end || header.pos == chain.pos;
            if chain.base != Base::There || !goes_on || !reaches {
                return Ok(());
            }
        }
        let Some(range) = TxidRange::new(Txid::FIRST, txid) else { return Ok(()) };
        let range = TxidRange::new(Txid::FIRST, chain.shifted(range)?.max()).unwrap_or(range);
        let naming = Naming { range, time: chain.time.max(time) };
        let attributes = FileAttributes {
            time: naming.time,
            pos: header.pos,
            index: header.index,
            cluster: cluster.clone(),
            epoch,
        };
        let key = context.objects.scheme().key(&chain.directory, SNAPSHOT, range);
        // A job that has ended meanwhile does not want it any more.
        let _ = assign.send(Assignment { naming, key, attributes });
        Ok(())
    }

    /// Takes over what a job has brought.
    pub(super) async fn job_done(&mut self, done: Done) -> Result<(), BackupError> {
        match done {
            Done::Snapshot { db, generation, is_base, result } => {
                self.snapshot_done(&db, generation, is_base, result).await?;
                self.tell(&db);
            }
            Done::Merged { db, generation, result } => {
                self.merge_done(&db, generation, result).await?;
                self.tell(&db);
            }
        }
        Ok(())
    }

    fn tell(&self, db: &DbName) {
        if let Some(slot) = self.slots.get(db) {
            show(&self.context, db, slot);
        }
    }

    async fn snapshot_done(
        &mut self,
        db: &DbName,
        generation: u64,
        is_base: bool,
        result: Result<Option<ArchiveFile>, BackupError>,
    ) -> Result<(), BackupError> {
        let (context, epoch, again) =
            (self.context.clone(), self.epoch, later(Timestamp::now(), AGAIN_AFTER));
        let Some(chain) = self.chain(db) else { return Ok(()) };
        chain.busy = false;
        let current = chain.generation == generation;
        match result {
            Ok(Some(file)) if current => {
                metrics::counter!(BACKUP_SNAPSHOTS).increment(1);
                chain.files.push(file);
                if is_base {
                    chain.base = Base::There;
                }
                chain.store_manifest(&*context.objects, db, &context.options.cluster, epoch).await?;
                self.due.insert(db.clone(), Timestamp::now());
            }
            Ok(Some(file)) => {
                // Of a database that ended meanwhile; what follows has other numbers.
                let key = context.objects.scheme().key(&chain.directory, file.level, file.range);
                context.objects.delete(vec![key]).await?;
                self.due.insert(db.clone(), Timestamp::now());
            }
            Ok(None) => drop(self.due.insert(db.clone(), later(Timestamp::now(), Duration::from_secs(1)))),
            Err(error) => {
                tracing::warn!(%db, %error, "a snapshot for the backup failed; trying again");
                if is_base && current {
                    chain.need_base();
                }
                self.due.insert(db.clone(), again);
            }
        }
        Ok(())
    }

    async fn merge_done(
        &mut self,
        db: &DbName,
        generation: u64,
        result: Result<ArchiveFile, BackupError>,
    ) -> Result<(), BackupError> {
        let (context, epoch, again) =
            (self.context.clone(), self.epoch, later(Timestamp::now(), AGAIN_AFTER));
        let Some(chain) = self.chain(db) else { return Ok(()) };
        chain.busy = false;
        match result {
            Ok(file) => {
                chain.files.push(file);
                // Numbers of files are never used twice, so what was merged is right whatever came since.
                if chain.generation == generation || chain.manifest.is_some() {
                    chain.store_manifest(&*context.objects, db, &context.options.cluster, epoch).await?;
                }
                self.due.insert(db.clone(), Timestamp::now());
            }
            Err(BackupError::NotFound(what)) => {
                tracing::info!(%db, what, "files of the backup were removed by another; looking again");
                let listed = context.objects.list(&chain.directory).await?;
                let files =
                    by_directory(&*context.objects, &listed).remove(&chain.directory).unwrap_or_default();
                self.slots.insert(db.clone(), Slot::Listed(files));
            }
            Err(error) => {
                tracing::warn!(%db, %error, "cannot merge files of the backup; trying again");
                if matches!(error, BackupError::Corrupt(_)) {
                    // Nobody can follow the files any more.
                    chain.need_base();
                }
                self.due.insert(db.clone(), again);
            }
        }
        Ok(())
    }
}

fn later(time: Timestamp, span: Duration) -> Timestamp {
    Timestamp::from_ms(time.ms().saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
}

fn ended_early(error: &tokio::task::JoinError) -> BackupError {
    BackupError::Unavailable { what: "a task of the backup".into(), why: error.to_string() }
}

/// Makes a snapshot of a database and stores it as it is told.
async fn snapshot(
    context: &Arc<Context>,
    db: &DbName,
    generation: u64,
    is_base: bool,
    opened: mpsc::Sender<Opened>,
) -> Result<Option<ArchiveFile>, BackupError> {
    let Ok(_permit) = context.jobs.acquire().await else { return Ok(None) };
    let (worker, name) = (context.clone(), db.clone());
    let made = tokio::task::spawn_blocking(move || {
        let Some(database) = worker.store.get(&name) else { return Ok(None) };
        // The pages go to a file of this machine first: readers and checkpoints wait for no bucket.
        let mut view = worker.store.snapshot(&name)?;
        let time = match database.timestamp_ms() {
            0 => Timestamp::now(),
            ms => Timestamp::from_ms(ms),
        };
        let (assign, assigned) = oneshot::channel();
        let header = view.header();
        let opening = Opened { db: name, generation, is_base, header, time, assign };
        if opened.blocking_send(opening).is_err() {
            return Ok(None);
        }
        let Ok(assignment) = assigned.blocking_recv() else { return Ok(None) };
        let scratch = worker.store.layout().tmp();
        let made = whole_database(
            header,
            &mut |pgno, page| view.read_page(pgno, page),
            assignment.naming,
            &scratch,
        )?;
        Ok::<_, BackupError>(Some((assignment, made)))
    });
    let Some((assignment, made)) = made.await.map_err(|error| ended_early(&error))?? else { return Ok(None) };
    store(context, SNAPSHOT, assignment, made).await.map(Some)
}

async fn store(
    context: &Context,
    level: u8,
    assignment: Assignment,
    made: Made,
) -> Result<ArchiveFile, BackupError> {
    let Assignment { naming, key, attributes } = assignment;
    let size_bytes = made.size_bytes;
    context.objects.put(&key, made.body, &attributes.encode()).await?;
    metrics::counter!(BACKUP_UPLOADED_BYTES).increment(size_bytes);
    let (range, time, pos) = (naming.range, Some(naming.time), Some(attributes.pos));
    Ok(ArchiveFile { level, range, size_bytes, time, pos })
}

/// Makes one file of several. They are fetched: nothing of the backup is kept on this machine.
async fn merge_in_bucket(
    context: &Arc<Context>,
    epoch: u64,
    directory: &str,
    merge: Merge,
) -> Result<ArchiveFile, BackupError> {
    let ended = || BackupError::Unavailable { what: "merging".into(), why: "the node ends".into() };
    let _permit = context.jobs.acquire().await.map_err(|_| ended())?;
    let (Some(first), Some(last)) = (merge.inputs.first(), merge.inputs.last()) else { return Err(ended()) };
    let range = TxidRange::new(first.range.min(), last.range.max()).unwrap_or(last.range);
    let scheme = context.objects.scheme();
    let from = if merge.level == MERGED { UPLOADED } else { MERGED };
    let scratch = context.store.layout().tmp();
    let keys: Vec<String> = merge.inputs.iter().map(|file| scheme.key(directory, from, file.range)).collect();
    let mut fetches = Vec::with_capacity(keys.len());
    for key in &keys {
        fetches.push(context.objects.fetch(key, &scratch));
    }
    let fetched: Vec<_> = stream::iter(fetches).buffered(FETCHES).try_collect().await?;
    let stored = fetched.last().and_then(|last| FileAttributes::decode(&last.attributes));
    let attributes = stored.map(|stored| FileAttributes { epoch, ..stored });
    let time =
        last.time.or(attributes.as_ref().map(|attributes| attributes.time)).unwrap_or_else(Timestamp::now);
    let naming = Naming { range, time };
    let bytes = merge.inputs.iter().map(|file| file.size_bytes).sum();
    let (files, into) = (fetched.into_iter().map(|fetched| fetched.file).collect(), scratch.clone());
    let made = tokio::task::spawn_blocking(move || merge_files(files, bytes, naming, &into));
    let made = made.await.map_err(|error| ended_early(&error))??;
    let Some(attributes) = attributes else {
        return Err(BackupError::Corrupt(format!(
            "the attributes of {} are lost",
            keys.last().map_or("", |key| key)
        )));
    };
    store(
        context,
        merge.level,
        Assignment { naming, key: scheme.key(directory, merge.level, range), attributes },
        made,
    )
    .await
}
