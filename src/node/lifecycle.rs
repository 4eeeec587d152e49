use std::io::Write;

use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;

use super::NodeError;
use super::assemble::{Running, start};
use super::run_as::{RunAs, check_command};
use super::signals::{Signals, ends};
use super::supervise::supervise;
use super::systemd;
use crate::config::Settings;

/// Runs a node until it is told to end or its command ends; gives the exit code.
///
/// Prints one line on stdout when applications may start.
///
/// # Errors
/// Where the node cannot start or go on; everything is unmounted and stopped then.
pub async fn run(settings: Settings) -> Result<i32, NodeError> {
    super::descriptors::raise_limit();
    let mut signals = Signals::listen()?;
    // Before anything is mounted: what cannot be run leaves nothing behind.
    check_command(&settings.command)?;
    RunAs::find(&settings.exec.user).map_err(NodeError::System)?;
    let shutdown = CancellationToken::new();
    // Whatever way this function is left, the tasks of the node end.
    let _ends_with_this = shutdown.clone().drop_guard();
    let mut running = tokio::select! {
        started = start(&settings, shutdown) => started?,
        signal = signals.next_end() => {
            tracing::info!("{signal} before applications could start; ending");
            return Ok(0);
        }
    };
    announce(&running.announcement);
    systemd::ready(&running.announcement);
    let watchdog = systemd::keep_watchdog_fed(&settings.mount);
    let outcome = match settings.command.is_empty() {
        true => stay(&mut running, &mut signals).await,
        false => supervise(&settings.command, &settings.exec, &mut running, &mut signals).await,
    };
    systemd::stopping();
    // The mount is about to go.
    drop(watchdog);
    // Where the command never ran there is no application to keep from the empty directory below the mount.
    let failed = outcome.as_ref().is_err_and(|error| !matches!(error, NodeError::Command { .. }));
    let stopped = running.stop(failed).await;
    let code = outcome?;
    stopped?;
    Ok(code)
}

fn announce(line: &str) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        tracing::warn!("{line} (stdout: {error})");
    }
}

async fn stay(running: &mut Running, signals: &mut Signals) -> Result<i32, NodeError> {
    loop {
        tokio::select! {
            signal = signals.next() => {
                if ends(signal) || signal == Signal::SIGHUP {
                    tracing::info!("{signal}: ending");
                    return Ok(0);
                }
            }
            Some(failure) = running.failures.recv() => return Err(failure),
        }
    }
}
