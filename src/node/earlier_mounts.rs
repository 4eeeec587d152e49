//! Applications that still use the mount of an earlier run: what a start does about them, and when it is over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;

use super::{NodeError, NodeIdentity, blocking};
use crate::config::StaleMountMode;
use crate::mount::{EarlierMounts, Held, stale_mount};
use crate::store::{Layout, Store};

/// How long a start waits for applications that have to close what they have open: those that wait for a lock there give up
/// soon.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// How long it waits for them where it could go on without: a database that is closed need not be copied.
const SERVE_AFTER: Duration = Duration::from_millis(500);
/// How long an application has between SIGTERM and SIGKILL.
const KILL_AFTER: Duration = Duration::from_secs(5);
/// Between two looks at who uses a mount: nothing tells.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The same while the node runs.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// What a start goes on beside.
pub(super) struct Beside {
    mounts: EarlierMounts,
    held: Held,
}

/// How often a process was told to end.
#[derive(Default)]
struct Told(BTreeMap<i32, Signal>);

/// Deals with the applications of earlier mounts until the node can start: locks of a dead mount are invisible to a new
/// one, so that nobody may have a database through both.
///
/// # Errors
/// Where they are still there and the node cannot go on beside them; names them.
pub(super) async fn settle(
    identity: &NodeIdentity,
    layout: &Layout,
    mode: StaleMountMode,
) -> Result<Beside, NodeError> {
    let begun = Instant::now();
    let (mut said, mut told) = (false, Told::default());
    let mut mounts = read(layout)?;
    loop {
        let looked;
        (mounts, looked) = look(mounts, identity).await?;
        let (held, unknown) = looked;
        if held.pids.is_empty() && unknown.is_empty() {
            return Ok(Beside { mounts, held });
        }
        let waited = begun.elapsed();
        let obstacle = obstacle(&held, &unknown);
        if mode == StaleMountMode::Serve && waited >= SERVE_AFTER && obstacle.is_none() {
            tell(&held);
            return Ok(Beside { mounts, held });
        }
        let pids: BTreeSet<i32> = held.pids.union(&unknown).copied().collect();
        if waited >= WAIT_MAX {
            let obstacle = obstacle.filter(|_| mode == StaleMountMode::Serve);
            return Err(refusal(identity, &pids, obstacle));
        }
        if mode == StaleMountMode::Kill {
            told.end(&pids, waited);
        }
        if !said {
            tracing::warn!(pids = %list(&pids), "waiting for processes that use the mount of this node's last run");
            said = true;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn read(layout: &Layout) -> Result<EarlierMounts, NodeError> {
    let dir = layout.mounts();
    EarlierMounts::read(&dir)
        .map_err(|error| NodeError::Data { path: dir, why: format!("cannot be read: {error}") })
}

/// Who uses mounts of earlier runs: those that left a note, and the last one where it left none.
async fn look(
    mut mounts: EarlierMounts,
    identity: &NodeIdentity,
) -> Result<(EarlierMounts, (Held, BTreeSet<i32>)), NodeError> {
    let last = identity.last_mount.clone().zip(Some(identity.last_mark.clone()));
    blocking(move || {
        let noted = last.as_ref().and_then(|(_, mark)| mark.as_ref()).is_some_and(|mark| mounts.knows(mark));
        let held = mounts.look();
        let unknown = last.filter(|_| !noted).and_then(|((connection, mount_point), mark)| {
            stale_mount(connection, &mount_point, mark.as_ref())
        });
        (mounts, (held, unknown.map(|stale| stale.pids.into_iter().collect()).unwrap_or_default()))
    })
    .await
}

/// Why the node cannot go on beside these applications.
fn obstacle(held: &Held, unknown: &BTreeSet<i32>) -> Option<String> {
    let unnoted = "the last run left no note of which databases they have open";
    held.unfenced.clone().or((!unknown.is_empty()).then(|| unnoted.to_owned()))
}

fn refusal(identity: &NodeIdentity, pids: &BTreeSet<i32>, obstacle: Option<String>) -> NodeError {
    let because = obstacle.map(|why| format!(" ({why})")).unwrap_or_default();
    NodeError::Mount {
        path: identity.last_mount.clone().map(|(_, at)| at).unwrap_or_default(),
        why: format!(
            "the mount of this node's last run is still used by processes with pid {}{because}: end them, then start again",
            list(pids)
        ),
    }
}

fn tell(held: &Held) {
    for (db, pids) in &held.databases {
        tracing::warn!(
            %db, pids = %list(pids),
            "open through the mount of this node's last run: nobody can open it on this node until they have closed it"
        );
    }
}

fn list(pids: &BTreeSet<i32>) -> String {
    let pids: Vec<_> = pids.iter().map(ToString::to_string).collect();
    pids.join(", ")
}

impl Told {
    /// Tells processes to end, once with each signal.
    fn end(&mut self, pids: &BTreeSet<i32>, waited: Duration) {
        let signal = if waited >= KILL_AFTER { Signal::SIGKILL } else { Signal::SIGTERM };
        for &pid in pids {
            if self.0.insert(pid, signal) != Some(signal) {
                tracing::warn!(pid, %signal, "ending a process that uses the mount of this node's last run");
                if let Err(error) = kill(Pid::from_raw(pid), signal) {
                    tracing::debug!(pid, %error, "it is gone, or another user's");
                }
            }
        }
    }
}

impl Beside {
    /// The inodes of the database files that applications keep.
    pub(super) fn held_files(&self) -> BTreeSet<u64> {
        self.held.files.clone()
    }

    /// Keeps applications from what is held: from now on, and by the task that is returned until it is closed.
    pub(super) fn keep_out(
        self,
        store: Arc<Store>,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + Send {
        store.set_held(self.held.databases);
        watch(self.mounts, self.held.pids, store, shutdown)
    }
}

/// Looks again and again what is still held, until nothing is.
async fn watch(
    mut mounts: EarlierMounts,
    mut pids: BTreeSet<i32>,
    store: Arc<Store>,
    shutdown: CancellationToken,
) {
    let mut fenced = true;
    while !pids.is_empty() {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(WATCH_EVERY) => {}
        }
        let looking = blocking(move || {
            let held = mounts.look();
            (mounts, held)
        });
        let now = match looking.await {
            Ok((same, now)) => {
                mounts = same;
                now
            }
            Err(error) => return tracing::error!(%error, "what is held stays so until the next start"),
        };
        if let (Some(why), true) = (&now.unfenced, fenced) {
            tracing::error!(pids = %list(&now.pids), "commits of these processes with synchronous NORMAL or OFF count for nothing: {why}");
            fenced = false;
        }
        pids = now.pids;
        for db in store.set_held(now.databases) {
            tracing::info!(%db, "closed by all applications of the last run: it can be opened again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_once_to_end_and_killed_once_where_it_does_not() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "trap '' TERM; echo ready; while :; do sleep 60; done"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut ready).unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let mut told = Told::default();
        told.end(&BTreeSet::from([pid]), Duration::ZERO);
        assert_eq!(told.0[&pid], Signal::SIGTERM);
        assert!(child.try_wait().unwrap().is_none());
        told.end(&BTreeSet::from([pid]), KILL_AFTER);
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }

    #[test]
    fn what_cannot_be_served_beside_is_told_with_its_reason() {
        let pids = BTreeSet::from([12, 7]);
        let fenced = Held { pids: pids.clone(), ..Held::default() };
        assert_eq!(obstacle(&fenced, &BTreeSet::new()), None);
        assert!(obstacle(&fenced, &pids).unwrap().contains("left no note"));
        let unfenced = Held { unfenced: Some("nobody guards".into()), ..fenced };
        assert_eq!(obstacle(&unfenced, &pids).as_deref(), Some("nobody guards"));
        let identity = NodeIdentity::draw("n1".parse().unwrap(), crate::types::Role::Voter).unwrap();
        let text = refusal(&identity, &pids, Some("nobody guards".into())).to_string();
        assert!(text.contains("pid 7, 12 (nobody guards): end them"), "{text}");
    }
}
