use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::followers::{Followers, Ticket};
use super::identity::check_version;
use super::{
    CHUNK_BYTES, Frame, Globs, Heartbeat, Hello, Listing, PeerIdentity, PrimaryView, SnapshotSource,
    StreamError,
};
use crate::store::{Change, ChangeKind, CommittedLog, Member};
use crate::types::{LogIndex, NodeName};

/// What a node ships to followers, and who they are.
pub struct Serving {
    identity: PeerIdentity,
    log: Arc<dyn CommittedLog>,
    source: Arc<dyn SnapshotSource>,
    view: watch::Receiver<PrimaryView>,
    ready: watch::Receiver<bool>,
    shutdown: CancellationToken,
    followers: Arc<Followers>,
    copies: Arc<Semaphore>,
    members: OnceLock<NamesTaken>,
    removed: OnceLock<watch::Receiver<Option<String>>>,
}

/// Whether a node that answers, and is another one than that at `addr`, has a name.
pub type NamesTaken = Box<dyn Fn(&NodeName, &str) -> bool + Send + Sync>;

impl Serving {
    /// A sign of life is sent when nothing else was for this long.
    pub const HEARTBEAT: Duration = Duration::from_millis(250);
    /// So much log is sent to a follower without asking whether what differs would be less, in bytes.
    const LOG_BYTES_ALWAYS: u64 = 8 << 20;
    /// Snapshots and blobs under way at a time.
    const COPIES_MAX: usize = 64;
    /// Backlogs above this many entries are read off the runtime's threads.
    const INLINE_BACKLOG: u64 = 256;

    /// Ships `log` and copies of `source`. While `ready` is false the databases here are not a consistent set (a
    /// snapshot is being installed), so no copy is given. Ends followers' streams at `shutdown`.
    pub fn new(
        identity: PeerIdentity,
        log: Arc<dyn CommittedLog>,
        source: Arc<dyn SnapshotSource>,
        view: watch::Receiver<PrimaryView>,
        ready: watch::Receiver<bool>,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let (followers, copies) = (Arc::default(), Arc::new(Semaphore::new(Self::COPIES_MAX)));
        let (members, removed) = (OnceLock::new(), OnceLock::new());
        Arc::new(Self { identity, log, source, view, ready, shutdown, followers, copies, members, removed })
    }

    /// Connects who knows the names of nodes that do not follow this one.
    pub fn set_names_taken(&self, taken: NamesTaken) {
        // Connected once, at the start.
        let _ = self.members.set(taken);
    }

    fn is_taken_elsewhere(&self, hello: &Hello) -> bool {
        hello.name == self.identity.name
            || self.members.get().is_some_and(|taken| taken(&hello.name, &hello.addr))
    }

    /// Who this node is.
    pub fn identity(&self) -> &PeerIdentity {
        &self.identity
    }

    /// Where copies come from.
    pub fn source(&self) -> &Arc<dyn SnapshotSource> {
        &self.source
    }

    /// Limits the copies under way.
    pub fn copies(&self) -> &Arc<Semaphore> {
        &self.copies
    }

    /// The nodes that follow this one, as `skein status` shows them.
    pub fn members(&self) -> Vec<Member> {
        self.followers.members(*self.log.applied().borrow())
    }

    /// The followers themselves.
    pub fn followers(&self) -> &Arc<Followers> {
        &self.followers
    }

    /// The databases here. Blocking.
    ///
    /// # Errors
    /// [`StreamError::Unavailable`] while this node is itself being brought up.
    pub fn list(&self, globs: &Globs) -> Result<Listing, StreamError> {
        self.check_ready()?;
        // The index first: what is listed afterwards is at least as new.
        let applied = self.source.applied_index();
        let databases = self.source.list().into_iter().filter(|db| globs.matches(&db.name)).collect();
        let mut names = self.source.names();
        names.names.retain(|(path, _)| globs.wants(path));
        Ok(Listing { applied, databases, names: Some(names) })
    }

    /// Connects who knows whether this node was removed from the cluster, and how it is let in again. It hears nothing
    /// of the cluster then, so its followers have to follow another node.
    pub fn set_removed(&self, removed: watch::Receiver<Option<String>>) {
        // Connected once, at the start.
        let _ = self.removed.set(removed);
    }

    /// Returns when this node was removed from the cluster.
    async fn removal(&self) {
        if let Some(removed) = self.removed.get()
            && removed.clone().wait_for(Option::is_some).await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    fn no_member(&self) -> StreamError {
        let name = &self.identity.name;
        StreamError::Unavailable(format!("node {name} was removed from the cluster; follow another one"))
    }

    /// Refuses copies while the databases here are not a consistent set.
    ///
    /// # Errors
    /// [`StreamError::Unavailable`] then.
    pub fn check_ready(&self) -> Result<(), StreamError> {
        if *self.ready.borrow() {
            Ok(())
        } else {
            Err(StreamError::Unavailable(format!("node {} is itself catching up", self.identity.name)))
        }
    }

    /// Starts shipping to a follower.
    ///
    /// # Errors
    /// Where the follower is of another cluster, speaks an unknown wire, is this node itself, or asks for entries
    /// that are gone.
    pub fn follow(self: &Arc<Self>, hello: Hello) -> Result<FollowSession, StreamError> {
        check_version(hello.protocol_version)?;
        if hello.cluster != self.identity.cluster {
            return Err(StreamError::ForeignCluster {
                ours: self.identity.cluster.to_string(),
                theirs: hello.cluster.to_string(),
            });
        }
        if hello.node == self.identity.node {
            return Err(StreamError::Invalid("a node cannot follow itself".into()));
        }
        if self.removed.get().is_some_and(|removed| removed.borrow().is_some()) {
            return Err(self.no_member());
        }
        let from = LogIndex::new(hello.from.get().max(1));
        let first = self.log.first_index();
        if from < first {
            return Err(StreamError::Purged { from, first });
        }
        if self.followers.is_taken(&hello.name, hello.node) || self.is_taken_elsewhere(&hello) {
            return Err(StreamError::Unavailable(format!(
                "another node of this cluster has the name {}: give this one its own --name",
                hello.name
            )));
        }
        let ticket = self.followers.join(hello.node, hello.name, hello.addr, from);
        Ok(FollowSession {
            applied: self.log.applied(),
            view: self.view.clone(),
            serving: self.clone(),
            next: from,
            globs: hello.globs,
            ticket: Arc::new(ticket),
            greeted: false,
            compared: false,
        })
    }
}

/// One follower's stream.
pub struct FollowSession {
    serving: Arc<Serving>,
    applied: watch::Receiver<LogIndex>,
    view: watch::Receiver<PrimaryView>,
    next: LogIndex,
    globs: Globs,
    ticket: Arc<Ticket>,
    greeted: bool,
    /// Whether it was found out what is less to send: the log or what differs.
    compared: bool,
}

impl FollowSession {
    /// Notes positions the follower tells; the function works for as long as the session lives.
    pub fn acknowledge(&self) -> impl Fn(LogIndex) + Send + 'static {
        let ticket = Arc::downgrade(&self.ticket);
        move |index| {
            if let Some(ticket) = ticket.upgrade() {
                ticket.acked(index);
            }
        }
    }

    /// The next message: as soon as entries are applied here, or after [`Serving::HEARTBEAT`] of silence. `None`
    /// when this node shuts down.
    pub async fn next(&mut self) -> Option<Result<Frame, StreamError>> {
        if !self.greeted {
            // At once, so that the follower learns how far it is behind.
            self.greeted = true;
            return Some(Ok(self.heartbeat()));
        }
        if !self.compared {
            self.compared = true;
            if let Some(purged) = self.too_far_behind().await {
                return Some(Err(purged));
            }
        }
        let silence = tokio::time::sleep(Serving::HEARTBEAT);
        tokio::pin!(silence);
        loop {
            let first = self.serving.log.first_index();
            if self.next < first {
                return Some(Err(StreamError::Purged { from: self.next, first }));
            }
            let applied = *self.applied.borrow_and_update();
            if applied >= self.next {
                match self.read(applied).await {
                    Ok(entries) if entries.is_empty() => {}
                    Ok(entries) => return Some(Ok(Frame { entries, applied, heartbeat: None })),
                    Err(error) => return Some(Err(error)),
                }
            }
            let serving = self.serving.clone();
            tokio::select! {
                biased;
                () = serving.shutdown.cancelled() => return None,
                () = serving.removal() => return Some(Err(serving.no_member())),
                moved = self.applied.changed() => if moved.is_err() { return None },
                Ok(()) = self.view.changed() => return Some(Ok(self.heartbeat())),
                () = &mut silence => return Some(Ok(self.heartbeat())),
            }
        }
    }

    /// Sends the follower to fetch what differs where that is less than the log it lacks.
    async fn too_far_behind(&self) -> Option<StreamError> {
        let before = LogIndex::new(self.next.get().saturating_sub(1));
        let lacks = self.serving.log.bytes_above(before);
        if lacks <= Serving::LOG_BYTES_ALWAYS || self.serving.check_ready().is_err() {
            return None;
        }
        let source = self.serving.source.clone();
        let databases = tokio::task::spawn_blocking(move || source.databases_bytes()).await.ok()?;
        let first = self.applied.borrow().next();
        (lacks / 2 > databases).then_some(StreamError::Purged { from: self.next, first })
    }

    fn heartbeat(&mut self) -> Frame {
        let view = self.view.borrow_and_update().clone();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        let applied = *self.applied.borrow();
        Frame { entries: Vec::new(), applied, heartbeat: Some(Heartbeat { view, timestamp_ms }) }
    }

    async fn read(&mut self, applied: LogIndex) -> Result<Vec<(LogIndex, Bytes)>, StreamError> {
        let (log, from) = (self.serving.log.clone(), self.next);
        let entries = if applied.get() - from.get() < Serving::INLINE_BACKLOG {
            log.read(from, CHUNK_BYTES)
        } else {
            tokio::task::spawn_blocking(move || log.read(from, CHUNK_BYTES))
                .await
                .map_err(|_| StreamError::ShuttingDown)?
        };
        let mut entries = entries?;
        // Entries may be in the log before they are applied here.
        entries.retain(|(index, _)| *index <= applied);
        if let Some((last, _)) = entries.last() {
            self.next = last.next();
            self.ticket.sent(*last);
        }
        if !self.globs.patterns().is_empty() {
            for (index, entry) in &mut entries {
                *entry = narrow(&self.globs, std::mem::take(entry))
                    .map_err(|error| StreamError::Invalid(format!("own log entry {index}: {error}")))?;
            }
        }
        Ok(entries)
    }
}

/// An entry without the databases that the follower does not want; empty where nothing is left.
fn narrow(globs: &Globs, entry: Bytes) -> Result<Bytes, crate::store::ChangeError> {
    if entry.is_empty() {
        return Ok(entry);
    }
    let mut change = Change::decode(entry.clone())?;
    change.kind = match change.kind {
        ChangeKind::Commit(mut sets) => {
            let all = sets.len();
            sets.retain(|set| globs.matches(&set.db));
            if sets.len() == all {
                return Ok(entry);
            }
            if sets.is_empty() {
                return Ok(Bytes::new());
            }
            ChangeKind::Commit(sets)
        }
        ChangeKind::Drop(db) if globs.matches(&db) => return Ok(entry),
        ChangeKind::Drop(_) => return Ok(Bytes::new()),
        ChangeKind::Rename { from, to } => match (globs.matches(&from), globs.matches(&to)) {
            // Coming in from outside is the follower's to resync: it knows its own patterns.
            (_, true) => return Ok(entry),
            (true, false) => ChangeKind::Drop(from),
            (false, false) => return Ok(Bytes::new()),
        },
        ChangeKind::Create { name, .. } if globs.matches(&name) => return Ok(entry),
        ChangeKind::SetAttributes { path, .. } if globs.wants(&path) => return Ok(entry),
        ChangeKind::MakeDirectory { path, .. } | ChangeKind::RemoveDirectory(path)
            if globs.reaches(&path) =>
        {
            return Ok(entry);
        }
        // As for a single database, what comes in is the follower's to resync.
        ChangeKind::RenameDirectory { from, to, .. } if globs.reaches(&from) || globs.reaches(&to) => {
            return Ok(entry);
        }
        _ => return Ok(Bytes::new()),
    };
    Ok(change.encode())
}
