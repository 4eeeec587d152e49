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

/// Time until the primary is asked again whether it is done with `exec.before`: it does not tell by itself.
const ASK_AGAIN: Duration = Duration::from_millis(250);

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
    let user = RunAs::find(&exec.user).map_err(NodeError::System)?;
    let user = user.as_ref();
    let mut supervision = Supervision { exec, role: running.role(), running, signals };
    let mut delay = Delay { next: DELAY_MIN, max: exec.restart_delay_max };
    loop {
        if let Some(code) = supervision.turn().await? {
            return Ok(code);
        }
        let mut started = Instant::now();
        let (what, ended) = match supervision.prepare(user).await? {
            Ended::Itself(0) => {
                started = Instant::now();
                let mut child = Supervised::spawn(command, user).await?;
                ("the command", supervision.watch(&mut child, exec.only_on).await?)
            }
            failed => ("exec.before", failed),
        };
        let code = match ended {
            Ended::Itself(code) => code,
            Ended::Node(code) => return Ok(code),
            Ended::Demoted => {
                tracing::info!("{what} was stopped: this node is not primary");
                continue;
            }
        };
        if !exec.restart.again(code) {
            return Ok(code);
        }
        let pause = delay.after(started.elapsed());
        tracing::warn!(code, ?pause, "{what} ended; it is started again");
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
    fn may_run(&mut self, on: OnlyOn) -> bool {
        let is_primary = self.role.borrow_and_update().is_primary;
        on == OnlyOn::Any || is_primary
    }

    /// Waits until the program may run; a code where the node shall end instead.
    async fn turn(&mut self) -> Result<Option<i32>, NodeError> {
        let mut said = false;
        while !self.may_run(self.exec.only_on) {
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

    /// Waits until `exec.before` has been done for this release, by the primary: `Itself(0)` then, another code where it
    /// has failed here.
    async fn prepare(&mut self, user: Option<&RunAs>) -> Result<Ended, NodeError> {
        let (preparing, mut said) = (self.running.preparing().clone(), String::new());
        while !preparing.now().done {
            if self.may_run(OnlyOn::Primary) {
                let _stays_primary = preparing.begin();
                let release = &self.exec.release;
                tracing::info!(release, "running exec.before");
                let words = ["/bin/sh", "-c", &self.exec.before].map(ToOwned::to_owned);
                let mut child = Supervised::spawn(&words, user).await?;
                match self.watch(&mut child, OnlyOn::Primary).await? {
                    Ended::Itself(0) => preparing.done(),
                    Ended::Demoted => {}
                    ended => return Ok(ended),
                }
                continue;
            }
            let asked = tokio::select! {
                asked = preparing.ask(self.running.control()) => asked,
                () = changed(&mut self.role) => continue,
                signal = self.signals.next_end() => return Ok(Ended::Node(told(signal))),
                Some(failure) = self.running.failures.recv() => return Err(failure),
            };
            if let Err(why) = asked {
                if why != said {
                    tracing::info!("the command waits: {why}");
                    said = why;
                }
                if let Some(code) = self.pause(ASK_AGAIN).await? {
                    return Ok(Ended::Node(code));
                }
            }
        }
        Ok(Ended::Itself(0))
    }

    /// Watches over the program while it runs; it is stopped where it may not run any more.
    async fn watch(&mut self, child: &mut Supervised, on: OnlyOn) -> Result<Ended, NodeError> {
        loop {
            if !self.may_run(on) {
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
