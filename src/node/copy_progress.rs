//! Says in the log how far a copy is that takes long.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// Between two lines.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Reports until `shutdown`.
pub(super) async fn report_copies(store: Arc<Store>, shutdown: CancellationToken) {
    let mut times = tokio::time::interval(SAY_EVERY);
    loop {
        tokio::select! {
            _ = times.tick() => {}
            () = shutdown.cancelled() => return,
        }
        if let Some(progress) = store.copying().progress() {
            tracing::info!("fetching databases: {progress}");
        }
    }
}
