use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::store::{Store, StoreEvent};
use crate::telemetry::metrics::{PRIMARY_CHANGES, TRANSACTIONS};

/// Counts what happens, until `shutdown`.
pub(super) async fn count_events(store: Arc<Store>, shutdown: CancellationToken) {
    let mut events = store.events();
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = shutdown.cancelled() => return,
        };
        match event {
            Ok(StoreEvent::Tx { .. }) => metrics::counter!(TRANSACTIONS).increment(1),
            Ok(StoreEvent::Primary(primary)) => {
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
