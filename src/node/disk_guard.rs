use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use tokio_util::sync::CancellationToken;

use crate::io::free_space::Space;
use crate::store::{Layout, Store};
use crate::telemetry::metrics::{
    BACKPRESSURE_SECONDS, BACKPRESSURE_WAITS, BLOB_BYTES, DISK_FREE, DISK_REFUSALS, LOG_BYTES,
};

/// Between two looks at the disk: nothing tells.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks between two counts of what the log takes.
const COUNT_EVERY: u32 = 10;

/// Counts what the log and its large change sets take.
fn count_log(layout: &Layout) {
    let bytes = |dir: PathBuf| -> u64 {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.len()).sum()
    };
    gauge!(LOG_BYTES).set(bytes(layout.raft()) as f64);
    gauge!(BLOB_BYTES).set(bytes(layout.blobs()) as f64);
}

/// Refuses commits while less than the reserve is left, until `shutdown`.
pub(super) async fn guard_disk(store: Arc<Store>, dir: PathBuf, reserve: u64, shutdown: CancellationToken) {
    let (mut low, mut looks) = (false, 0);
    let mut times = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            _ = times.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let (asked, counted) = (dir.clone(), store.layout().clone());
        let counts = looks % COUNT_EVERY == 0;
        looks += 1;
        let look = move || {
            if counts {
                count_log(&counted);
            }
            Space::of(&asked)
        };
        let Ok(Ok(space)) = tokio::task::spawn_blocking(look).await else { continue };
        gauge!(DISK_FREE).set(space.free as f64);
        let counts = store.limits().counts();
        counter!(BACKPRESSURE_WAITS).absolute(counts.waits);
        counter!(BACKPRESSURE_SECONDS).absolute(counts.waited.as_secs());
        counter!(DISK_REFUSALS).absolute(counts.refusals);
        let reserve = space.reserve(reserve);
        // A little more than the reserve before it is over, so that it is not over and back with every commit.
        let now_low = space.free < if low { reserve + reserve / 4 } else { reserve };
        if now_low == low {
            continue;
        }
        low = now_low;
        store.limits().set_disk_low(low);
        let (free, dir) = (space.free, dir.display());
        match low {
            true => {
                tracing::error!(%dir, free_bytes = free, reserve_bytes = reserve, "the disk is nearly full: commits are refused until there is more space")
            }
            false => tracing::info!(%dir, free_bytes = free, "there is disk space again: commits go on"),
        }
    }
}
