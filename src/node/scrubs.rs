use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// Has the databases compared with their checksums every `every`, zero: never; until `shutdown`.
pub(super) async fn keep_scrubbing(store: Arc<Store>, every: Duration, shutdown: CancellationToken) {
    if every.is_zero() {
        return;
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = shutdown.cancelled() => return,
        }
        // A voter whose log is not redone begins by itself when it is.
        if store.is_replayed()
            && let Err(error) = store.scrub()
        {
            tracing::warn!(%error, "databases are not compared with their checksums");
        }
    }
}
