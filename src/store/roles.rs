//! What this node may do with its databases, as a whole.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Store, StoreError};
use crate::db::{Database, DbError};
use crate::io::{boot_id, durable};
use crate::types::{Access, LogIndex};

/// Since which entry this node is primary, remembered across a crash: only then may the logs of its databases hold
/// what applications wrote and nobody else has.
///
/// File `primary-since`, text: the line `skein-primary-since 1`, the last entry applied before applications could write,
/// and the boot of the machine in which that was (missing in files of earlier versions). Missing on a node that is not
/// primary.
#[derive(Debug)]
pub(super) struct PrimarySince {
    path: PathBuf,
    index: Option<LogIndex>,
    of_this_boot: bool,
}

/// How long a planned move of the primary waits for transactions that applications are in the middle of, while all
/// other writers wait for it.
const HANDOVER_MAX: Duration = Duration::from_secs(2);

const MAGIC: &str = "skein-primary-since 1";

impl PrimarySince {
    /// Reads the file.
    pub fn open(path: PathBuf) -> Result<Self, StoreError> {
        let (index, boot) = match std::fs::read_to_string(&path) {
            Ok(text) => parse(&text).map(|(index, boot)| (Some(index), boot)).ok_or_else(|| {
                StoreError::Fatal(format!("{} is damaged or of a newer version", path.display()))
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (None, None),
            Err(source) => {
                return Err(StoreError::Io { what: format!("reading {}", path.display()), source });
            }
        };
        let of_this_boot = boot.is_some_and(|boot| boot == boot_id());
        Ok(Self { path, index, of_this_boot })
    }

    /// The last entry before this node was primary, `None` where it is not.
    pub fn index(&self) -> Option<LogIndex> {
        self.index
    }

    /// Whether the machine has run ever since this node last became primary: what applications have written is in the
    /// files then, whatever was synced.
    pub fn is_of_this_boot(&self) -> bool {
        self.of_this_boot
    }

    fn begin(&mut self, index: LogIndex) -> Result<(), StoreError> {
        let written =
            durable::write_atomic(&self.path, format!("{MAGIC}\n{index}\n{}\n", boot_id()).as_bytes());
        written.map_err(|source| self.failed("writing", source))?;
        self.index = Some(index);
        Ok(())
    }

    fn end(&mut self) -> Result<(), StoreError> {
        if self.index.is_none() {
            return Ok(());
        }
        let dir = self.path.parent().unwrap_or(&self.path);
        let removed = std::fs::remove_file(&self.path).and_then(|()| durable::sync_dir(dir));
        removed.map_err(|source| self.failed("removing", source))?;
        self.index = None;
        Ok(())
    }

    fn failed(&self, what: &str, source: std::io::Error) -> StoreError {
        StoreError::Io { what: format!("{what} {}", self.path.display()), source }
    }
}

fn parse(text: &str) -> Option<(LogIndex, Option<String>)> {
    let mut lines = text.lines();
    (lines.next()? == MAGIC).then_some(())?;
    let index = lines.next()?.parse().ok().map(LogIndex::new)?;
    let boot = lines.next().filter(|boot| !boot.is_empty()).map(str::to_owned);
    Some((index, boot))
}

impl Store {
    /// Fences or unfences all databases. Blocking, but a writer at work when the fence comes down is not waited for: what
    /// he commits is not acknowledged (FULL), or cut when he is done (NORMAL).
    ///
    /// # Errors
    /// Where a lock cannot be taken, or what a crash left in a WAL can neither be captured nor set aside.
    pub fn set_access(self: &Arc<Self>, access: Access) -> Result<(), StoreError> {
        let _one_at_a_time = self.lock_roles();
        if access == Access::Write {
            self.follows.store(false, Ordering::SeqCst);
            // Tails that are still there were made on what is applied by now.
            self.lock_since().begin(self.taken_index())?;
            self.prove_all()?;
            self.note_promotion();
            // Nobody writes on top before what a crash left behind is settled.
            self.shared.set_handing_over(true);
            self.shared.lease().begin();
            self.shared.set_access(access);
            self.shared.lease().guard();
            let settled = self.while_writing(|database| database.settle_tail());
            self.shared.set_handing_over(false);
            settled?;
            let held = Mutex::new(Vec::new());
            let done = self.while_writing(|database| match database.set_access() {
                Err(DbError::Conflict { .. }) => {
                    held.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(database.clone());
                    Ok(())
                }
                done => done,
            });
            let held = held.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
            held.into_iter().try_for_each(|database| self.set_access_in_turn(database))?;
            return done;
        }
        self.follows.store(false, Ordering::SeqCst);
        self.shared.set_access(access);
        self.shared.set_handing_over(false);
        self.fence_all()
    }

    /// Does something to each database for as long as applications may write: where the lease ends meanwhile, the rest
    /// is left, and no error is one. A database that lacks entries follows when it has them, one that is not served when it
    /// is mended.
    fn while_writing(&self, work: impl Fn(&Arc<Database>) -> Result<(), DbError>) -> Result<(), StoreError> {
        for database in self.all().into_iter().filter(|database| self.may_be_written(database)) {
            let done = unless_gone(&database, work(&database));
            if self.access() != Access::Write {
                return Ok(());
            }
            done?;
        }
        Ok(())
    }

    /// Fences all databases.
    pub(super) fn fence_all(self: &Arc<Self>) -> Result<(), StoreError> {
        // All that need no waiting at once: a writer at work must not keep other databases writable.
        let slow: Vec<_> = self.all().into_iter().filter(|database| !database.try_fence()).collect();
        if slow.is_empty() {
            self.shared.lease().close();
        }
        for database in slow {
            self.set_access_in_turn(database)?;
        }
        Ok(())
    }

    /// Makes the locks of one database what the node's access demands, on a thread of its own: until an application that
    /// has the file for itself has closed it, and nothing else waits for that. A database for which it fails is not served.
    fn set_access_in_turn(self: &Arc<Self>, database: Arc<Database>) -> Result<(), StoreError> {
        let store = self.clone();
        let started = in_thread(move || {
            let done = loop {
                match database.set_access() {
                    // A connection has the file for itself, for a moment as one that switches to WAL or is the last to close,
                    // or for as long as it likes (locking_mode=EXCLUSIVE); the kernel does not tell when it lets go.
                    Err(DbError::Conflict { .. }) if !store.shared.is_ending() => {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    done => break done,
                }
            };
            let done = match done {
                Err(error) if !database.is_gone() => {
                    tracing::error!(db = %database.name(), %error, "cannot fence the database; it is not served");
                    database.fail(&error);
                    Err(error)
                }
                _ => Ok(()),
            };
            store.follow_if_due();
            done
        });
        started.map(drop)
    }

    /// What [`follow_history`](Self::follow_history) left undone because a writer was at work.
    pub(super) fn follow_if_due(&self) {
        if self.follows.load(Ordering::SeqCst)
            && let Err(error) = self.follow_history()
        {
            tracing::error!(%error, "cannot bring databases in step with the new primary");
        }
    }

    /// Another node is primary, and its log has decided everything that was proposed here: what is left in the logs of
    /// this node's databases never becomes history, and is kept in `discarded/`. Blocking; the fence is up.
    ///
    /// # Errors
    /// Where a file cannot be written. A database that cannot be brought in step is not served, and resynced.
    pub fn follow_history(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.lock_roles();
        self.follows.store(true, Ordering::SeqCst);
        if self.access() == Access::Write || self.lock_since().index().is_none() {
            return Ok(());
        }
        let mut undone = false;
        for database in self.all() {
            if database.is_behind() {
                // Its entries may decide about what it has proposed.
                undone = true;
                continue;
            }
            if !database.is_fenced() {
                tracing::warn!(db = %database.name(), "an application is in the middle of a transaction it began when this node was primary; waiting for it");
                undone = true;
                continue;
            }
            if let Err(error) = database.follow_history() {
                tracing::error!(db = %database.name(), %error, "cannot bring the database in step with the new primary");
                if matches!(error, DbError::Io { .. }) {
                    return Err(error.into());
                }
            }
        }
        if undone { Ok(()) } else { self.lock_since().end() }
    }

    /// The node ends while applications have databases open, and nothing keeps them from writing any more: what they
    /// write counts at the next start, if only to be kept in `discarded/`. On a replica they can only read: what the next
    /// start finds in its logs came from other nodes.
    pub(super) fn remember_left_open(&self) -> Result<(), StoreError> {
        if self.access() == Access::ReadOnly {
            return Ok(());
        }
        let mut since = self.lock_since();
        let left_open = self.all().iter().any(|database| database.is_left_open());
        if left_open && since.index().is_none() { since.begin(self.taken_index()) } else { Ok(()) }
    }

    /// Before a planned move of the primary: lets writers wait, and commits what they have done. Blocking.
    ///
    /// # Errors
    /// Where a database cannot be captured, or an application stays in the middle of a transaction; nothing has changed
    /// then but that writers still wait.
    pub fn hand_over(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.lock_roles();
        self.shared.set_handing_over(true);
        let deadline = Instant::now() + HANDOVER_MAX;
        wait_for_all(self.all(), move |database| unless_gone(database, database.hand_over(deadline)))?;
        self.shared.set_access(Access::Fenced);
        self.shared.lease().settle();
        wait_for_all(self.all().into_iter().filter(|database| !database.try_fence()).collect(), |database| {
            if database.has_wal() { unless_gone(database, database.set_access()) } else { Ok(()) }
        })
    }
}

/// What is done to a database that is dropped meanwhile need not succeed.
fn unless_gone(database: &Database, done: Result<(), DbError>) -> Result<(), DbError> {
    match done {
        Err(_) if database.is_gone() => Ok(()),
        done => done,
    }
}

type Joined = std::thread::JoinHandle<Result<(), DbError>>;

fn in_thread(work: impl FnOnce() -> Result<(), DbError> + Send + 'static) -> Result<Joined, StoreError> {
    let spawned = std::thread::Builder::new().name("skein-roles".into()).spawn(work);
    spawned.map_err(|source| StoreError::Io { what: "starting a thread".into(), source })
}

/// Does the same to databases that may have to be waited for, each in its own time.
fn wait_for_all(
    databases: Vec<Arc<Database>>,
    work: impl Fn(&Arc<Database>) -> Result<(), DbError> + Copy + Send + 'static,
) -> Result<(), StoreError> {
    let started: Result<Vec<_>, _> =
        databases.into_iter().map(|database| in_thread(move || work(&database))).collect();
    let mut outcome = Ok(());
    for thread in started? {
        let ended = thread.join().map_err(|_| StoreError::Fatal("changing roles ended abnormally".into()));
        outcome = outcome.and(ended.and_then(|done| done.map_err(StoreError::from)));
    }
    outcome
}
