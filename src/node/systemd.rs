//! What systemd is told: ready, still alive, stopping. Nothing where it does not run the node.
//!
//! Source: sd_notify(3), sd_watchdog_enabled(3).

use std::path::{Path, PathBuf};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::process::Command;
use tokio_util::task::AbortOnDropHandle;

/// Programs started by the node must not speak in its name.
pub(super) fn hide_from(command: &mut Command) {
    command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID");
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell systemd");
    }
}

/// Applications may use the mount.
pub(super) fn ready(announcement: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(announcement)]);
}

/// The node ends.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says that the node is alive for as long as the value is kept, where the unit wants to hear it. The mount is asked each
/// time: a node whose mount does not answer is not alive.
pub(super) fn keep_watchdog_fed(mount: &Path) -> Option<AbortOnDropHandle<()>> {
    let limit = sd_notify::watchdog_enabled()?;
    Some(AbortOnDropHandle::new(tokio::spawn(feed(mount.to_owned(), limit / 2))))
}

async fn feed(mount: PathBuf, every: Duration) {
    let mut times = tokio::time::interval(every.max(Duration::from_millis(10)));
    loop {
        times.tick().await;
        let path = mount.clone();
        let asked = tokio::task::spawn_blocking(move || nix::sys::statvfs::statvfs(&path).map(drop));
        // Not longer than systemd waits: a thread that hangs in a dead mount is waited for by nobody.
        match tokio::time::timeout(every, asked).await {
            Ok(Ok(Ok(()))) => tell(&[NotifyState::Watchdog]),
            Ok(Ok(Err(error))) => {
                tracing::warn!(%error, "the mount does not answer; the watchdog is not fed")
            }
            Ok(Err(_)) | Err(_) => {
                tracing::warn!("the mount does not answer in time; the watchdog is not fed")
            }
        }
    }
}
