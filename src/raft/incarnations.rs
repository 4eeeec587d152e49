//! Which runs of which voters have been met: a voter whose data directory went back in time is recognised.
//!
//! Raft relies on what a voter has promised: entries that it has acknowledged, votes that it has given. A data
//! directory that is put back from an older copy has forgotten some of both. Each start of a node therefore has a
//! number, one above that of the start before, and a random run id; every request between voters says which run speaks,
//! and which run of the receiver the sender has last met. A run that is older than one that was met, or another run of
//! the same number, is outdated: its requests are refused, it refuses those of others, and it ends.
//!
//! File `peers` beside the log's directory, text: the line `skein-peers 1`, then a line `NODE NUMBER RUN` for each voter
//! that was met, node and run as 16 hex digits.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

use crate::io::durable;

/// One start of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Incarnation {
    /// Counts the starts; 0 for a node whose program does not count them.
    pub number: u64,
    /// A random number drawn at the start.
    pub run: u64,
}

impl Incarnation {
    /// Whether this run has forgotten what `met`, a run of the same node, may have promised.
    fn is_outdated_by(self, met: Incarnation) -> bool {
        self.number != 0 && (self.number < met.number || (self.number == met.number && self.run != met.run))
    }
}

/// Why a request between two voters is not served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mismatch {
    /// The receiver is outdated.
    ReceiverOutdated,
    /// The sender is.
    SenderOutdated,
    /// The sender has met an earlier run of the receiver only: it must first know of this one.
    ReceiverUnknown,
}

const MAGIC: &str = "skein-peers 1";

/// This node's run, and the runs of others that it has met.
#[derive(Debug)]
pub struct Incarnations {
    own: Incarnation,
    file: PathBuf,
    met: Mutex<BTreeMap<u64, Incarnation>>,
    storing: Mutex<()>,
    /// Something was met that is not stored yet.
    unstored: AtomicBool,
    /// Which node has met a later run of this one.
    outdated: watch::Sender<Option<u64>>,
}

impl Incarnations {
    /// What the node of run `own` has noted in `file`.
    ///
    /// # Errors
    /// Where the file cannot be read, or is damaged.
    pub fn open(own: Incarnation, file: PathBuf) -> io::Result<Arc<Self>> {
        let met = match std::fs::read_to_string(&file) {
            Ok(text) => parse(&text).ok_or_else(|| {
                let why = format!("{} is damaged or of a newer version; restore it", file.display());
                io::Error::new(io::ErrorKind::InvalidData, why)
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Arc::new(Self {
            own,
            file,
            met: Mutex::new(met),
            storing: Mutex::default(),
            unstored: AtomicBool::default(),
            outdated: watch::Sender::new(None),
        }))
    }

    /// This node's run.
    pub(super) fn own(&self) -> Incarnation {
        self.own
    }

    /// The last run of a node that was met.
    pub(super) fn met(&self, node: u64) -> Incarnation {
        self.lock().get(&node).copied().unwrap_or_default()
    }

    /// Becomes the node that has met a later run of this one.
    pub(super) fn outdated(&self) -> watch::Receiver<Option<u64>> {
        self.outdated.subscribe()
    }

    /// A request of run `sender` of node `from`, which has last met run `expected` of this node; in order to be served
    /// it must know this run, or be about to get to know it (`introduces`).
    pub(super) fn check(
        &self,
        from: u64,
        sender: Incarnation,
        expected: Incarnation,
        introduces: bool,
    ) -> Result<(), Mismatch> {
        if self.own.is_outdated_by(expected) {
            self.note_outdated(from);
            return Err(Mismatch::ReceiverOutdated);
        }
        if !self.meet(from, sender) {
            return Err(Mismatch::SenderOutdated);
        }
        // A sender that does not count its own starts does not know of this node's either.
        if expected != self.own && sender.number != 0 && self.own.number != 0 && !introduces {
            return Err(Mismatch::ReceiverUnknown);
        }
        Ok(())
    }

    /// Notes that a run of a node was met; false where it is outdated. What was noted is stored by
    /// [`store`](Self::store).
    pub(super) fn meet(&self, node: u64, run: Incarnation) -> bool {
        let mut met = self.lock();
        let before = met.get(&node).copied().unwrap_or_default();
        if run.is_outdated_by(before) {
            if before.number != 0 {
                tracing::debug!(node = %format!("{node:016x}"), "an outdated run of a voter was met");
            }
            return false;
        }
        if run.number > before.number {
            met.insert(node, run);
            self.unstored.store(true, Ordering::SeqCst);
        }
        true
    }

    /// Has what was met stored in the background, where that is due.
    pub(super) fn store_soon(self: &Arc<Self>) {
        if self.unstored.swap(false, Ordering::SeqCst) {
            let this = self.clone();
            tokio::task::spawn_blocking(move || {
                if let Err(error) = this.store() {
                    this.unstored.store(true, Ordering::SeqCst);
                    tracing::warn!(%error, "cannot note which runs of other voters were met");
                }
            });
        }
    }

    /// Another node has met a later run of this one.
    pub(super) fn note_outdated(&self, by: u64) {
        self.outdated.send_if_modified(|outdated| {
            let first = outdated.is_none();
            *outdated = Some(outdated.unwrap_or(by));
            first
        });
    }

    /// Stores durably what was met. Blocking.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub(super) fn store(&self) -> io::Result<()> {
        // Held while it is written: a later state must not be replaced by an earlier one. What was met is not locked
        // meanwhile, because Raft's thread asks for it.
        let _one_at_a_time = self.storing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut text = format!("{MAGIC}\n");
        let met = self.lock().clone();
        for (node, run) in met {
            text.push_str(&format!("{node:016x} {} {:016x}\n", run.number, run.run));
        }
        if std::fs::read_to_string(&self.file).is_ok_and(|stored| stored == text) {
            return Ok(());
        }
        durable::write_atomic(&self.file, text.as_bytes())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Incarnation>> {
        self.met.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn parse(text: &str) -> Option<BTreeMap<u64, Incarnation>> {
    let mut lines = text.lines();
    (lines.next() == Some(MAGIC)).then_some(())?;
    let line = |line: &str| {
        let mut words = line.split(' ');
        let node = u64::from_str_radix(words.next()?, 16).ok()?;
        let number = words.next()?.parse().ok()?;
        let run = u64::from_str_radix(words.next()?, 16).ok()?;
        words.next().is_none().then_some((node, Incarnation { number, run }))
    };
    lines.map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(number: u64, run: u64) -> Incarnation {
        Incarnation { number, run }
    }

    const UNCOUNTED: Incarnation = Incarnation { number: 0, run: 0 };

    #[test]
    fn a_run_is_outdated_by_a_later_one_and_by_another_one_of_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let known = Incarnations::open(run(3, 30), dir.path().join("peers")).unwrap();
        assert_eq!(known.check(7, run(5, 50), run(3, 30), false), Ok(()));
        assert_eq!(known.check(7, run(5, 51), run(3, 30), false), Err(Mismatch::SenderOutdated));
        assert_eq!(known.check(7, run(4, 40), run(3, 30), false), Err(Mismatch::SenderOutdated));
        assert_eq!(known.check(7, run(6, 60), run(3, 30), false), Ok(()), "it was started again");
        assert_eq!(known.check(7, run(6, 60), run(2, 20), false), Err(Mismatch::ReceiverUnknown));
        assert_eq!(known.check(7, run(6, 60), run(2, 20), true), Ok(()));
        assert_eq!(known.check(8, UNCOUNTED, UNCOUNTED, false), Ok(()), "an older program");
        assert_eq!(*known.outdated().borrow(), None);
        assert_eq!(known.check(7, run(6, 60), run(3, 31), false), Err(Mismatch::ReceiverOutdated));
        assert_eq!(known.check(9, run(1, 1), run(4, 4), true), Err(Mismatch::ReceiverOutdated));
        assert_eq!(*known.outdated().borrow(), Some(7), "the first to say so");
    }

    #[test]
    fn what_was_met_is_known_after_a_restart_and_damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("peers");
        let known = Incarnations::open(run(1, 1), file.clone()).unwrap();
        assert!(known.meet(7, run(5, 0xabc)) && known.meet(u64::MAX, run(1, u64::MAX)));
        known.store().unwrap();
        let again = Incarnations::open(run(2, 2), file.clone()).unwrap();
        assert_eq!((again.met(7), again.met(8)), (run(5, 0xabc), UNCOUNTED));
        assert!(!again.meet(u64::MAX, run(1, 0)));
        for damaged in ["", "skein-peers 2\n", "skein-peers 1\n7 5\n", "skein-peers 1\nx 5 1\n"] {
            std::fs::write(&file, damaged).unwrap();
            assert!(Incarnations::open(run(3, 3), file.clone()).is_err(), "{damaged:?}");
        }
    }
}
