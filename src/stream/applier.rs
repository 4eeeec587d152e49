use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::fetch::fetch_blob;
use super::identity::check_version;
use super::lanes::{LaneParts, Lanes, Outcome, Request};
use super::resync::{resync_all, resync_database};
use super::session::outcome;
use super::{ClusterId, Connector, FollowStatus, Globs, RecentLog, ReplicaTarget, StreamError, Upstream};
use crate::io::log_rate_limit;
use crate::ltx::BlobRef;
use crate::store::Change;
use crate::types::{DbName, LogIndex, NodeId};

/// HOST:PORT of other voters, the best one first; `None` before they are known.
pub type Sources = Box<dyn Fn() -> Option<Vec<String>> + Send + Sync>;

/// How a voter's databases follow its own log.
pub struct ApplierOptions {
    /// This node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Where what is missing here can be fetched.
    pub sources: Sources,
    /// Entries that may wait for slow databases, in bytes; above it, they are fetched by difference.
    pub queue_bytes_max: usize,
}

/// Applies the committed entries of a voter's log: at once where that is quick, else on a thread per slow database;
/// what cannot be applied is fetched by difference from another voter.
pub struct Applier {
    lanes: Arc<Lanes>,
    target: Arc<dyn ReplicaTarget>,
    log: Arc<RecentLog>,
    acks: watch::Sender<LogIndex>,
    reach: Arc<Reach>,
    runtime: tokio::runtime::Handle,
}

/// How another voter is reached.
struct Reach {
    options: ApplierOptions,
    connector: Arc<dyn Connector>,
}

/// How long another voter has to accept a connection and to say who it is.
const CONNECT_MAX: Duration = Duration::from_secs(3);

impl Applier {
    /// An applier behind the target's durable index; it fetches on the present runtime, until `shutdown`.
    pub fn start(
        options: ApplierOptions,
        target: Arc<dyn ReplicaTarget>,
        connector: Arc<dyn Connector>,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let start = target.durable_index();
        // Only its mark is used: the log itself is Raft's.
        let log = Arc::new(RecentLog::new(start, 0));
        let acks = watch::Sender::new(start);
        let (requests, requested) = mpsc::unbounded_channel();
        let parts = LaneParts {
            target: target.clone(),
            globs: Globs::all(),
            log: log.clone(),
            status: watch::Sender::new(FollowStatus::default()),
            acks: acks.clone(),
            requests,
            bytes_max: options.queue_bytes_max,
        };
        let lanes = Lanes::new(parts, start);
        let reach = Arc::new(Reach { options, connector });
        let runtime = tokio::runtime::Handle::current();
        tokio::spawn(answer(reach.clone(), target.clone(), lanes.clone(), requested, shutdown));
        Arc::new(Self { lanes, target, log, acks, reach, runtime })
    }

    /// Takes the next entry. Blocking as long as applying it takes where that is quick.
    pub fn take(&self, index: LogIndex, change: Option<Change>) {
        // What is missing is asked for when it is needed: a majority had it before the entry was made.
        let _missing = self.lanes.take(index, bytes::Bytes::new(), change);
    }

    /// Up to here entries are applied in every database.
    pub fn settled(&self) -> watch::Receiver<LogIndex> {
        self.acks.subscribe()
    }

    /// Up to here entries may be shipped onward: the large change sets they name are here.
    pub fn shippable(&self) -> watch::Receiver<LogIndex> {
        use crate::store::CommittedLog;
        self.log.applied()
    }

    /// The last entry taken.
    pub fn taken(&self) -> LogIndex {
        self.lanes.cursor()
    }

    /// Brings every database at least to entry `index` by difference; afterwards the next entry to take is the one
    /// behind it.
    ///
    /// # Errors
    /// Where this node is ending; else it is tried until it succeeds.
    pub async fn fetch_all(self: Arc<Self>, index: LogIndex) -> io::Result<()> {
        let ended = || io::Error::other("the node is shutting down");
        let this = self.clone();
        self.runtime.spawn(async move { this.fetch_until_done(index).await }).await.map_err(|_| ended())
    }

    async fn fetch_until_done(&self, index: LogIndex) {
        tracing::info!(%index, "the log before this entry is gone; fetching the difference of every database");
        self.lanes.clear();
        let mut backoff = Backoff::new();
        loop {
            match self.fetch_once(index).await {
                Ok(()) => break,
                Err(error) => {
                    if let Some(suppressed) = log_rate_limit::due(("the difference", error.to_string())) {
                        tracing::warn!(suppressed, "fetching the difference: {error}; trying again");
                    }
                }
            }
            tokio::time::sleep(backoff.next()).await;
        }
        // What was fetched may be newer; entries that a database has already are skipped.
        self.lanes.restart(index);
        tracing::info!(%index, "fetched the difference of every database");
    }

    async fn fetch_once(&self, index: LogIndex) -> Result<(), StreamError> {
        let upstream = self.reach.connect().await?;
        resync_all(upstream, self.target.clone(), &Globs::all(), index).await.map(drop)
    }

    /// Fetches what differs from another voter's copy of a database; until then entries of it wait.
    pub fn repair(&self, db: &DbName) {
        self.lanes.repair(db);
    }

    /// Lets lanes end after what they are doing; entries that come later are left to the next start.
    pub fn stop(&self) {
        self.lanes.stop();
    }
}

/// Answers what lanes ask for, each request by itself.
async fn answer(
    reach: Arc<Reach>,
    target: Arc<dyn ReplicaTarget>,
    lanes: Arc<Lanes>,
    mut requests: mpsc::UnboundedReceiver<Request>,
    shutdown: CancellationToken,
) {
    loop {
        let request = tokio::select! {
            () = shutdown.cancelled() => return lanes.stop(),
            request = requests.recv() => request,
        };
        let Some(request) = request else { return };
        let (reach, target) = (reach.clone(), target.clone());
        tokio::spawn(async move {
            match request {
                Request::Blob { blob, reply } => tell(reply, reach.blob(target, blob).await),
                Request::Resync { db, at, reply } => tell(reply, reach.resync(target, db, at).await),
            }
        });
    }
}

fn tell(reply: oneshot::Sender<Outcome>, outcome: Outcome) {
    // Who asked may be gone with the node.
    let _ = reply.send(outcome);
}

impl Reach {
    async fn connect(&self) -> Result<Arc<dyn Upstream>, StreamError> {
        // Nobody to ask is no answer: that something is not found only a node can say.
        let mut last = StreamError::Unavailable("the other voters are not known yet".into());
        for addr in (self.options.sources)().unwrap_or_default() {
            let connected = tokio::time::timeout(CONNECT_MAX, self.greet(&addr)).await;
            match connected {
                Ok(Ok(upstream)) => return Ok(upstream),
                Ok(Err(error)) => last = error,
                Err(_) => last = late(&addr),
            }
        }
        Err(last)
    }

    async fn greet(&self, addr: &str) -> Result<Arc<dyn Upstream>, StreamError> {
        let upstream = self.connector.connect(addr).await?;
        let identity = upstream.identify().await?;
        check_version(identity.protocol_version)?;
        if identity.cluster != self.options.cluster {
            let (ours, theirs) = (self.options.cluster.to_string(), identity.cluster.to_string());
            return Err(StreamError::ForeignCluster { ours, theirs });
        }
        if identity.node == self.options.node {
            return Err(StreamError::Invalid(format!("{addr} is this node itself")));
        }
        Ok(upstream)
    }

    /// Nobody to ask is an answer of its own: a single voter must go on without.
    fn alone(&self) -> bool {
        (self.options.sources)().is_some_and(|sources| sources.is_empty())
    }

    async fn blob(&self, target: Arc<dyn ReplicaTarget>, blob: BlobRef) -> Outcome {
        if self.alone() {
            return Outcome::Nobody;
        }
        // Any voter may have it or lack it; all are asked in turn.
        let Some(sources) = (self.options.sources)() else {
            return Outcome::Retry("the other voters are not known yet".into());
        };
        let mut last = Outcome::NotFound;
        for addr in sources {
            let fetched = match self.greet(&addr).await {
                Ok(upstream) => fetch_blob(upstream, target.clone(), blob).await,
                Err(error) => Err(error),
            };
            match outcome(fetched, "a large change set") {
                Outcome::Done => return Outcome::Done,
                Outcome::NotFound => {}
                other => last = other,
            }
        }
        last
    }

    async fn resync(&self, target: Arc<dyn ReplicaTarget>, db: DbName, at: LogIndex) -> Outcome {
        if self.alone() {
            return Outcome::Nobody;
        }
        // Any voter may lag behind or not have it; all are asked in turn, and only all of them can say that it is gone.
        let Some(sources) = (self.options.sources)() else {
            return Outcome::Retry("the other voters are not known yet".into());
        };
        let mut last = Outcome::NotFound;
        for addr in sources {
            let fetched = tokio::time::timeout(CONNECT_MAX, self.greet(&addr)).await;
            let fetched = match fetched.unwrap_or_else(|_| Err(late(&addr))) {
                Ok(upstream) => fetch_database(upstream, target.clone(), &db, at).await,
                Err(error) => Err(error),
            };
            match outcome(fetched, db.as_str()) {
                Outcome::Done => return Outcome::Done,
                Outcome::NotFound => {}
                other => last = other,
            }
        }
        last
    }
}

fn late(addr: &str) -> StreamError {
    StreamError::Unavailable(format!("{addr} did not answer in time"))
}

/// Fetches what differs from a node whose databases all have entry `at`.
async fn fetch_database(
    upstream: Arc<dyn Upstream>,
    target: Arc<dyn ReplicaTarget>,
    db: &DbName,
    at: LogIndex,
) -> Result<(), StreamError> {
    let listing = upstream.list(Globs::all()).await?;
    if listing.applied < at {
        return Err(StreamError::Unavailable(format!("the other voter has not reached entry {at}")));
    }
    resync_database(upstream, target, db.clone()).await.map(drop)
}
