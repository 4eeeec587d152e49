use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use super::*;
use crate::db::SnapshotHeader;
use crate::ltx::Body;
use crate::store::{Origin, PrimaryInfo};
use crate::stream::BlobSink;
use crate::types::{
    Attributes, AttributesChange, Checksum, MountPath, NodeId, PageCount, PageSize, Pgno, Txid, TxidRange,
};

/// Databases that only note what is done to them; those in `read` are read by an application.
#[derive(Default)]
struct Noted {
    done: Mutex<Vec<String>>,
    read: Mutex<BTreeSet<DbName>>,
    applied: Mutex<LogIndex>,
    /// Not served.
    failed: Mutex<BTreeSet<DbName>>,
}

impl Noted {
    fn note(&self, text: String) {
        self.done.lock().unwrap().push(text);
    }
}

fn shown(kind: &ChangeKind) -> String {
    match kind {
        ChangeKind::Commit(_) => "commit".into(),
        ChangeKind::Drop(name) => format!("drop {name}"),
        ChangeKind::Rename { from, to } => format!("rename {from} to {to}"),
        ChangeKind::Create { name, .. } => format!("create {name}"),
        ChangeKind::SetAttributes { path, .. } => format!("chmod {path}"),
        ChangeKind::MakeDirectory { path, .. } => format!("mkdir {path}"),
        ChangeKind::RemoveDirectory(path) => format!("rmdir {path}"),
        ChangeKind::RenameDirectory { from, to, .. } => format!("rename directory {from} to {to}"),
    }
}

impl ReplicaTarget for Noted {
    fn apply(&self, index: LogIndex, change: &Change) -> Result<(), StoreError> {
        if let Some(db) = change.databases().into_iter().find(|db| self.would_block(db)) {
            return Err(DbError::Conflict { db, why: "is read".into() }.into());
        }
        self.note(format!("{index} {}", shown(&change.kind)));
        let mut failed = self.failed.lock().unwrap();
        if let ChangeKind::Rename { from, to } = &change.kind
            && failed.remove(from)
        {
            failed.insert(to.clone());
        }
        Ok(())
    }

    fn applied(&self, index: LogIndex) {
        *self.applied.lock().unwrap() = index;
    }

    fn applied_index(&self) -> LogIndex {
        *self.applied.lock().unwrap()
    }

    fn durable_index(&self) -> LogIndex {
        LogIndex::ZERO
    }

    fn fail(&self, db: &DbName, _: &str) {
        self.failed.lock().unwrap().insert(db.clone());
    }

    fn is_failed(&self, db: &DbName) -> bool {
        self.failed.lock().unwrap().contains(db)
    }

    fn would_block(&self, db: &DbName) -> bool {
        self.read.lock().unwrap().contains(db)
    }

    fn has_data(&self) -> bool {
        true
    }

    fn page_checksums(&self, _: &DbName) -> Result<Vec<Checksum>, StoreError> {
        Ok(Vec::new())
    }

    fn install(
        &self,
        _: &DbName,
        _: SnapshotHeader,
        _: &mut dyn FnMut() -> Result<Option<(Pgno, Vec<u8>)>, StoreError>,
    ) -> Result<(), StoreError> {
        Ok(())
    }

    fn retain(&self, _: &[DbName], _: LogIndex) -> Result<(), StoreError> {
        Ok(())
    }

    fn set_primary(&self, _: Option<PrimaryInfo>) {}

    fn contains_blob(&self, _: BlobRef) -> bool {
        true
    }

    fn remove_blob(&self, _: BlobRef) -> io::Result<()> {
        Ok(())
    }

    fn create_blob(&self) -> io::Result<Box<dyn BlobSink + '_>> {
        Err(io::Error::other("there are none"))
    }
}

fn name(text: &str) -> DbName {
    DbName::new(text).unwrap()
}

fn commit(db: &str, bytes: usize) -> ChangeKind {
    ChangeKind::Commit(vec![ChangeSet {
        db: name(db),
        range: TxidRange::single(Txid::FIRST),
        pre: Checksum::EMPTY,
        post: Checksum::EMPTY,
        page_size: PageSize::DEFAULT,
        commit: PageCount::new(1),
        body: Body::Inline(Bytes::from(vec![0; bytes])),
    }])
}

/// Lanes on `target` that may hold `bytes_max`; what they ask for counts as fetched at once.
fn lanes(target: &Arc<Noted>, bytes_max: usize) -> Arc<Lanes> {
    lanes_that_ask(target, bytes_max, |_| Outcome::Done)
}

/// The same with what is answered to who asks for a database.
fn lanes_that_ask(
    target: &Arc<Noted>,
    bytes_max: usize,
    answer: impl Fn(&DbName) -> Outcome + Send + 'static,
) -> Arc<Lanes> {
    let (requests, mut requested) = mpsc::unbounded_channel();
    let parts = LaneParts {
        target: target.clone(),
        globs: Globs::all(),
        log: Arc::new(RecentLog::new(LogIndex::ZERO, 0)),
        status: watch::Sender::new(FollowStatus::default()),
        acks: watch::Sender::new(LogIndex::ZERO),
        requests,
        bytes_max,
    };
    let fetching = target.clone();
    std::thread::spawn(move || {
        while let Some(request) = requested.blocking_recv() {
            let (reply, outcome) = match request {
                Request::Resync { db, at, reply } => {
                    let outcome = answer(&db);
                    if outcome == Outcome::Done {
                        fetching.note(format!("{at} fetch {db}"));
                        fetching.failed.lock().unwrap().remove(&db);
                    }
                    (reply, outcome)
                }
                Request::Blob { reply, .. } => (reply, Outcome::Done),
            };
            // Who asked may have ended.
            let _ = reply.send(outcome);
        }
    });
    Lanes::new(parts, LogIndex::ZERO)
}

fn wait_until(what: &str, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !reached() {
        assert!(Instant::now() < deadline, "not yet: {what}");
        std::thread::yield_now();
    }
}

fn wait_for(target: &Noted, index: usize) {
    wait_until("all is applied", || target.applied_index() >= LogIndex::new(index as u64));
}

#[test]
fn a_lane_that_holds_too_much_gives_up_change_sets_and_no_entry_about_names() {
    let target = Arc::new(Noted::default());
    let lanes = lanes(&target, 10_000);
    target.read.lock().unwrap().insert(name("a"));
    let attributes = Attributes::new(1, 2, 0o600);
    let chmod = AttributesChange { mode: Some(0o640), ..AttributesChange::default() };
    let log = [
        commit("a", 100),
        ChangeKind::SetAttributes { path: MountPath::Database(name("a")), change: chmod },
        commit("a", 6_000),
        commit("a", 6_000),
        ChangeKind::Drop(name("a")),
        ChangeKind::Create { name: name("a"), attributes },
        commit("a", 6_000),
        ChangeKind::Rename { from: name("a"), to: name("d/b") },
        commit("d/b", 6_000),
        ChangeKind::RenameDirectory { from: name("d"), to: name("e"), databases: vec![name("d/b")] },
        commit("e/b", 6_000),
        commit("other", 100),
    ];
    let length = log.len();
    for (number, kind) in log.into_iter().enumerate() {
        let origin = Origin { node: NodeId::new(1), run: 1, seq: number as u64 };
        let change = Change { origin, timestamp_ms: 0, kind };
        lanes.take(LogIndex::new(number as u64 + 1), Bytes::new(), Some(change));
        if number == 0 {
            // An entry that a lane's thread has begun with is not given up any more; one that still waits may be.
            wait_until("the lane's thread has begun", || {
                lanes.state().lanes.values().any(|lane| lane.running.is_some())
            });
        }
    }
    // What does not wait for the reader went on meanwhile.
    assert_eq!(*target.done.lock().unwrap(), ["12 commit"]);
    assert_eq!(target.applied_index(), LogIndex::ZERO);
    target.read.lock().unwrap().clear();
    wait_for(&target, length);
    let done = target.done.lock().unwrap().clone();
    let names = |lines: &[String]| -> Vec<String> {
        lines.iter().filter(|line| !line.ends_with("commit") && !line.contains("fetch")).cloned().collect()
    };
    assert_eq!(
        names(&done),
        ["2 chmod database a", "5 drop a", "6 create a", "8 rename a to d/b", "10 rename directory d to e"],
        "{done:?}"
    );
    // Each change set is applied, or fetched where its turn was.
    let turns: Vec<&str> = done[1..].iter().map(|line| line.split(' ').next().unwrap()).collect();
    let ascending = turns.windows(2).all(|pair| pair[0].parse::<u64>().unwrap() < pair[1].parse().unwrap());
    assert!(ascending, "{done:?}");
    assert!(done.iter().filter(|line| line.contains("fetch")).count() >= 3, "{done:?}");
    lanes.stop();
}

/// Takes entries 1, 2, 3..., of which a database is asked for in vain first.
fn take_all(lanes: &Arc<Lanes>, log: Vec<ChangeKind>) {
    for (number, kind) in (1..).zip(log) {
        let origin = Origin { node: NodeId::new(1), run: 1, seq: number };
        lanes.take(LogIndex::new(number), Bytes::new(), Some(Change { origin, timestamp_ms: 0, kind }));
        if number == 1 {
            lanes.repair(&name("a"));
        }
    }
}

/// As where all nodes that could be asked wait for the same database, which the log has ended meanwhile.
fn a_is_never_there(db: &DbName) -> Outcome {
    if *db == name("a") { Outcome::Retry("not reached yet".into()) } else { Outcome::Done }
}

#[test]
fn a_database_that_was_dropped_is_not_asked_for_for_ever() {
    let target = Arc::new(Noted::default());
    let lanes = lanes_that_ask(&target, 1 << 20, a_is_never_there);
    take_all(&lanes, vec![commit("a", 100), commit("a", 100), ChangeKind::Drop(name("a")), commit("b", 100)]);
    wait_for(&target, 4);
    let done = target.done.lock().unwrap().clone();
    assert!(done.contains(&"3 drop a".to_owned()), "{done:?}");
    lanes.stop();
}

#[test]
fn a_database_that_was_renamed_is_fetched_under_its_new_name() {
    let target = Arc::new(Noted::default());
    let lanes = lanes_that_ask(&target, 1 << 20, a_is_never_there);
    take_all(&lanes, vec![commit("a", 100), ChangeKind::Rename { from: name("a"), to: name("b") }]);
    wait_for(&target, 2);
    let done = target.done.lock().unwrap().clone();
    assert_eq!(done, ["1 commit", "2 rename a to b", "2 fetch b"]);
    assert!(target.failed.lock().unwrap().is_empty());
    lanes.stop();
}
