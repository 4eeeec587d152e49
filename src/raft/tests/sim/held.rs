//! A store whose readers keep entries waiting, as a long read of a rollback database does on a voter.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::db::{DbError, SnapshotHeader};
use crate::ltx::BlobRef;
use crate::store::{Change, ChangeKind, NameList, PrimaryInfo, Store, StoreError};
use crate::stream::{BlobSink, ReplicaTarget};
use crate::types::{Checksum, DbName, LogIndex, Pgno};

#[derive(Default)]
struct State {
    /// What is being read.
    held: BTreeSet<DbName>,
    /// What entries wait for.
    behind: BTreeSet<DbName>,
}

/// The store as the applier has it: a commit of a database that is being read cannot be applied yet.
pub struct HeldStore {
    store: Arc<Store>,
    state: Mutex<State>,
    moved: Condvar,
}

impl HeldStore {
    pub fn new(store: Arc<Store>) -> Arc<Self> {
        Arc::new(Self { store, state: Mutex::default(), moved: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A long read of a database begins.
    pub fn hold(&self, db: &DbName) {
        self.state().held.insert(db.clone());
    }

    /// All reads end; whatever waited for them is applied within `limit` of real time, or this is false.
    pub fn release(&self, limit: Duration) -> bool {
        let mut state = self.state();
        state.held.clear();
        let waited = self.moved.wait_timeout_while(state, limit, |state| !state.behind.is_empty());
        !waited.unwrap_or_else(|poisoned| poisoned.into_inner()).1.timed_out()
    }

    /// All reads end, and what waits is given up: everything is fetched instead.
    pub fn reset(&self) {
        *self.state() = State::default();
    }

    /// Whether a database is being read, or waits for entries.
    pub fn is_busy(&self, db: &DbName) -> bool {
        let state = self.state();
        state.held.contains(db) || state.behind.contains(db)
    }
}

impl ReplicaTarget for HeldStore {
    fn apply(&self, index: LogIndex, change: &Change) -> Result<(), StoreError> {
        let held = self.state().held.clone();
        let ChangeKind::Commit(sets) = &change.kind else { return self.store.apply(index, change) };
        let Some(first) = sets.iter().find(|set| held.contains(&set.db)) else {
            return self.store.apply(index, change);
        };
        // What else the entry has goes on meanwhile.
        let free: Vec<_> = sets.iter().filter(|set| !held.contains(&set.db)).cloned().collect();
        if !free.is_empty() {
            self.store.apply(index, &Change { kind: ChangeKind::Commit(free), ..change.clone() })?;
        }
        let why = "a reader of the simulation".to_owned();
        Err(StoreError::Db(DbError::Conflict { db: first.db.clone(), why }))
    }

    fn applied(&self, index: LogIndex) {
        self.store.applied(index);
    }

    fn taken(&self, index: LogIndex) {
        self.store.taken(index);
    }

    fn set_behind(&self, db: &DbName, behind: bool) {
        self.store.set_behind(db, behind);
        if behind {
            self.state().behind.insert(db.clone());
        }
    }

    fn caught_up(self: Arc<Self>, db: &DbName) {
        Store::caught_up(&self.store, db);
        self.state().behind.remove(db);
        self.moved.notify_all();
    }

    fn is_claimed(&self, change: &Change) -> bool {
        self.store.is_claimed(change)
    }

    fn fail(&self, db: &DbName, why: &str) {
        self.store.fail(db, why);
    }

    fn is_failed(&self, db: &DbName) -> bool {
        ReplicaTarget::is_failed(&*self.store, db)
    }

    fn applied_index(&self) -> LogIndex {
        self.store.applied_index()
    }

    fn durable_index(&self) -> LogIndex {
        self.store.durable_index()
    }

    fn would_block(&self, db: &DbName) -> bool {
        self.state().held.contains(db) || self.store.apply_may_wait(db)
    }

    fn has_data(&self) -> bool {
        ReplicaTarget::has_data(&*self.store)
    }

    fn page_checksums(&self, name: &DbName) -> Result<Vec<Checksum>, StoreError> {
        self.store.page_checksums(name)
    }

    fn install(
        &self,
        name: &DbName,
        target: SnapshotHeader,
        next_page: &mut dyn FnMut() -> Result<Option<(Pgno, Vec<u8>)>, StoreError>,
    ) -> Result<(), StoreError> {
        self.store.install(name, target, next_page)
    }

    fn retain(&self, keep: &[DbName], index: LogIndex) -> Result<(), StoreError> {
        self.store.retain(keep, index)
    }

    fn install_names(&self, names: NameList, index: LogIndex) -> Result<(), StoreError> {
        self.store.install_names(names, index)
    }

    fn set_primary(&self, primary: Option<PrimaryInfo>) {
        self.store.set_primary(primary);
    }

    fn contains_blob(&self, blob: BlobRef) -> bool {
        ReplicaTarget::contains_blob(&*self.store, blob)
    }

    fn remove_blob(&self, blob: BlobRef) -> io::Result<()> {
        ReplicaTarget::remove_blob(&*self.store, blob)
    }

    fn create_blob(&self) -> io::Result<Box<dyn BlobSink + '_>> {
        ReplicaTarget::create_blob(&*self.store)
    }
}
