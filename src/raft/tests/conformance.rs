//! openraft's conformance suite on our store, with the log written in place and by its own thread.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::Recorder;
use crate::raft::log_store::LogStore;
use crate::raft::segment_log::LogOptions;
use crate::raft::state_machine::StateMachine;
use crate::raft::types::TypeConfig;

struct Builder {
    threaded: bool,
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions { dir: dir.path().join("raft"), segment_bytes: 64 * 1024 };
        let store = LogStore::open(options).unwrap();
        store.shared().set_threaded(self.threaded);
        let (target, pending) = (Arc::new(Recorder::default()), Arc::default());
        let members = dir.path().join("membership");
        let machine = StateMachine::open(target, pending, &store.entries(), None, members).unwrap();
        Ok((dir, store, machine))
    }
}

fn run(threaded: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(Builder { threaded })).unwrap();
}

#[test]
fn the_store_conforms_when_it_writes_in_place() {
    run(false);
}

#[test]
fn the_store_conforms_when_a_thread_writes() {
    run(true);
}
