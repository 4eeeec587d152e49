use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::store::{Store, StoreEvent};
use crate::telemetry::metrics::{CHECKPOINT_ERRORS, CHECKPOINT_SECONDS, CHECKPOINTS};

/// A checkpoint is due after this many changes,
const CHANGES: u64 = 1000;
/// or when nothing has changed for this long.
const QUIET: Duration = Duration::from_secs(1);

/// Checkpoints now and then, so that a restart has little to redo and the log can be purged; until `shutdown`.
pub(super) async fn keep_checkpointing(store: Arc<Store>, shutdown: CancellationToken) {
    let mut events = store.events();
    let mut pending = 0u64;
    loop {
        let quiet = async {
            match pending {
                0 => std::future::pending().await,
                _ => tokio::time::sleep(QUIET).await,
            }
        };
        let due = tokio::select! {
            event = events.recv() => {
                match event {
                    Ok(StoreEvent::Tx { .. } | StoreEvent::Dropped(_)) => pending += 1,
                    Ok(_) => {}
                    Err(RecvError::Lagged(missed)) => pending += missed,
                    Err(RecvError::Closed) => return,
                }
                pending >= CHANGES
            }
            () = quiet => true,
            () = shutdown.cancelled() => return,
        };
        if due {
            pending = 0;
            checkpoint(store.clone()).await;
        }
    }
}

/// Checkpoints once; a failure is logged, and tried again with the next change.
pub(super) async fn checkpoint(store: Arc<Store>) {
    let start = Instant::now();
    let result = tokio::task::spawn_blocking(move || store.checkpoint()).await;
    metrics::histogram!(CHECKPOINT_SECONDS).record(start.elapsed().as_secs_f64());
    match result {
        Ok(Ok(())) => metrics::counter!(CHECKPOINTS).increment(1),
        Ok(Err(error)) => {
            metrics::counter!(CHECKPOINT_ERRORS).increment(1);
            tracing::warn!("checkpoint: {error}");
        }
        Err(error) => tracing::error!("checkpoint: {error}"),
    }
}
