//! Drops and renames that this node proposes: claimed, proposed, and applied where the log's order has them.
//!
//! The claim comes first, so that nothing can keep a committed entry from being applied, and no change set of a database
//! can come behind its end. It lasts until the log has decided, also where the application was told that the outcome is
//! unknown. The thread that holds the claim applies the entry, when the lane of the database has come to it. Where this
//! node's disk cannot take that (it may be full), the claim lasts until it can: on all other nodes the database has ended,
//! so nothing may be committed to it here.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::store::as_db_error;
use super::{ChangeKind, Origin, Store, StoreError};
use crate::db::{Claim, CommitError, Database, DbError, Done, HeldWriters};
use crate::types::{Access, DbName, LogIndex};

/// How long applications may take to end what they are doing with a database that is to be renamed or dropped. The kernel
/// keeps the directory locked for as long.
const CLAIM_MAX: Duration = Duration::from_secs(2);

/// How a database got its new name on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Renamed {
    /// The file that had the old name has the new one.
    Moved,
    /// The file that had the new name has the content.
    Into,
}

/// Guards of the databases of a rename.
struct RenameClaims<'a> {
    /// Of the source, and of a target that nobody has open.
    closed: Vec<Claim>,
    /// Of a target that is open.
    _open: Option<(HeldWriters<'a>, Claim)>,
}

/// Receives the answer of a rename; called exactly once, from any thread.
pub type RenameDone = Box<dyn FnOnce(Result<Renamed, DbError>) + Send>;

/// What a claim hears.
enum Step {
    /// The entry is due; the answer says whether it is applied.
    Apply(LogIndex, Sender<Result<(), StoreError>>),
    /// It could not be proposed, or its fate is unknown.
    Failed(CommitError),
    /// A new leader's log has decided: what was unknown never became history.
    Lost,
}

/// What an application is still to hear.
#[must_use]
pub(super) struct Told(Option<(Done, Result<(), DbError>)>);

impl Told {
    /// Tells it.
    pub fn tell(self) {
        if let Some((done, answer)) = self.0 {
            done(answer);
        }
    }
}

/// What is dropped of a database whose turn has come.
enum Dropped {
    Any,
    /// Only one without content.
    Empty,
}

fn does_not_exist(name: &DbName) -> DbError {
    DbError::Invalid { db: name.clone(), why: "does not exist".into() }
}

/// The claims whose proposals are on their way.
#[derive(Default)]
pub(super) struct Claims(Mutex<HashMap<Origin, Sender<Step>>>);

impl Claims {
    fn lock(&self) -> MutexGuard<'_, HashMap<Origin, Sender<Step>>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether a change was claimed here before it was proposed.
    pub fn has(&self, origin: &Origin) -> bool {
        self.lock().contains_key(origin)
    }

    /// Has the holder of the claim apply its entry.
    pub fn apply(&self, origin: &Origin, index: LogIndex) -> Result<(), StoreError> {
        let ended = || StoreError::Fatal("the holder of a claim has ended".into());
        let holder = self.lock().get(origin).cloned().ok_or_else(ended)?;
        let (answer, applied) = channel();
        holder.send(Step::Apply(index, answer)).map_err(|_| ended())?;
        applied.recv().map_err(|_| ended())?
    }

    /// Tells those whose fate is unknown that it is decided: they were not committed.
    pub fn lost(&self) {
        self.lock().values().for_each(|holder| drop(holder.send(Step::Lost)));
    }

    /// The node ends: nobody waits for the log any more.
    pub fn end(&self) {
        let why = CommitError::Unknown("the node is ending".into());
        self.lock().values().for_each(|holder| drop(holder.send(Step::Failed(why.clone()))));
    }
}

impl Store {
    /// Whether a change was claimed here before it was proposed, and is not applied yet.
    pub fn is_claimed(&self, change: &super::Change) -> bool {
        self.claims.has(&change.origin)
    }

    /// Drops a database everywhere (primary only). Answers when it is gone here.
    pub fn drop_database(self: &Arc<Self>, name: &DbName, done: Done) {
        let name = name.clone();
        self.with_claim(name.clone(), done, move |store, done| match store.get(&name) {
            Some(database) => store.drop_claimed(&database, Dropped::Any, done),
            None => done(Err(does_not_exist(&name))),
        });
    }

    /// The same for a database that has no content when its turn comes; one that has, and another one that has its name by
    /// then, stay.
    pub(super) fn drop_empty(self: &Arc<Self>, database: &Arc<Database>, done: Done) {
        let database = database.clone();
        self.with_claim(database.name().clone(), done, move |store, done| {
            store.drop_claimed(&database, Dropped::Empty, done);
        });
    }

    /// Whether the name is still this database's: who waited for a claim may have waited for its end.
    fn is_current(&self, database: &Arc<Database>) -> bool {
        self.get(database.name()).is_some_and(|current| Arc::ptr_eq(&current, database))
    }

    fn drop_claimed(self: &Arc<Self>, database: &Arc<Database>, which: Dropped, done: Done) {
        let name = database.name();
        let claim = match database.claim(Instant::now() + CLAIM_MAX) {
            Ok(claim) => claim,
            Err(error) => return done(Err(error)),
        };
        match which {
            Dropped::Any if !self.is_current(database) => return done(Err(does_not_exist(name))),
            Dropped::Empty if !self.is_current(database) || database.pos().txid.is_some() => {
                return done(Ok(()));
            }
            _ => {}
        }
        let logged = database.pos().txid.is_some() || self.names.has_database(name);
        if !logged && database.failure().is_none() {
            // Never in the log: there is nothing to tell anybody.
            return done(self.forget(name).map_err(|error| as_db_error(name, error)));
        }
        let kind = ChangeKind::Drop(name.clone());
        let told = self.commit_claimed(name, kind, done, |index| self.apply_drop(index, name));
        drop(claim);
        told.tell();
    }

    /// Renames a database everywhere, replacing what has the name (primary only). Answers when it is done here.
    pub fn rename(self: &Arc<Self>, from: &DbName, to: &DbName, done: RenameDone) {
        let (from, to) = (from.clone(), to.clone());
        let answer = Arc::new(Mutex::new(Renamed::Moved));
        let how = answer.clone();
        let done: Done = Box::new(move |result| {
            let how = *how.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            done(result.map(|()| how));
        });
        self.with_claim(from.clone(), done, move |store, done| {
            store.rename_claimed(&from, &to, &answer, done)
        });
    }

    fn rename_claimed(self: &Arc<Self>, from: &DbName, to: &DbName, how: &Mutex<Renamed>, done: Done) {
        let deadline = Instant::now() + CLAIM_MAX;
        let Some(source) = self.get(from) else {
            return done(Err(does_not_exist(from)));
        };
        if from == to {
            return done(Ok(()));
        }
        if source.pos().txid.is_none() && !self.names.has_database(from) {
            let why = "is just being made; try again".to_owned();
            return done(Err(DbError::Conflict { db: from.clone(), why }));
        }
        if let Err(error) = self.check_place(to, Some(from)) {
            return done(Err(as_db_error(to, error)));
        }
        let target = self.get(to);
        let claimed = (|| {
            let mut claims = RenameClaims { closed: vec![source.claim_closed(deadline)?], _open: None };
            if let Some(target) = &target {
                if target.pos().txid.is_some() && source.pos().txid.is_some() {
                    source.renew_change_counter(target)?;
                }
                match target.is_open() {
                    true => claims._open = Some(target.claim_open(deadline)?),
                    false => claims.closed.push(target.claim(deadline)?),
                }
            }
            Ok(claims)
        })();
        let claims: RenameClaims<'_> = match claimed {
            Ok(claims) => claims,
            Err(error) => return done(Err(error)),
        };
        if !self.is_current(&source) {
            return done(Err(does_not_exist(from)));
        }
        if self.get(to).as_ref().map(Arc::as_ptr) != target.as_ref().map(Arc::as_ptr) {
            let why = "has changed meanwhile; try again".to_owned();
            return done(Err(DbError::Conflict { db: to.clone(), why }));
        }
        let into = target.as_ref().is_some_and(|target| self.takes_content(&source, target));
        if into {
            *how.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Renamed::Into;
        }
        let kind = ChangeKind::Rename { from: from.clone(), to: to.clone() };
        let told = self.commit_claimed(from, kind, done, |index| self.rename_entry(index, from, to, true));
        // First: who hears of it may write at once.
        drop(claims);
        told.tell();
    }

    /// Proposes what is claimed, and applies it in its turn. Returns when its fate is known, with what the application is
    /// to hear then; where the fate counted as unknown it has been told.
    pub(super) fn commit_claimed(
        &self,
        name: &DbName,
        kind: ChangeKind,
        done: Done,
        apply: impl Fn(LogIndex) -> Result<(), StoreError>,
    ) -> Told {
        if self.access() != Access::Write {
            return Told(Some((done, Err(DbError::NotPrimary(name.clone())))));
        }
        let (tell, steps) = channel();
        let origin = self.sink.next_origin();
        self.claims.lock().insert(origin, tell.clone());
        let failed = Box::new(move |fate: Result<LogIndex, CommitError>| {
            // Where it is committed, the entry itself comes next.
            if let Err(error) = fate {
                let _ = tell.send(Step::Failed(error));
            }
        });
        self.sink.propose_as(origin, kind, failed);
        let told = self.await_fate(name, &steps, done, apply);
        self.claims.lock().remove(&origin);
        told
    }

    fn await_fate(
        &self,
        name: &DbName,
        steps: &Receiver<Step>,
        done: Done,
        apply: impl Fn(LogIndex) -> Result<(), StoreError>,
    ) -> Told {
        let (mut done, mut committed) = (Some(done), false);
        while let Ok(step) = steps.recv() {
            match step {
                Step::Apply(index, answer) => {
                    let applied = apply(index);
                    let told = match &applied {
                        Ok(()) => Ok(()),
                        Err(error) => Err(DbError::Unavailable { db: name.clone(), why: error.to_string() }),
                    };
                    let again = applied.as_ref().is_err_and(StoreError::is_io);
                    // The lane may end with the node.
                    let _ = answer.send(applied);
                    if !again {
                        return Told(done.map(|done| (done, told)));
                    }
                    // The lane comes back with it. Who waits for the answer keeps the directory locked.
                    committed = true;
                    Told(done.take().map(|done| (done, told))).tell();
                }
                Step::Failed(CommitError::Refused(why)) => {
                    let error = match self.access() {
                        Access::Write => DbError::Unavailable { db: name.clone(), why },
                        _ => DbError::NotPrimary(name.clone()),
                    };
                    return Told(done.map(|done| (done, Err(error))));
                }
                Step::Failed(CommitError::Unknown(why)) => {
                    tracing::warn!(db = %name, %why, "the fate of a drop or rename is unknown; the database waits for it");
                    let error = DbError::Unavailable { db: name.clone(), why };
                    Told(done.take().map(|done| (done, Err(error)))).tell();
                    if self.shared.is_ending() {
                        break;
                    }
                }
                Step::Lost if done.is_none() && !committed => {
                    tracing::warn!(db = %name, "a drop or rename of unknown fate was not committed");
                    break;
                }
                Step::Lost => {}
            }
        }
        Told(None)
    }

    /// Runs what may wait for applications and for the log on a thread of its own.
    pub(super) fn with_claim(
        self: &Arc<Self>,
        name: DbName,
        done: Done,
        work: impl FnOnce(&Arc<Self>, Done) + Send + 'static,
    ) {
        let store = self.clone();
        let parts = Arc::new(Mutex::new(Some((done, work))));
        let inside = parts.clone();
        let take =
            |parts: &Mutex<Option<_>>| parts.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let spawned = std::thread::Builder::new().name("skein-claim".into()).spawn(move || {
            if let Some((done, work)) = take(&inside) {
                work(&store, done);
            }
        });
        if let Err(source) = spawned
            && let Some((done, _)) = parts.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
        {
            done(Err(DbError::Io { db: name, what: "starting a thread".into(), source }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::copies::tests::open;

    #[test]
    fn who_waited_for_a_database_that_ended_leaves_the_next_one_of_its_name_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (store, name) = (open(dir.path()), DbName::new("a").unwrap());
        store.set_access(Access::Write).unwrap();
        let first = store.create(&name).unwrap();
        let claim = first.claim(Instant::now() + CLAIM_MAX).unwrap();
        let (answer, answers) = channel();
        let waiting = [Dropped::Any, Dropped::Empty].map(|which| {
            let (store, database, answer) = (store.clone(), first.clone(), answer.clone());
            std::thread::spawn(move || {
                let any = matches!(which, Dropped::Any);
                let told =
                    Box::new(move |result: Result<(), DbError>| answer.send((any, result.is_ok())).unwrap());
                store.drop_claimed(&database, which, told);
            })
        });
        store.forget(&name).unwrap();
        let second = store.create(&name).unwrap();
        drop(claim);
        waiting.into_iter().for_each(|thread| thread.join().unwrap());
        // The one who asked for it by name is told.
        assert!(answers.try_iter().any(|answer| answer == (true, false)));
        assert!(store.is_current(&second) && !second.is_dropped());
        store.drop_claimed(&second, Dropped::Empty, Box::new(|result| result.unwrap()));
        assert!(store.get(&name).is_none());
    }
}
