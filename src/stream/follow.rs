use std::io;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::lanes::{LaneParts, Lanes, Request};
use super::session::{Shared, follow_upstream};
use super::{Connector, FollowOptions, FollowStatus, PrimaryView, RecentLog, ReplicaTarget, StreamError};
use crate::store::{Member, Standing};
use crate::types::{DbName, NodeName, Role};

/// A replica's side of the stream: keeps the databases of this node in step with a cluster's.
///
/// Runs on a thread of its own (`skein-follow`), so that an entry is applied on the thread that receives it.
pub struct Follower {
    name: NodeName,
    advertise: String,
    status: watch::Receiver<FollowStatus>,
    view: watch::Receiver<PrimaryView>,
    ready: watch::Receiver<bool>,
    recent: Arc<RecentLog>,
    lanes: Arc<Lanes>,
    shutdown: CancellationToken,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Follower {
    /// How long an upstream node has to accept a connection and to answer its first question.
    const CONNECT_MAX: Duration = Duration::from_secs(5);

    /// Starts to follow; goes on until `shutdown`, connecting again whenever a connection breaks.
    ///
    /// # Errors
    /// Where the thread or its runtime cannot be started.
    pub fn start(
        options: FollowOptions,
        target: Arc<dyn ReplicaTarget>,
        connector: Arc<dyn Connector>,
        shutdown: CancellationToken,
    ) -> io::Result<Self> {
        // Behind the durable index the databases are not sure to be complete: entries are taken again from there.
        let start = target.durable_index();
        let first = FollowStatus { applied: start, synced: false, ..FollowStatus::default() };
        let (status, view, ready, acks) = (
            watch::Sender::new(first),
            watch::Sender::default(),
            watch::Sender::new(false),
            watch::Sender::new(start),
        );
        let recent = Arc::new(RecentLog::new(start, options.recent_bytes_max));
        let (requests, requested) = mpsc::unbounded_channel();
        let parts = LaneParts {
            target: target.clone(),
            globs: options.globs.clone(),
            log: recent.clone(),
            status: status.clone(),
            acks: acks.clone(),
            requests,
            bytes_max: options.queue_bytes_max,
        };
        let lanes = Lanes::new(parts, start);
        let follower = Self {
            name: options.name.clone(),
            advertise: options.advertise.clone(),
            status: status.subscribe(),
            view: view.subscribe(),
            ready: ready.subscribe(),
            recent,
            lanes: lanes.clone(),
            shutdown: shutdown.clone(),
            thread: Mutex::new(None),
        };
        let recent = follower.recent.clone();
        let shared = Shared { options, target, lanes, recent, status, view, ready, acks, shutdown };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("skein-follow".into()).spawn(move || {
            runtime.block_on(run(&shared, &*connector, requested));
            shared.lanes.stop();
            // An application of an entry that waits for a reader must not hold up the end.
            runtime.shutdown_background();
        })?;
        *follower.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(thread);
        Ok(follower)
    }

    /// How this node stands to its upstream node, as it changes.
    pub fn status(&self) -> watch::Receiver<FollowStatus> {
        self.status.clone()
    }

    /// The primary as heard of, to be told to nodes that follow this one.
    pub fn view(&self) -> watch::Receiver<PrimaryView> {
        self.view.clone()
    }

    /// Whether the databases here are a consistent set that others may copy.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    /// The entries to be shipped to nodes that follow this one.
    pub fn recent(&self) -> Arc<RecentLog> {
        self.recent.clone()
    }

    /// Waits until this node has everything for the first time since it started.
    ///
    /// # Errors
    /// Where every upstream node refuses this one for good, or this node ends.
    pub async fn wait_synced(&self) -> Result<(), Arc<StreamError>> {
        let mut status = self.status.clone();
        let settled = status.wait_for(|status| status.synced || status.refused.is_some()).await;
        match settled.map(|status| (status.synced, status.refused.clone())) {
            Ok((true, _)) => Ok(()),
            Ok((false, Some(refused))) => Err(refused),
            Ok((false, None)) | Err(_) => Err(Arc::new(StreamError::ShuttingDown)),
        }
    }

    /// The cluster as this replica sees it: the primary and itself.
    pub fn members(&self) -> Vec<Member> {
        let status = self.status.borrow();
        let primary = status.view.primary.as_ref().and_then(|primary| {
            let name = primary.name.parse().ok()?;
            let (addr, healthy) = (primary.addr.clone(), status.connected);
            let (lag, standing) = (Some(Duration::ZERO), Standing::Votes);
            Some(Member { name, role: Role::Voter, addr, healthy, lag, lag_entries: 0, standing })
        });
        let this = Member {
            name: self.name.clone(),
            role: Role::Replica,
            addr: self.advertise.clone(),
            healthy: status.connected,
            lag: status.lag(),
            lag_entries: status.lag_entries(),
            standing: Standing::Follows,
        };
        primary.into_iter().chain([this]).collect()
    }

    /// Fetches what differs from the upstream node's copy of a database; until then entries of it wait.
    pub fn repair(&self, db: &DbName) {
        self.lanes.repair(db);
    }

    /// Ends following and waits for the thread. Blocking.
    pub fn stop(&self) {
        self.shutdown.cancel();
        let thread = self.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread that followed the cluster panicked");
        }
    }
}

/// Goes from upstream node to upstream node until the end.
async fn run(shared: &Shared, connector: &dyn Connector, mut requests: mpsc::UnboundedReceiver<Request>) {
    let mut cluster = shared.options.cluster.clone();
    let mut backoff = Backoff::new();
    while !shared.shutdown.is_cancelled() {
        let mut refusals = Vec::new();
        let mut followed = false;
        for addr in candidates(shared) {
            let connected = async {
                let connect = async {
                    let upstream = connector.connect(&addr).await?;
                    Ok::<_, StreamError>(upstream)
                };
                let timed_out = |_| StreamError::Unavailable(format!("{addr} did not answer in time"));
                let upstream =
                    tokio::time::timeout(Follower::CONNECT_MAX, connect).await.map_err(timed_out)??;
                follow_upstream(shared, &mut cluster, upstream, &addr, &mut requests).await
            };
            let ended = tokio::select! {
                biased;
                () = shared.shutdown.cancelled() => return,
                ended = connected => ended,
            };
            let was_connected = shared.status.borrow().connected;
            followed |= was_connected;
            if let Err(error) = ended {
                give_up(shared, &addr, &error);
                if error.is_refusal() {
                    refusals.push(error);
                }
            }
            if was_connected {
                // The same one first: most breaks are short.
                break;
            }
        }
        if followed {
            backoff.reset();
        } else if shared.status.borrow().view.primary.is_some() {
            // Nobody could be reached: who is primary is no longer known.
            shared.target.set_primary(None);
            shared.status.send_modify(|status| status.view.primary = None);
            shared.view.send_modify(|view| view.primary = None);
        }
        if !refusals.is_empty() && refusals.len() >= shared.options.upstreams.len() {
            let refused = refusals.pop().map(Arc::new);
            shared.status.send_modify(|status| status.refused = refused);
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => {}
            () = tokio::time::sleep(backoff.next()) => {}
        }
    }
}

fn give_up(shared: &Shared, addr: &str, error: &StreamError) {
    let text = error.to_string();
    shared.view.send_modify(|view| view.path.clear());
    shared.status.send_modify(|status| {
        // Said once, not at every attempt.
        if status.connected || status.last_error.as_deref() != Some(&text) {
            tracing::warn!(upstream = addr, "{text}");
        }
        status.connected = false;
        status.view.path.clear();
        status.last_error = Some(text);
    });
}

/// The last upstream node, those configured, the primary last heard of, and the other voters.
fn candidates(shared: &Shared) -> Vec<String> {
    let status = shared.status.borrow();
    let primary = status.view.primary.as_ref().map(|primary| primary.addr.clone());
    let mut candidates: Vec<String> = Vec::new();
    let configured = shared.options.upstreams.iter().cloned();
    let voters = status.view.voters.iter().cloned();
    for addr in status.upstream.iter().cloned().chain(configured).chain(primary).chain(voters) {
        if !addr.is_empty() && !candidates.contains(&addr) {
            candidates.push(addr);
        }
    }
    candidates
}
