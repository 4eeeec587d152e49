//! The watchdog: a thread of this program that stays in one of its own calls is seen by another one.
//!
//! A node that hangs is worse than one that is down: others think that it is there, and applications wait. So it says so in
//! its log with what the thread does and what it holds, is not ready, and is no primary any more where others can be.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::NodeError;
use crate::io::watchdog::{self, Stuck};
use crate::store::Store;

/// Starts it: a call is stuck when it lasts longer than `limit`. What is returned has the text for an operator.
///
/// # Errors
/// Where no thread can be had.
pub(super) fn start(
    store: Arc<Store>,
    limit: Duration,
    shutdown: CancellationToken,
) -> Result<watch::Receiver<Option<String>>, NodeError> {
    let (told, receiver) = watch::channel(None);
    let every = (limit / 4).clamp(Duration::from_millis(50), Duration::from_secs(1));
    let run = move || {
        let mut known = HashSet::new();
        // The timer is the event: a thread that is stuck tells nothing.
        while !shutdown.is_cancelled() {
            std::thread::sleep(every);
            look(&store, &watchdog::stuck(limit), &mut known, &told);
        }
    };
    let spawned = std::thread::Builder::new().name("skein-watchdog".into()).spawn(run);
    spawned.map_err(|error| NodeError::System(format!("starting the watchdog: {error}")))?;
    Ok(receiver)
}

fn look(
    store: &Store,
    stuck: &[Stuck],
    known: &mut HashSet<(i32, &'static str)>,
    told: &watch::Sender<Option<String>>,
) {
    for stuck in stuck {
        if known.insert((stuck.tid, stuck.doing)) {
            let holds = store.locked_by(stuck.tid);
            let place = watchdog::place_in_kernel(stuck.tid);
            tracing::error!(tid = stuck.tid, %place, locks_of = ?holds, "stuck: {stuck}");
        }
    }
    known.retain(|known| stuck.iter().any(|stuck| (stuck.tid, stuck.doing) == *known));
    let text = stuck
        .first()
        .map(|stuck| format!("stuck: thread {} does not come back from {}", stuck.thread, stuck.doing));
    // Where others can be primary, this node is none for as long.
    store.suspend(text.is_some());
    let changed = told.send_if_modified(|known| {
        let changed = *known != text;
        known.clone_from(&text);
        changed
    });
    if changed && text.is_none() {
        tracing::info!("no thread is stuck any more");
    }
}
