//! openraft's conformance suite on our store, with each append synced at once and with syncs put off.

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
    puts_off: bool,
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let options =
            LogOptions { dir: dir.path().join("raft"), segment_bytes: 64 * 1024, names: |_| Vec::new() };
        let store = LogStore::open(options).unwrap();
        store.shared().set_puts_off(self.puts_off);
        // The suite gives entries to the state machine alone.
        let applied = LogStore::open(LogOptions {
            dir: dir.path().join("other"),
            segment_bytes: 64 * 1024,
            names: |_| Vec::new(),
        })
        .unwrap();
        applied.shared().assume_flushed();
        let (target, pending) = (Arc::new(Recorder::default()), Arc::default());
        let members = dir.path().join("membership");
        let machine =
            StateMachine::open(target, pending, &store.entries(), applied.shared(), members).unwrap();
        Ok((dir, store, machine))
    }
}

fn run(puts_off: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(Builder { puts_off })).unwrap();
}

#[test]
fn the_store_conforms_when_it_writes_in_place() {
    run(false);
}

#[test]
fn the_store_conforms_when_syncs_are_put_off() {
    run(true);
}
