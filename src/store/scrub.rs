//! Scrub: databases that no application has open are compared with their page checksums, in the background.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Store, StoreError};
use crate::db::{Database, DbError, Done};

impl Store {
    /// Compares all databases with their page checksums; one that differs is not served, and is fetched. Begins a thread
    /// unless one is at work. On a voter not before its log is redone: pages that a power cut took are no news until then.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn scrub(self: &Arc<Self>) -> Result<(), StoreError> {
        if self.scrubs.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let store = self.clone();
        let work = move || {
            store.scrub_all();
            store.scrubs.store(false, Ordering::SeqCst);
        };
        let spawned = std::thread::Builder::new().name("skein-scrub".into()).spawn(work);
        spawned.map(drop).map_err(|source| {
            self.scrubs.store(false, Ordering::SeqCst);
            StoreError::Io { what: "starting the scrubber".into(), source }
        })
    }

    /// A program that is not SQLite closes the file of `database`, which has changed since it opened it: what it wrote is
    /// captured, or the copy here is not served until it is fetched. `done` hears of the latter.
    pub fn capture_unseen_writes(self: &Arc<Self>, database: &Arc<Database>, done: Done) {
        let (store, same) = (self.clone(), database.clone());
        database.capture_unseen_writes(Box::new(move |captured| {
            if let Err(error @ DbError::Corrupt { .. }) = &captured {
                store.distrust(&same, error);
            }
            done(captured);
        }));
    }

    fn scrub_all(&self) {
        for database in self.all() {
            if self.shared.is_ending() {
                return;
            }
            match database.scrub() {
                Ok(None) => {}
                Ok(Some(pgno)) => {
                    let why = format!("page {pgno} on disk is not what was written");
                    self.distrust(&database, &DbError::Corrupt { db: database.name().clone(), why });
                }
                Err(error) => tracing::warn!(%error, "cannot compare a database with its checksums"),
            }
        }
    }
}
