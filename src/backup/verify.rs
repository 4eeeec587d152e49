//! Restores from the bucket all the time, so that it is known and not hoped that a backup can be restored.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Archive, BackupError, IntegrityCheck, Objects, Point, RestoreOptions, StatusBoard, Summary, directory_of,
    restore,
};
use crate::io::free_space::Space;
use crate::store::Store;
use crate::telemetry::metrics::{BACKUP_VERIFIED, BACKUP_VERIFY_FAILURES};
use crate::types::{DbName, Timestamp};

/// Verifies the databases of one bucket, each of them once in an interval, while this node uploads.
pub struct Verifier {
    /// The bucket.
    pub objects: Arc<dyn Objects>,
    /// The cluster's own databases.
    pub store: Arc<Store>,
    /// Where to tell it.
    pub board: StatusBoard,
    /// Each database is restored once in this time.
    pub interval: Duration,
    /// Ends it.
    pub shutdown: CancellationToken,
}

/// The first database is verified no later than this after a start.
const FIRST_AFTER_MAX: Duration = Duration::from_secs(60);
/// Time between two databases, at least.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Files fetched at a time: nobody waits for it.
const PARALLEL: usize = 2;
/// This is left of the disk at least while a database is restored, in bytes.
const FREE_LEFT_BYTES: u64 = 256 << 20;

impl Verifier {
    /// Verifies until the node ends.
    pub async fn run(self) {
        let mut done: BTreeMap<DbName, Instant> = BTreeMap::new();
        let mut pause = FIRST_AFTER_MAX.min(self.interval);
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled() => return,
            }
            let names = self.board.restorable();
            done.retain(|db, _| names.contains(db));
            let count = u32::try_from(names.len()).unwrap_or(u32::MAX).max(1);
            pause = (self.interval / count).max(PAUSE_MIN).min(self.interval);
            if names.is_empty() {
                pause = FIRST_AFTER_MAX.min(self.interval);
            }
            // The one that was not verified for the longest time.
            let Some(db) = names.into_iter().min_by_key(|db| done.get(db).copied()) else { continue };
            let verified = tokio::select! {
                verified = self.verify(&db) => verified,
                () = self.shutdown.cancelled() => return,
            };
            self.tell(&db, verified);
            done.insert(db, Instant::now());
        }
    }

    fn tell(&self, db: &DbName, verified: Result<Summary, BackupError>) {
        match verified {
            Ok(summary) => {
                let now = Timestamp::now();
                metrics::gauge!(BACKUP_VERIFIED).set(now.ms() as f64 / 1000.0);
                tracing::info!(%db, txid = %summary.txid, "restored from the backup, and equal");
                self.board.set_verified(db, Ok(now));
            }
            Err(error) => {
                metrics::counter!(BACKUP_VERIFY_FAILURES).increment(1);
                tracing::error!(%db, %error, "the backup of this database cannot be restored");
                self.board.set_verified(db, Err(error.to_string()));
            }
        }
    }

    async fn verify(&self, db: &DbName) -> Result<Summary, BackupError> {
        let scratch = self.store.layout().tmp();
        self.check_space(db, scratch.clone()).await?;
        let mut archive = Archive::open(self.objects.clone(), &directory_of(db)).await?;
        let options =
            RestoreOptions { point: Point::Latest, parallel: PARALLEL, check: IntegrityCheck::Full };
        let restored = restore(&mut archive, options, &scratch, &|_, _| {}).await?;
        let Some(pos) = restored.summary.pos else {
            return Err(BackupError::Corrupt(format!("the files of {db} do not say what the cluster had")));
        };
        let own = self.store.get(db).map(|database| database.pos());
        if let Some(own) = own.filter(|own| own.txid == pos.txid && *own != pos) {
            return Err(BackupError::Corrupt(format!(
                "what was restored is at {pos}, the cluster's {db} at {own}"
            )));
        }
        Ok(restored.summary)
    }

    async fn check_space(&self, db: &DbName, scratch: PathBuf) -> Result<(), BackupError> {
        let size = self.store.status(db).map_or(0, |status| status.size_bytes);
        let free = tokio::task::spawn_blocking(move || Space::of(&scratch)).await;
        let free = free.map_err(|error| std::io::Error::other(error.to_string())).and_then(|space| space);
        let free = free.map_err(BackupError::io("asking for disk space"))?.free;
        if free < size + FREE_LEFT_BYTES {
            return Err(BackupError::Unavailable {
                what: format!("verifying {db}"),
                why: format!("{free} bytes of the disk are free, too few to restore it beside itself"),
            });
        }
        Ok(())
    }
}
