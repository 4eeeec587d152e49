//! Databases that lack entries the log has given them: each waits by itself, all others go on.
//!
//! A reader of a rollback database, a large change set on its way or a difference to be fetched keeps entries waiting. The
//! node may be primary meanwhile: such a database is fenced as on a node that is not, until it has caught up.

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard};

use super::store::Behind;
use super::{Store, StoreError};
use crate::db::{Database, DbError};
use crate::types::{Access, DbName};

impl Store {
    pub(super) fn lock_behind(&self) -> MutexGuard<'_, Behind> {
        self.behind.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether entries of the database wait. Not with the lock of the set of databases held, which is taken after this one.
    pub(super) fn is_behind(&self, name: &DbName) -> bool {
        self.lock_behind().now.contains(name)
    }

    /// Whether entries of the database were waiting when this node became primary.
    pub(super) fn lagged_behind(&self, name: &DbName) -> bool {
        self.lock_behind().at_promotion.contains(name)
    }

    /// Notes which databases lack entries now, before applications may write.
    pub(super) fn note_promotion(&self) {
        let mut behind = self.lock_behind();
        behind.at_promotion = behind.now.clone();
    }

    /// Notes that entries of the database wait, or do no more. Does not block; follow the latter with
    /// [`caught_up`](Self::caught_up).
    pub fn set_behind(&self, name: &DbName, is_behind: bool) {
        let mut behind = self.lock_behind();
        match is_behind {
            true => behind.now.insert(name.clone()),
            false => behind.now.remove(name),
        };
        if let Some(database) = self.get(name) {
            database.set_behind(is_behind);
        }
    }

    /// A database has caught up: what was put off for it is done, and its applications may do what those of others may.
    /// Blocking.
    pub fn caught_up(self: &Arc<Self>, name: &DbName) {
        let Some(database) = self.get(name).filter(|database| !database.is_behind()) else { return };
        if let Err(error) = self.catch_up(&database) {
            tracing::error!(db = %name, %error, "cannot let applications write a database that has caught up");
            database.fail(&super::store::as_db_error(name, error));
        }
    }

    fn catch_up(self: &Arc<Self>, database: &Arc<Database>) -> Result<(), StoreError> {
        let (resolve, replay_over) = {
            let mut behind = self.lock_behind();
            (behind.unresolved.remove(database.name()), behind.replay_over)
        };
        if replay_over {
            database.end_replay();
        }
        if resolve {
            database.resolve_undecided()?;
        }
        if replay_over {
            self.prove(database.name())?;
        }
        let one_at_a_time = self.lock_roles();
        if self.access() == Access::Write {
            if !self.may_be_written(database) {
                return Ok(());
            }
            database.settle_tail()?;
            return Ok(database.set_access()?);
        }
        drop(one_at_a_time);
        self.follow_if_due();
        Ok(())
    }

    /// Databases that are not served: what the log gives them cannot be applied.
    pub fn failed(&self) -> Vec<DbName> {
        let failed = self.all().into_iter().filter(|database| database.failure().is_some());
        failed.map(|database| database.name().clone()).collect()
    }

    /// Stops serving a database that nobody can be asked for. Its files stay.
    pub fn fail(&self, name: &DbName, why: &str) {
        if let Some(database) = self.get(name) {
            database.fail(&DbError::Corrupt { db: name.clone(), why: why.to_owned() });
        }
    }

    /// A leader's first entry is applied: change sets of unknown fate that were not by now never will be. Blocking.
    pub fn proposals_resolved(&self) {
        self.claims.lost();
        self.forget_asked();
        let waiting: BTreeSet<DbName> = {
            let mut behind = self.lock_behind();
            let now = behind.now.clone();
            behind.unresolved.extend(now.iter().cloned());
            now
        };
        for database in self.all().iter().filter(|database| !waiting.contains(database.name())) {
            if let Err(error) = database.resolve_undecided() {
                tracing::error!(db = %database.name(), %error, "cannot let writers go on");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::io::blobs::BlobStore;
    use crate::store::{Layout, StoreOptions};
    use crate::types::{LogIndex, NodeId};

    #[test]
    fn databases_are_made_on_one_thread_while_another_notes_that_they_are_behind() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_path_buf());
        let blobs = Arc::new(BlobStore::open(layout.blobs()).unwrap());
        let options = StoreOptions {
            layout,
            node: NodeId::new(1),
            access: Access::Fenced,
            blobs,
            held_files: Default::default(),
        };
        let store = Store::open(options).unwrap();
        let names: Vec<_> = (0..20).map(|number| DbName::new(&format!("{number}.db")).unwrap()).collect();
        let (done, ended) = mpsc::channel();
        let (making, noted, all) = (store.clone(), store.clone(), names.clone());
        let told = done.clone();
        std::thread::spawn(move || {
            for round in 0..20 {
                for name in &all {
                    making.get_or_make(name).unwrap();
                    making.end(name, LogIndex::new(1 + round)).unwrap();
                }
            }
            told.send(()).unwrap();
        });
        std::thread::spawn(move || {
            for round in 0..40_000 {
                noted.set_behind(&names[round % names.len()], round % 3 == 0);
            }
            done.send(()).unwrap();
        });
        for _ in 0..2 {
            ended.recv_timeout(Duration::from_secs(60)).expect("neither waits for the other");
        }
    }
}
