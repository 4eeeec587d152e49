//! The operator's command that hears of every change of the node's role.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::current_role::CurrentRole;
use super::systemd;
use crate::types::NodeName;

/// How long one run may take before it is killed: the next change waits for it.
const RUN_MAX: Duration = Duration::from_secs(30);

/// Runs the command at once and after every change, one at a time, until `shutdown`; of changes during a run only the
/// last one is told.
pub(super) async fn run_hooks(
    command: String,
    node: NodeName,
    mut roles: watch::Receiver<CurrentRole>,
    shutdown: CancellationToken,
) {
    loop {
        let now = roles.borrow_and_update().clone();
        tokio::select! {
            () = run(&command, &node, &now) => {}
            () = shutdown.cancelled() => return,
        }
        tokio::select! {
            changed = roles.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

async fn run(command: &str, node: &NodeName, now: &CurrentRole) {
    let primary = now.primary.as_ref();
    let mut shell = Command::new("/bin/sh");
    systemd::hide_from(&mut shell);
    shell
        .args(["-c", command])
        .env("SKEIN_EVENT_NODE", node.as_str())
        .env("SKEIN_EVENT_ROLE", if now.is_primary { "primary" } else { "replica" })
        .env("SKEIN_EVENT_PRIMARY", primary.map_or("", |primary| &primary.name))
        .env("SKEIN_EVENT_PRIMARY_HTTP", primary.map_or("", |primary| &primary.http))
        .env("SKEIN_EVENT_TERM", now.term.to_string())
        .stdin(Stdio::null())
        // The node's own stdout has one line, for whoever starts it.
        .stdout(Stdio::null())
        .kill_on_drop(true);
    match tokio::time::timeout(RUN_MAX, shell.status()).await {
        Ok(Ok(status)) if status.success() => {}
        Ok(Ok(status)) => tracing::warn!(%status, "the command for a change of role failed"),
        Ok(Err(error)) => tracing::warn!(%error, "the command for a change of role cannot be run"),
        Err(_) => tracing::warn!("the command for a change of role took longer than {RUN_MAX:?}; killed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::PrimaryInfo;

    #[tokio::test]
    async fn the_command_hears_of_the_role_now_and_of_every_change() {
        let dir = tempfile::tempdir().unwrap();
        let heard = dir.path().join("heard");
        let words = "$SKEIN_EVENT_NODE $SKEIN_EVENT_ROLE [$SKEIN_EVENT_PRIMARY] $SKEIN_EVENT_TERM";
        let command = format!("echo \"{words}\" >> {}", heard.display());
        let role = watch::Sender::new(CurrentRole::default());
        let shutdown = CancellationToken::new();
        let task =
            tokio::spawn(run_hooks(command, "n1".parse().unwrap(), role.subscribe(), shutdown.clone()));
        let lines = async |count: usize| {
            for _ in 0..3000 {
                let text = std::fs::read_to_string(&heard).unwrap_or_default();
                if text.lines().count() >= count {
                    return text;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("the command did not run {count} times");
        };
        assert_eq!(lines(1).await, "n1 replica [] 0\n");
        let (name, addr, http) = ("n1".to_owned(), String::new(), String::new());
        role.send_replace(CurrentRole {
            is_primary: true,
            primary: Some(PrimaryInfo { name, addr, http }),
            term: 3,
        });
        assert_eq!(lines(2).await, "n1 replica [] 0\nn1 primary [n1] 3\n");
        shutdown.cancel();
        task.await.unwrap();
    }
}
