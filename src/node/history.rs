use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::replication::Replication;
use crate::config::Settings;
use crate::history::{History, HistoryOptions};
use crate::store::Store;

/// Starts to keep what databases were; `None` where nothing is to be kept.
pub(super) fn start_history(
    settings: &Settings,
    store: &Arc<Store>,
    replication: &Replication,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Option<Arc<History>> {
    if !settings.history.is_on() {
        return None;
    }
    let options = HistoryOptions {
        keep: settings.history.keep,
        bytes_max: settings.history.bytes_max,
        disk_reserve_bytes: settings.limits.disk_reserve_bytes,
    };
    let history = History::new(options, store.clone(), replication.log());
    tasks.spawn(history.clone().run(shutdown.clone()));
    Some(history)
}
