//! The task that keeps a bucket in step with the cluster, on whichever node is primary.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::archive::{by_directory, databases};
use super::layout::{LEASE, directory_of_manifest};
use super::tenure::{BackupOptions, Context, Slot, Tenure};
use super::{BackupError, BucketLease, Holder, Objects, StatusBoard, database_of};
use crate::store::{CommittedLog, Store};
use crate::telemetry::metrics::{BACKUP_ERRORS, BACKUP_LAG_SECONDS};
use crate::types::LogIndex;

/// Uploads while this node is primary.
pub struct Uploader {
    context: Arc<Context>,
    role: watch::Receiver<Option<u64>>,
    shutdown: CancellationToken,
}

/// Snapshots and merges at a time.
const JOBS_MAX: usize = 4;
/// After a failure the bucket is asked again after this time,
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// and after the next ones after up to this.
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(10);
/// The lease notes at most this often how far the bucket is.
const LEASE_EVERY: Duration = Duration::from_secs(15);

impl Uploader {
    /// An uploader of what `log` and `store` have; `role` is the term that this node is primary in.
    pub fn new(
        options: BackupOptions,
        objects: Arc<dyn Objects>,
        store: Arc<Store>,
        log: Arc<dyn CommittedLog>,
        role: watch::Receiver<Option<u64>>,
        shutdown: CancellationToken,
    ) -> Self {
        let board = StatusBoard::new(options.url.clone(), options.warn_after);
        let jobs = Arc::new(Semaphore::new(JOBS_MAX));
        let context = Arc::new(Context { options, objects, store, log, board, jobs });
        Self { context, role, shutdown }
    }

    /// Where its status can be read.
    pub fn board(&self) -> StatusBoard {
        self.context.board.clone()
    }

    /// Uploads until the node ends.
    pub async fn run(mut self) {
        let mut pause = AGAIN_AFTER;
        loop {
            let epoch = *self.role.borrow_and_update();
            let Some(epoch) = epoch else {
                self.context.board.set_state(None);
                tokio::select! {
                    changed = self.role.changed() => if changed.is_err() { return },
                    () = self.shutdown.cancelled() => return,
                }
                continue;
            };
            let ended = match Tenure::begin(self.context.clone(), epoch).await {
                Ok(mut tenure) => {
                    pause = AGAIN_AFTER;
                    tenure.work(&mut self.role, &self.shutdown).await
                }
                Err(error) => Err(error),
            };
            if self.shutdown.is_cancelled() {
                return;
            }
            let Err(error) = ended else { continue };
            report(&self.context, &error);
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(AGAIN_AFTER_MAX),
                _ = self.role.changed() => {}
                () = self.shutdown.cancelled() => return,
            }
        }
    }
}

/// Says aloud that the bucket is not in step; once for each reason.
fn report(context: &Context, error: &BackupError) {
    metrics::counter!(BACKUP_ERRORS).increment(1);
    let why = error.to_string();
    if context.board.failure().as_ref() != Some(&why) {
        tracing::warn!(url = %context.options.url, %error, "cannot back up; trying again");
    }
    context.board.set_state(Some(Err(why)));
}

impl Tenure {
    /// Takes the lease, and finds out by one listing what is there.
    async fn begin(context: Arc<Context>, epoch: u64) -> Result<Self, BackupError> {
        let BackupOptions { cluster, node, run, url, .. } = &context.options;
        let holder = Holder { cluster: cluster.clone(), epoch, node: node.clone(), run: *run };
        let objects = context.objects.clone();
        if objects.get(LEASE).await?.is_none() {
            refuse_foreign(&*objects, url).await?;
        }
        let (lease, reached) = BucketLease::acquire(&*objects, &holder, url).await?;
        let listed = objects.list("").await?;
        let mut slots = BTreeMap::new();
        for (directory, files) in by_directory(&*objects, &listed) {
            if let Some(db) = database_of(&directory) {
                slots.insert(db, Slot::Listed(files));
            }
        }
        for db in listed.iter().filter_map(|listed| database_of(directory_of_manifest(&listed.key)?)) {
            slots.entry(db).or_insert_with(|| Slot::Listed(Vec::new()));
        }
        for database in context.store.list() {
            slots.entry(database.name).or_insert_with(|| Slot::Listed(Vec::new()));
        }
        slots.retain(|db, _| context.options.databases.matches(db));
        let applied = *context.log.applied().borrow();
        // Where the log does not go back so far each database is compared instead.
        let in_log = |index: &LogIndex| *index <= applied && index.next() >= context.log.first_index();
        let cursor = reached.filter(in_log).unwrap_or(applied);
        context.board.set_state(Some(Ok(())));
        tracing::info!(url, epoch, from = %cursor, databases = slots.len(), "backing up");
        let (due, jobs, opened) = (BTreeMap::new(), JoinSet::new(), mpsc::channel(16));
        let renewed = Instant::now();
        Ok(Self { context, epoch, lease, cursor, slots, due, jobs, opened, renewed })
    }

    /// Uploads until this node is no primary any more, or the node ends.
    async fn work(
        &mut self,
        role: &mut watch::Receiver<Option<u64>>,
        shutdown: &CancellationToken,
    ) -> Result<(), BackupError> {
        let mut pause = AGAIN_AFTER;
        let mut next = Instant::now();
        loop {
            let term = *role.borrow_and_update();
            match term {
                Some(term) if term == self.epoch => {}
                Some(_) => return Ok(()),
                // In the same term nobody else can have been primary meanwhile.
                None => {
                    self.context.board.pause();
                    tokio::select! {
                        changed = role.changed() => if changed.is_err() { return Ok(()) },
                        () = shutdown.cancelled() => return Ok(()),
                    }
                    continue;
                }
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                changed = role.changed() => if changed.is_err() { return Ok(()) },
                Some(opened) = self.opened.1.recv() => self.snapshot_opened(opened).await?,
                Some(done) = self.jobs.join_next(), if !self.jobs.is_empty() => {
                    // One that panicked has told nobody; its database is looked at again.
                    if let Ok(done) = done { self.job_done(done).await? }
                }
                () = tokio::time::sleep_until(next) => {
                    let passed = tokio::select! {
                        passed = self.pass() => passed,
                        () = shutdown.cancelled() => return Ok(()),
                    };
                    let wait = match passed {
                        Ok(()) => {
                            pause = AGAIN_AFTER;
                            self.context.board.set_state(Some(Ok(())));
                            self.context.options.sync_interval
                        }
                        Err(error) if error.is_temporary() && !matches!(error, BackupError::Conflict(_)) => {
                            report(&self.context, &error);
                            let wait = pause;
                            pause = (pause * 2).min(AGAIN_AFTER_MAX);
                            wait
                        }
                        Err(error) => return Err(error),
                    };
                    next = Instant::now() + wait;
                }
            }
        }
    }

    /// Brings the bucket up to date with the log, and does what is due.
    async fn pass(&mut self) -> Result<(), BackupError> {
        let behind = *self.context.log.applied().borrow() > self.cursor;
        self.context.board.set_behind(behind || self.lacks_base());
        let read = self.follow_log().await;
        let behind = *self.context.log.applied().borrow() > self.cursor && read.is_err();
        self.context.board.set_behind(behind || self.lacks_base());
        metrics::gauge!(BACKUP_LAG_SECONDS).set(self.context.board.lag().as_secs_f64());
        read?;
        self.look_at_some().await?;
        self.begin_jobs().await?;
        if self.cursor != self.lease.index() && self.renewed.elapsed() >= LEASE_EVERY {
            self.lease.renew(&*self.context.objects, self.cursor).await?;
            self.renewed = Instant::now();
        }
        Ok(())
    }
}

/// A path without a lease must not have anybody's files.
async fn refuse_foreign(objects: &dyn Objects, url: &str) -> Result<(), BackupError> {
    let listed = objects.list("").await?;
    let foreign = by_directory(objects, &listed);
    let Some(directory) = foreign.keys().next() else { return Ok(()) };
    if !databases(objects).await?.is_empty() {
        return Err(BackupError::Foreign(format!(
            "{url} has a backup of skein without {LEASE}, so that nobody can tell whose it is: choose another path"
        )));
    }
    Err(BackupError::Foreign(format!(
        "{url} has files of another program, such as those in {directory:?}: choose another path"
    )))
}
