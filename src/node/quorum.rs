//! Says in the log when nothing can be written any more, and when it can again.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::replication::Replication;

/// Between two looks: nothing tells of what does not happen.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So many looks alike count: the primary may just be moving.
const LOOKS: u32 = 2;

/// Watches until `shutdown`.
pub(super) async fn watch_quorum(replication: Arc<Replication>, shutdown: CancellationToken) {
    let (mut said, mut without) = (false, 0);
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            () = shutdown.cancelled() => return,
        }
        match replication.no_quorum() {
            Some(why) => {
                without += 1;
                if without == LOOKS {
                    said = true;
                    tracing::warn!("no quorum: {why}");
                }
            }
            None => {
                without = 0;
                if std::mem::take(&mut said) {
                    tracing::info!("there is a quorum again");
                }
            }
        }
    }
}
