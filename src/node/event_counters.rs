use std::sync::Arc;
use std::time::Instant;

use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::store::{Store, StoreEvent};
use crate::telemetry::Exposition;
use crate::telemetry::metrics::{FAILOVER_SECONDS, PRIMARY_CHANGES, TRANSACTIONS, UPKEEP_EVERY};

/// Counts what happens, until `shutdown`.
pub(super) async fn count_events(store: Arc<Store>, shutdown: CancellationToken) {
    let mut events = store.events();
    let mut lost: Option<Instant> = None;
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = shutdown.cancelled() => return,
        };
        match event {
            Ok(StoreEvent::Tx { .. }) => metrics::counter!(TRANSACTIONS).increment(1),
            Ok(StoreEvent::Primary(primary)) => {
                match (&primary, lost) {
                    (None, None) => lost = Some(Instant::now()),
                    (Some(_), Some(since)) => {
                        metrics::histogram!(FAILOVER_SECONDS).record(since.elapsed().as_secs_f64());
                        lost = None;
                    }
                    _ => {}
                }
                metrics::counter!(PRIMARY_CHANGES).increment(1);
                match primary {
                    Some(primary) => {
                        tracing::info!(primary = %primary.name, http = %primary.http, "the primary changed")
                    }
                    None => tracing::info!("no primary is known"),
                }
            }
            Ok(_) => {}
            Err(RecvError::Lagged(missed)) => metrics::counter!(TRANSACTIONS).increment(missed),
            Err(RecvError::Closed) => return,
        }
    }
}

/// Puts samples of distributions into their buckets now and then: nobody may ever ask for the metrics.
pub(super) async fn keep_metrics_small(exposition: Exposition, shutdown: CancellationToken) {
    let mut times = tokio::time::interval(UPKEEP_EVERY);
    loop {
        tokio::select! {
            _ = times.tick() => exposition.upkeep(),
            () = shutdown.cancelled() => return,
        }
    }
}
