use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::fetch::fetch_blob;
use super::identity::{ClusterId, PROTOCOL_VERSION, check_version};
use super::lanes::{Lanes, Outcome, Request};
use super::resync::{resync_all, resync_database};
use super::{
    FollowOptions, FollowStatus, Frame, Hello, PrimaryView, RecentLog, ReplicaTarget, StreamError, Upstream,
};
use crate::io::log_rate_limit;
use crate::ltx::BlobRef;
use crate::store::Change;
use crate::types::{LogIndex, Role};

/// What all connections of one follower share.
pub(super) struct Shared {
    pub(super) options: FollowOptions,
    pub(super) target: Arc<dyn ReplicaTarget>,
    pub(super) lanes: Arc<Lanes>,
    pub(super) recent: Arc<RecentLog>,
    pub(super) status: watch::Sender<FollowStatus>,
    pub(super) view: watch::Sender<PrimaryView>,
    pub(super) ready: watch::Sender<bool>,
    pub(super) acks: watch::Sender<LogIndex>,
    pub(super) shutdown: CancellationToken,
}

/// One connection to an upstream node, from the greeting to its end.
pub(super) struct Session<'a> {
    shared: &'a Shared,
    upstream: Arc<dyn Upstream>,
    upstream_applied: LogIndex,
    rooted: bool,
    tasks: JoinSet<(Option<BlobRef>, Outcome)>,
    fetching: HashMap<BlobRef, Vec<oneshot::Sender<Outcome>>>,
    fetches: Arc<Semaphore>,
}

/// Silence after which an upstream node counts as lost; it sends something four times a second.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Blobs fetched at a time.
const FETCHES_MAX: usize = 4;

/// Follows `upstream` until it fails, refuses, or this node ends.
pub(super) async fn follow_upstream(
    shared: &Shared,
    cluster: &mut Option<ClusterId>,
    upstream: Arc<dyn Upstream>,
    addr: &str,
    requests: &mut mpsc::UnboundedReceiver<Request>,
) -> Result<(), StreamError> {
    let identity = tokio::time::timeout(SILENCE_MAX, upstream.identify())
        .await
        .map_err(|_| StreamError::Unavailable(format!("{addr} did not answer in time")))??;
    check_version(identity.protocol_version)?;
    if identity.node == shared.options.node {
        return Err(StreamError::Invalid(format!("{addr} is this node itself")));
    }
    let cluster = match cluster {
        Some(ours) if *ours != identity.cluster => {
            let (ours, theirs) = (ours.to_string(), identity.cluster.to_string());
            return Err(StreamError::ForeignCluster { ours, theirs });
        }
        Some(ours) => ours.clone(),
        None => {
            (shared.options.adopt)(&identity.cluster)
                .map_err(|source| StreamError::Io { what: "storing the cluster's id".into(), source })?;
            cluster.insert(identity.cluster.clone()).clone()
        }
    };
    let mut session = Session {
        shared,
        upstream,
        upstream_applied: LogIndex::ZERO,
        rooted: false,
        tasks: JoinSet::new(),
        fetching: HashMap::new(),
        fetches: Arc::new(Semaphore::new(FETCHES_MAX)),
    };
    loop {
        match session.run(&cluster, &identity, addr, requests).await {
            Err(StreamError::Purged { from, first }) => {
                tracing::info!(%from, %first, upstream = addr, "too far behind; fetching the difference of every database");
                session.catch_up().await?;
            }
            ended => return ended,
        }
    }
}

type Frames = BoxStream<'static, Result<Frame, StreamError>>;

impl Session<'_> {
    async fn run(
        &mut self,
        cluster: &ClusterId,
        identity: &super::PeerIdentity,
        addr: &str,
        requests: &mut mpsc::UnboundedReceiver<Request>,
    ) -> Result<(), StreamError> {
        let hello = Hello {
            cluster: cluster.clone(),
            protocol_version: PROTOCOL_VERSION,
            node: self.shared.options.node,
            name: self.shared.options.name.clone(),
            addr: self.shared.options.advertise.clone(),
            from: self.shared.lanes.cursor().next(),
            globs: self.shared.options.globs.clone(),
        };
        let mut frames = self.upstream.follow(hello, self.shared.acks.subscribe()).await?;
        let shutdown = self.shared.shutdown.clone();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                // Before the frames: these are rare, and must not starve while entries pour in.
                Some(request) = requests.recv() => self.start(request),
                Some(ended) = self.tasks.join_next() => self.answer(ended),
                frame = next_frame(&mut frames) => self.handle(frame?, identity, addr)?,
            }
        }
    }

    fn handle(
        &mut self,
        frame: Frame,
        identity: &super::PeerIdentity,
        addr: &str,
    ) -> Result<(), StreamError> {
        if let Some(heartbeat) = &frame.heartbeat {
            if heartbeat.view.path.contains(&self.shared.options.node) {
                return Err(StreamError::Unavailable(format!("{addr} follows this node")));
            }
            // A replica that follows nobody is no measure of being caught up.
            self.rooted = identity.role == Role::Voter || !heartbeat.view.path.is_empty();
            let mut view = heartbeat.view.clone();
            view.path.insert(0, identity.node);
            self.learn(view);
            self.remove_given_up();
        }
        self.upstream_applied = self.upstream_applied.max(frame.applied);
        let (applied, last) = (self.upstream_applied, frame.entries.last().map(|(index, _)| *index));
        for (index, entry) in frame.entries {
            self.take(index, entry)?;
        }
        self.shared.status.send_modify(|status| {
            if !status.connected {
                tracing::info!(upstream = addr, from = %status.applied, "following");
            }
            status.connected = true;
            status.upstream = Some(addr.to_owned());
            status.last_error = None;
            status.refused = None;
            status.upstream_applied = applied.max(last.unwrap_or_default());
            status.rooted = self.rooted;
            status.compare();
        });
        if self.shared.status.borrow().synced {
            self.shared.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
        }
        Ok(())
    }

    /// Removes large change sets that are in the databases and that nobody who follows this node can ask for.
    fn remove_given_up(&self) {
        for blob in self.shared.recent.take_given_up(self.shared.target.durable_index()) {
            if let Err(error) = self.shared.target.remove_blob(blob) {
                tracing::warn!(%blob, %error, "cannot remove a large change set");
            }
        }
    }

    fn take(&mut self, index: LogIndex, entry: Bytes) -> Result<(), StreamError> {
        let expected = self.shared.lanes.cursor().next();
        if index != expected {
            return Err(StreamError::Invalid(format!("entry {index} where {expected} was due")));
        }
        let change = if entry.is_empty() {
            None
        } else {
            let change = Change::decode(entry.clone());
            Some(change.map_err(|error| StreamError::Invalid(format!("entry {index}: {error}")))?)
        };
        for blob in self.shared.lanes.take(index, entry, change) {
            self.fetch(blob, None);
        }
        Ok(())
    }

    fn learn(&self, view: PrimaryView) {
        self.shared.status.send_if_modified(|status| {
            if status.view == view {
                return false;
            }
            if status.view.primary != view.primary {
                self.shared.target.set_primary(view.primary.clone());
            }
            self.shared.view.send_replace(view.clone());
            status.view = view;
            true
        });
    }

    /// Brings every database in step by difference, because the entries in between are gone upstream.
    async fn catch_up(&mut self) -> Result<(), StreamError> {
        let shared = self.shared;
        shared.ready.send_replace(false);
        shared.lanes.clear();
        let resync = resync_all(
            self.upstream.clone(),
            shared.target.clone(),
            &shared.options.globs,
            shared.lanes.cursor(),
        );
        let applied = tokio::select! {
            () = shared.shutdown.cancelled() => return Err(StreamError::ShuttingDown),
            applied = resync => applied?,
        };
        shared.lanes.restart(applied);
        // Ready again with the first frame that shows this node to be in step.
        shared.status.send_modify(|status| status.synced = false);
        Ok(())
    }

    fn start(&mut self, request: Request) {
        match request {
            Request::Blob { blob, reply } => self.fetch(blob, Some(reply)),
            Request::Resync { at, reply, .. } if self.upstream_applied < at => {
                let _ = reply.send(Outcome::Retry(format!("the upstream node has not reached entry {at}")));
            }
            Request::Resync { db, reply, .. } => {
                let resync = resync_database(self.upstream.clone(), self.shared.target.clone(), db.clone());
                self.tasks.spawn(async move {
                    let outcome = outcome(resync.await.map(|_| ()), db.as_str());
                    let _ = reply.send(outcome.clone());
                    (None, outcome)
                });
            }
        }
    }

    fn fetch(&mut self, blob: BlobRef, reply: Option<oneshot::Sender<Outcome>>) {
        if self.shared.target.contains_blob(blob) {
            self.shared.lanes.blob_arrived(blob);
            if let Some(reply) = reply {
                let _ = reply.send(Outcome::Done);
            }
            return;
        }
        let new = !self.fetching.contains_key(&blob);
        self.fetching.entry(blob).or_default().extend(reply);
        if new {
            let (upstream, target) = (self.upstream.clone(), self.shared.target.clone());
            let fetches = self.fetches.clone();
            self.tasks.spawn(async move {
                let _permit = fetches.acquire_owned().await;
                (Some(blob), outcome(fetch_blob(upstream, target, blob).await, "blob"))
            });
        }
    }

    fn answer(&mut self, ended: Result<(Option<BlobRef>, Outcome), tokio::task::JoinError>) {
        let Ok((blob, outcome)) = ended else {
            // Which one is not known: whoever waits hears nothing more, and asks again.
            return self.fetching.clear();
        };
        let Some(blob) = blob else { return };
        if outcome == Outcome::Done {
            self.shared.lanes.blob_arrived(blob);
        }
        for reply in self.fetching.remove(&blob).unwrap_or_default() {
            let _ = reply.send(outcome.clone());
        }
    }
}

pub(super) fn outcome(result: Result<(), StreamError>, what: &str) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(StreamError::NotFound(_)) => Outcome::NotFound,
        Err(error) => {
            // Tried again some ten times a second.
            if let Some(suppressed) = log_rate_limit::due((what, error.to_string())) {
                tracing::warn!(suppressed, "fetching {what}: {error}; trying again");
            }
            Outcome::Retry(error.to_string())
        }
    }
}

async fn next_frame(frames: &mut Frames) -> Result<Frame, StreamError> {
    match tokio::time::timeout(SILENCE_MAX, frames.next()).await {
        Ok(Some(frame)) => frame,
        Ok(None) => Err(StreamError::Unavailable("the upstream node ended the stream".into())),
        Err(_) => Err(StreamError::Unavailable(format!("the upstream node was silent for {SILENCE_MAX:?}"))),
    }
}
