//! What follows in the databases when the lease of a primary ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::{Store, StoreError};
use crate::db::Lease;
use crate::io::SharedDeadline;
use crate::types::Access;

impl Store {
    /// Says how long this node may be primary without hearing more. Waits for nothing.
    pub fn set_lease(&self, lease: Lease) {
        self.shared.lease().set(lease);
    }

    /// Has another process end the writing of applications, too, should this one be stopped when the lease ends; the first
    /// call counts.
    pub fn share_lease(&self, deadline: Arc<SharedDeadline>) {
        self.shared.lease().share(deadline);
    }

    /// Whether a transaction that applications have begun may be committed, although none may be begun.
    pub fn may_commit(&self) -> bool {
        self.shared.may_commit()
    }

    /// A thread of this node is stuck, or is no more: where others can be primary, this node is none meanwhile.
    pub fn suspend(&self, suspended: bool) {
        self.shared.lease().suspend(suspended);
    }

    /// Whether this node is no primary because one of its threads is stuck.
    pub fn is_suspended(&self) -> bool {
        self.shared.lease().is_suspended()
    }

    /// The databases whose state a thread has locked.
    pub fn locked_by(&self, tid: i32) -> Vec<String> {
        let all = self.all();
        all.iter()
            .filter(|database| database.is_locked_by(tid))
            .map(|database| database.name().to_string())
            .collect()
    }

    /// Whether the lease has ended; the fence is up a moment later.
    pub fn lease_has_ended(&self) -> bool {
        self.shared.lease().has_ended()
    }

    /// Ends the writing of applications with the lease from now on, on a thread that waits for nothing. `late` hears of
    /// each time by how much the fence was late; what is returned counts them.
    ///
    /// # Errors
    /// Where no thread can be had.
    pub fn follow_lease(
        self: &Arc<Self>,
        late: impl Fn(Duration) + Send + Sync + 'static,
    ) -> Result<watch::Receiver<u64>, StoreError> {
        let failed = |source| StoreError::Io { what: "starting the thread of the fence".into(), source };
        let due = Arc::new(AtomicBool::new(false));
        let (store, asked) = (Arc::downgrade(self), due.clone());
        // What may wait for applications is not for the fence's thread.
        let rest = std::thread::Builder::new().name("skein-roles".into()).spawn(move || {
            loop {
                if asked.swap(false, Ordering::SeqCst)
                    && let Some(store) = store.upgrade()
                {
                    store.fence_the_rest();
                }
                if store.strong_count() == 0 {
                    return;
                }
                std::thread::park_timeout(Duration::from_secs(1));
            }
        });
        let rest = rest.map_err(failed)?.thread().clone();
        let (ended, receiver) = watch::channel(0);
        let ended = Box::new(move |lateness| {
            due.store(true, Ordering::SeqCst);
            rest.unpark();
            ended.send_modify(|count| *count += 1);
            late(lateness);
        });
        self.shared.follow_lease(ended).map_err(failed)?;
        Ok(receiver)
    }

    /// The lease has ended: the databases whose fence takes more than a lock of their wal-index.
    fn fence_the_rest(self: &Arc<Self>) {
        let _one_at_a_time = self.lock_roles();
        // Primary again meanwhile, or told by Raft before.
        if self.access() != Access::Fenced {
            return;
        }
        self.shared.set_handing_over(false);
        if let Err(error) = self.fence_all() {
            tracing::error!(%error, "cannot fence all databases");
        }
    }
}
