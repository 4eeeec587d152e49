//! When the supervised program runs: where, and what follows when it ends.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::sync::watch;

use super::NodeError;
use super::assemble::Running;
use super::child::Supervised;
use super::current_role::CurrentRole;
use super::run_as::RunAs;
use super::signals::{Signals, ends};
use crate::config::{Exec, OnlyOn};

/// The first wait before a program is started again.
const DELAY_MIN: Duration = Duration::from_millis(100);
/// A program that ran for so long was well: the next wait is the first one again.
const WELL: Duration = Duration::from_secs(60);

/// Why the program does not run any more.
enum Ended {
    /// By itself, with this code.
    Itself(i32),
    /// It was stopped because this node is not primary any more.
    Demoted,
    /// The node shall end with this code.
    Node(i32),
}

/// Runs the command where and as often as it shall run, until the node is to end; gives the exit code.
pub(super) async fn supervise(
    command: &[String],
    exec: &Exec,
    running: &mut Running,
    signals: &mut Signals,
) -> Result<i32, NodeError> {
    let mut supervision = Supervision { exec, role: running.role(), running, signals };
    let user = RunAs::find(&exec.user).map_err(NodeError::System)?;
    let mut delay = Delay { next: DELAY_MIN, max: exec.restart_delay_max };
    loop {
        if let Some(code) = supervision.turn().await? {
            return Ok(code);
        }
        let started = Instant::now();
        let mut child = Supervised::spawn(command, user.as_ref()).await?;
        let code = match supervision.watch(&mut child).await? {
            Ended::Itself(code) => code,
            Ended::Node(code) => return Ok(code),
            Ended::Demoted => {
                tracing::info!("the command was stopped: this node is not primary");
                continue;
            }
        };
        if !exec.restart.again(code) {
            return Ok(code);
        }
        let pause = delay.after(started.elapsed());
        tracing::warn!(code, ?pause, "the command ended; it is started again");
        if let Some(code) = supervision.pause(pause).await? {
            return Ok(code);
        }
    }
}

struct Supervision<'a> {
    exec: &'a Exec,
    role: watch::Receiver<CurrentRole>,
    running: &'a mut Running,
    signals: &'a mut Signals,
}

impl Supervision<'_> {
    fn may_run(&mut self) -> bool {
        self.exec.only_on == OnlyOn::Any || self.role.borrow_and_update().is_primary
    }

    /// Waits until the program may run; a code where the node shall end instead.
    async fn turn(&mut self) -> Result<Option<i32>, NodeError> {
        let mut said = false;
        while !self.may_run() {
            if !said {
                tracing::info!("the command waits until this node is primary");
                said = true;
            }
            tokio::select! {
                () = changed(&mut self.role) => {}
                signal = self.signals.next_end() => return Ok(Some(told(signal))),
                Some(failure) = self.running.failures.recv() => return Err(failure),
            }
        }
        Ok(None)
    }

    /// Waits for a while; a code where the node shall end instead.
    async fn pause(&mut self, pause: Duration) -> Result<Option<i32>, NodeError> {
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(None),
            signal = self.signals.next_end() => Ok(Some(told(signal))),
            Some(failure) = self.running.failures.recv() => Err(failure),
        }
    }

    /// Watches over the program while it runs.
    async fn watch(&mut self, child: &mut Supervised) -> Result<Ended, NodeError> {
        loop {
            if !self.may_run() {
                return self.demote(child).await;
            }
            tokio::select! {
                code = child.wait() => return code.map(Ended::Itself),
                signal = self.signals.next() => {
                    child.signal(signal);
                    if ends(signal) {
                        return self.end(child).await.map(Ended::Node);
                    }
                }
                () = changed(&mut self.role) => {}
                Some(failure) = self.running.failures.recv() => {
                    child.signal(Signal::SIGTERM);
                    self.end(child).await?;
                    return Err(failure);
                }
            }
        }
    }

    /// Stops the program, which nobody asked the node to end.
    async fn demote(&mut self, child: &mut Supervised) -> Result<Ended, NodeError> {
        child.signal(Signal::SIGTERM);
        tokio::select! {
            code = child.wait() => return code.map(|_| Ended::Demoted),
            () = tokio::time::sleep(self.exec.stop_timeout) => {}
            signal = self.signals.next_end() => {
                child.signal(signal);
                return self.end(child).await.map(Ended::Node);
            }
        }
        tracing::warn!("the command did not end within {:?}; killing it", self.exec.stop_timeout);
        child.signal(Signal::SIGKILL);
        child.wait().await.map(|_| Ended::Demoted)
    }

    /// Waits for the program to end; kills it after a while, or at the second signal.
    async fn end(&mut self, child: &mut Supervised) -> Result<i32, NodeError> {
        let limit = self.exec.stop_timeout;
        tokio::select! {
            code = child.wait() => return code,
            () = tokio::time::sleep(limit) => tracing::warn!("the command did not end within {limit:?}; killing it"),
            signal = self.signals.next_end() => tracing::warn!("{signal} once more; killing the command"),
        }
        child.signal(Signal::SIGKILL);
        child.wait().await
    }
}

/// The node ends because it was told to, while no program runs.
fn told(signal: Signal) -> i32 {
    tracing::info!("{signal}: ending");
    0
}

async fn changed(role: &mut watch::Receiver<CurrentRole>) {
    if role.changed().await.is_err() {
        // Nobody notes it any more: the node ends, and somebody else says why.
        std::future::pending().await
    }
}

/// Waits that double from start to start.
struct Delay {
    next: Duration,
    max: Duration,
}

impl Delay {
    fn after(&mut self, ran: Duration) -> Duration {
        if ran >= WELL {
            self.next = DELAY_MIN;
        }
        let now = self.next.min(self.max);
        self.next = (now * 2).min(self.max);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_their_bound_and_begin_anew_after_a_good_run() {
        let ms = Duration::from_millis;
        let mut delay = Delay { next: DELAY_MIN, max: ms(350) };
        let waits: Vec<_> = (0..4).map(|_| delay.after(ms(5))).collect();
        assert_eq!(waits, [ms(100), ms(200), ms(350), ms(350)]);
        assert_eq!(delay.after(WELL), ms(100));
    }
}
