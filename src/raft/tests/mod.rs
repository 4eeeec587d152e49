//! Tests of the log and the state machine together: openraft's own suite, and what it does not ask for.

mod conformance;
mod sim;
mod single_voter;
mod three_voters;

pub(super) use sim::{Draws, OrderedWatch, is_simulated};

use std::io;
use std::sync::Mutex;

use futures::future::BoxFuture;
use tokio::sync::watch;

use super::target::LogTarget;
use crate::ltx::{Body, ChangeSet};
use crate::store::{Change, ChangeKind, Origin};
use crate::types::{Checksum, DbName, LogIndex, NodeId, PageCount, PageSize, Txid, TxidRange};

/// A stand-in for the databases: remembers what it was told.
#[derive(Debug)]
pub(super) struct Recorder {
    /// Entries applied that were no proposal of this run.
    pub told: Mutex<Vec<(LogIndex, String)>>,
    /// What a restart need not bring again.
    pub durable: Mutex<LogIndex>,
    /// What was fetched because the log was gone.
    pub fetched: Mutex<Vec<LogIndex>>,
    settled: watch::Sender<LogIndex>,
}

impl Default for Recorder {
    fn default() -> Self {
        let (told, durable, fetched) = Default::default();
        Self { told, durable, fetched, settled: watch::Sender::default() }
    }
}

impl Recorder {
    /// Names of the databases that the entries applied change, in order.
    pub fn names(&self) -> Vec<String> {
        self.told.lock().unwrap().iter().map(|(_, name)| name.clone()).collect()
    }
}

impl LogTarget for Recorder {
    fn entry(&self, index: LogIndex, change: Option<Change>) {
        if let Some(change) = change {
            self.told.lock().unwrap().push((index, change.databases()[0].to_string()));
        }
        self.settled.send_replace(index);
    }

    fn term_began(&self, _term: u64) {}

    fn settled(&self) -> watch::Receiver<LogIndex> {
        self.settled.subscribe()
    }

    fn replayed(&self) -> watch::Receiver<bool> {
        watch::Sender::new(true).subscribe()
    }

    fn shippable(&self) -> watch::Receiver<LogIndex> {
        self.settled.subscribe()
    }

    fn durable_index(&self) -> LogIndex {
        *self.durable.lock().unwrap()
    }

    fn begin_replay(&self) {}

    fn end_replay(&self) {}

    fn fetch(&self, index: LogIndex) -> BoxFuture<'static, io::Result<()>> {
        self.fetched.lock().unwrap().push(index);
        *self.durable.lock().unwrap() = index;
        self.settled.send_replace(index);
        Box::pin(async { Ok(()) })
    }
}

/// A change that is easy to tell apart: a commit of the database `name`, without content.
pub(super) fn change(run: u64, seq: u64, name: &str) -> Change {
    let origin = Origin { node: NodeId::new(1), run, seq };
    let set = ChangeSet {
        db: DbName::new(name).unwrap(),
        range: TxidRange::single(Txid::FIRST),
        pre: Checksum::EMPTY,
        post: Checksum::EMPTY,
        page_size: PageSize::DEFAULT,
        commit: PageCount::ZERO,
        body: Body::Inline(bytes::Bytes::new()),
    };
    Change { origin, timestamp_ms: 0, kind: ChangeKind::Commit(vec![set]) }
}
