use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use nix::sys::statvfs::statvfs;
use tokio_util::sync::CancellationToken;

use crate::store::Store;
use crate::telemetry::metrics::{BACKPRESSURE_SECONDS, BACKPRESSURE_WAITS, DISK_FREE, DISK_REFUSALS};

/// Between two looks at the disk: nothing tells.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Of a small disk not more than this part is kept in reserve.
const RESERVE_PART: u64 = 20;

/// Space of the file system a directory is on, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Space {
    /// What programs may still use.
    pub(super) free: u64,
    /// All of it.
    pub(super) total: u64,
}

/// The space left for a directory.
///
/// # Errors
/// Where the directory cannot be asked.
pub(super) fn space(dir: &std::path::Path) -> std::io::Result<Space> {
    let asked = statvfs(dir)?;
    let unit = asked.fragment_size();
    Ok(Space { free: asked.blocks_available() * unit, total: asked.blocks() * unit })
}

/// The bytes kept in reserve of such a disk.
pub(super) fn reserve_of(space: Space, configured: u64) -> u64 {
    configured.min(space.total / RESERVE_PART)
}

/// Refuses commits while less than the reserve is left, until `shutdown`.
pub(super) async fn guard_disk(store: Arc<Store>, dir: PathBuf, reserve: u64, shutdown: CancellationToken) {
    let mut low = false;
    let mut times = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            _ = times.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let asked = dir.clone();
        let Ok(Ok(space)) = tokio::task::spawn_blocking(move || space(&asked)).await else { continue };
        gauge!(DISK_FREE).set(space.free as f64);
        let counts = store.limits().counts();
        counter!(BACKPRESSURE_WAITS).absolute(counts.waits);
        counter!(BACKPRESSURE_SECONDS).absolute(counts.waited.as_secs());
        counter!(DISK_REFUSALS).absolute(counts.refusals);
        let reserve = reserve_of(space, reserve);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_a_small_part_of_a_small_disk() {
        let of = |total| reserve_of(Space { free: 0, total }, 64 << 20);
        assert_eq!(of(1 << 40), 64 << 20);
        assert_eq!(of(100 << 20), 5 << 20);
        assert!(space(std::path::Path::new("/")).unwrap().total > 0);
    }
}
