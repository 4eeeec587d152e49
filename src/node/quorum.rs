//! Says in the log when nothing can be written any more, and when it can again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::replication::Replication;

/// Between two looks: nothing tells of what does not happen.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// So many looks alike are worth a word: the primary may just be moving.
const LOOKS: u32 = 3;
/// The same of a node that starts.
const LOOKS_AT_START: u32 = 20;

/// Watches until `shutdown`; `since` becomes when the quorum was lost.
pub(super) async fn watch_quorum(
    replication: Arc<Replication>,
    since: watch::Sender<Option<SystemTime>>,
    shutdown: CancellationToken,
) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    // Before the first primary is known there is nothing to lose, and a start takes a moment.
    let (mut had, mut looks, mut said) = (false, 0, false);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            () = shutdown.cancelled() => return,
        }
        match replication.no_quorum() {
            Some(why) => {
                since.send_if_modified(|since| {
                    let lost = since.is_none();
                    since.get_or_insert_with(SystemTime::now);
                    lost
                });
                looks += 1;
                if !said && looks >= if had { LOOKS } else { LOOKS_AT_START } {
                    tracing::warn!("no quorum: {why}");
                    said = true;
                }
            }
            None => {
                since.send_replace(None);
                looks = 0;
                if std::mem::take(&mut said) {
                    tracing::info!("there is a quorum again");
                }
                had = true;
            }
        }
    }
}
