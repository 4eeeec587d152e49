//! The order a node starts in, and the reverse it stops in.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::addresses::Addresses;
use super::backup::{locations, start_backups};
use super::checkpoints::keep_checkpointing;
use super::copy_progress::report_copies;
use super::current_role::{CurrentRole, follow_primary};
use super::disk_guard::guard_disk;
use super::earlier_mounts;
use super::endpoint_security::EndpointSecurity;
use super::entering::{know_cluster, start_replication};
use super::event_counters::{count_events, keep_metrics_small};
use super::guard::Guard;
use super::history::start_history;
use super::hold_primary::NodeHolds;
use super::holds::Holds;
use super::hook::run_hooks;
use super::lag::tell_lag;
use super::member_facts::MemberFacts;
use super::preparing::Preparing;
use super::primary::VoterAccess;
use super::proxying::Proxying;
use super::quorum::watch_quorum;
use super::replication::{Parts, Replication, Timing};
use super::restore_from::RestoreFrom;
use super::scrubs::keep_scrubbing;
use super::sql_engine::SqlEngine;
use super::sql_site::{NodeSqlSite, SqlServing, engine_options};
use super::start_mode::StartMode;
use super::this_node::ThisNode;
use super::view::{NodeView, facts_of};
use super::{DataDir, IdentityFile, NodeError, NodeIdentity, blocking, draw_cluster_id};
use crate::config::{ProxySettings, Settings};
use crate::history::History;
use crate::http::{self, Protection};
use crate::io::blobs::BlobStore;
use crate::mount::{Mount, MountOptions};
use crate::proxy::WriteGate;
use crate::security::Certificates;
use crate::store::{ClusterControl, Store, StoreError, StoreOptions};
use crate::telemetry::Exposition;
use crate::telemetry::metrics::FENCE_LATE_SECONDS;
use crate::types::{Access, Role};

/// A node whose mount applications may use.
pub(super) struct Running {
    /// The one line that says so.
    pub(super) announcement: String,
    /// What goes wrong from now on; the node cannot go on then.
    pub(super) failures: mpsc::Receiver<NodeError>,
    mount: Mount,
    guard: Option<Arc<Guard>>,
    history: Option<Arc<History>>,
    store: Arc<Store>,
    replication: Arc<Replication>,
    proxy: Option<Proxying>,
    sql: SqlServing,
    ready: watch::Sender<Result<(), String>>,
    preparing: Preparing,
    control: Arc<OnceLock<Arc<dyn ClusterControl>>>,
    role: watch::Receiver<CurrentRole>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    _identity: Arc<IdentityFile>,
}

/// Starts a node and returns when applications may start.
pub(super) async fn start(settings: &Settings, shutdown: CancellationToken) -> Result<Running, NodeError> {
    let endpoints = EndpointSecurity::load(settings)?;
    locations(&settings.backup)?;
    let (identity, mode) = identify(settings)?;
    let settings = &with_followed(settings, &identity.get())?;
    let restore_from = RestoreFrom::of(settings, identity.layout(), mode)?;
    let beside = earlier_mounts::settle(&identity.get(), identity.layout(), settings.stale_mount).await?;
    let addresses = Addresses::bind(settings).await?;
    let http_addr = addresses.http_addr;
    let (blobs, store) = open_store(settings, &identity, mode, beside.held_files()).await?;
    let tasks = TaskTracker::new();
    tasks.spawn(beside.keep_out(store.clone(), shutdown.clone()));
    let (failed, mut failures) = mpsc::channel(8);
    let (gate, preparing) = (WriteGate::default(), Preparing::of(settings));
    let holds = Holds::new(settings.limits.write_lease);
    let (to_proxy, peers) = mpsc::channel(PEERS_WAITING_MAX);
    let (to_api, api_peers) = mpsc::channel(PEERS_WAITING_MAX);
    let parts = Parts {
        store: store.clone(),
        blobs,
        identity: identity.clone(),
        listener: addresses.grpc,
        advertise: addresses.advertise,
        advertise_http: addresses.advertise_http,
        advertise_proxy: addresses.advertise_proxy.clone(),
        preparing: preparing.clone(),
        holds: holds.clone(),
        gate: gate.clone(),
        proxy: addresses.proxy.is_some().then_some(to_proxy),
        api: to_api,
        tasks: tasks.clone(),
        shutdown: shutdown.clone(),
        failures: failed.clone(),
        timing: timing(settings),
        limits: settings.limits,
        peering: endpoints.peering.clone(),
    };
    let replication = Arc::new(start_replication(settings, mode, parts).await?);
    let no_quorum_since = keep_up(settings, &store, &replication, &tasks, &shutdown);
    let history = start_history(settings, &store, &replication, &tasks, &shutdown);
    let (mount, guard) = mount_guarded(settings, &store, &identity, history.clone()).await?;
    let ready = watch::Sender::new(Err("this node is starting".to_owned()));
    let control = Arc::new(OnceLock::new());
    tasks.spawn(know_cluster(
        control.clone(),
        replication.clone(),
        settings.clone(),
        identity.clone(),
        endpoints.peering.clone(),
    ));
    let stuck = super::watchdog::start(store.clone(), settings.stuck_timeout, shutdown.clone())?;
    let (role, roles) = watch::channel(CurrentRole::default());
    let backups = start_backups(settings, &identity.get(), &store, &replication, &roles, &tasks, &shutdown)?;
    store.set_holds(Arc::new(NodeHolds {
        holds: holds.clone(),
        store: store.clone(),
        control: control.clone(),
        roles: roles.clone(),
        voter: (settings.role == Role::Voter).then(|| settings.name.clone()),
        runtime: tokio::runtime::Handle::current(),
    }));
    let started = Instant::now();
    store.set_facts(facts_of(&store, started, mount.passthrough()));
    let view = Arc::new(NodeView {
        holds,
        backups,
        history: history.clone(),
        name: settings.name.clone(),
        role: settings.role,
        store: store.clone(),
        replication: replication.clone(),
        control: control.clone(),
        peering: endpoints.peering.clone(),
        member_facts: MemberFacts::new(endpoints.peering.clone()),
        ready: ready.subscribe(),
        stuck: stuck.clone(),
        no_quorum_since,
        passthrough: mount.passthrough(),
        mount: mount.mount_point().to_owned(),
        proxy: addresses.advertise_proxy.clone(),
        certificates: settings.security.certificates.clone(),
        started,
    });
    let this = ThisNode {
        name: settings.name.clone(),
        store: store.clone(),
        ready: ready.subscribe(),
        peering: endpoints.peering.clone(),
    };
    let site = NodeSqlSite {
        node: this.clone(),
        control: control.clone(),
        engine: Arc::new(SqlEngine::new(engine_options(settings))),
    };
    let sql = SqlServing::start(settings, site, gate.clone(), &tasks, &shutdown);
    let exposition = Exposition::install();
    tasks.spawn(keep_metrics_small(exposition.clone(), shutdown.clone()));
    let router = http::router(view, exposition, shutdown.clone(), sql.router());
    // Other nodes are known by their certificates, and what they pass on shows its client's token.
    let for_peers = Protection { loopback_names: None, ..endpoints.http.clone() };
    let for_peers = http::protect(router.clone(), for_peers);
    tasks.spawn(http::serve_peers(api_peers, for_peers, shutdown.clone()));
    let router = http::protect(router, endpoints.http);
    tasks.spawn(serve_http(addresses.http, router, endpoints.http_tls, shutdown.clone(), failed.clone()));
    let proxy = addresses
        .proxy
        .zip(settings.proxy.clone())
        .map(|(listener, proxy)| Proxying::start(listener, peers, proxy, this, gate, failed.clone()));
    tokio::select! {
        settled = wait_until_usable(&replication, &store, role, stuck, &tasks, &failed, &shutdown) => settled?,
        Some(failure) = failures.recv() => return Err(failure),
    }
    if let Some(restore_from) = restore_from {
        tokio::select! {
            restored = restore_from.run(&store) => restored?,
            Some(failure) = failures.recv() => return Err(failure),
        }
    }
    let hook = settings.exec.on_role_change.clone();
    if !hook.is_empty() {
        tasks.spawn(run_hooks(hook, settings.name.clone(), roles.clone(), shutdown.clone()));
    }
    let _before = ready.send_replace(Ok(()));
    let announcement = format!(
        "mounted {} (passthrough {}), http {http_addr}, node {}",
        settings.mount.display(),
        if mount.passthrough() { "on" } else { "off" },
        settings.name
    );
    let _identity = identity;
    Ok(Running {
        announcement,
        failures,
        mount,
        guard,
        history,
        store,
        replication,
        proxy,
        sql,
        ready,
        preparing,
        control,
        role: roles,
        tasks,
        shutdown,
        _identity,
    })
}

fn timing(settings: &Settings) -> Timing {
    let drain_timeout =
        settings.proxy.as_ref().map_or(ProxySettings::DRAIN_TIMEOUT, |proxy| proxy.drain_timeout);
    Timing {
        heartbeat: settings.heartbeat,
        election_timeout: settings.election_timeout,
        commit_timeout: settings.commit_timeout,
        drain_timeout,
    }
}

/// Starts what looks after the databases for as long as the node runs; gives since when there is no quorum.
fn keep_up(
    settings: &Settings,
    store: &Arc<Store>,
    replication: &Arc<Replication>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> watch::Receiver<Option<SystemTime>> {
    tasks.spawn(count_events(store.clone(), shutdown.clone()));
    let (since, no_quorum_since) = watch::channel(None);
    tasks.spawn(watch_quorum(replication.clone(), since, shutdown.clone()));
    tasks.spawn(report_copies(store.clone(), shutdown.clone()));
    tasks.spawn(keep_checkpointing(store.clone(), shutdown.clone()));
    tasks.spawn(keep_scrubbing(store.clone(), settings.limits.scrub_every, shutdown.clone()));
    tell_lag(store, replication, tasks, shutdown.clone());
    store.limits().set_uncommitted_max(settings.limits.uncommitted_bytes_max);
    let reserve = settings.limits.disk_reserve_bytes;
    tasks.spawn(guard_disk(store.clone(), settings.data.clone(), reserve, shutdown.clone()));
    no_quorum_since
}

/// Mounts, with a second process that takes care of the mount when this one dies.
async fn mount_guarded(
    settings: &Settings,
    store: &Arc<Store>,
    identity: &IdentityFile,
    history: Option<Arc<History>>,
) -> Result<(Mount, Option<Arc<Guard>>), NodeError> {
    let own = identity.get().last_mount.is_some_and(|(_, at)| at == settings.mount);
    let mount = mount(settings, store.clone(), own, history).await?;
    let guard = guard(identity, &mount).map(Arc::new);
    if let Some(guard) = &guard {
        store.set_mount_guard(guard.clone());
        store.share_lease(guard.deadline().clone());
    }
    let last_mount = Some((mount.connection(), settings.mount.clone()));
    let last_mark = Some(mount.mark().clone());
    identity.update(|identity| (identity.last_mount, identity.last_mark) = (last_mount, last_mark))?;
    Ok((mount, guard))
}

impl Running {
    /// What the node is, as it changes.
    pub(super) fn role(&self) -> watch::Receiver<CurrentRole> {
        self.role.clone()
    }

    /// What the application needs done before it starts.
    pub(super) fn preparing(&self) -> &Preparing {
        &self.preparing
    }

    /// The cluster as a whole, `None` while it is not known.
    pub(super) fn control(&self) -> Option<Arc<dyn ClusterControl>> {
        self.control.get().cloned()
    }

    /// Ends the node in order: what is on disk then needs no repair at the next start. Where `failed`, the mount stays
    /// in its place, dead: nobody has said that applications are done with it.
    pub(super) async fn stop(self, failed: bool) -> Result<(), NodeError> {
        let _before = self.ready.send_replace(Err("this node is ending".to_owned()));
        if let Some(history) = &self.history {
            history.stop_copying();
        }
        // A voter's log must take what is still to be captured; a replica must not apply to what is being closed.
        let voter = matches!(*self.replication, Replication::Voter { .. });
        if !failed {
            self.replication.step_down().await;
        }
        if let Some(proxy) = self.proxy {
            // What arrives until now goes to the new primary.
            proxy.stop().await;
        }
        self.sql.stop().await;
        self.replication.stop_applying();
        let mut stopped = Ok(());
        if !voter {
            stopped = self.replication.stop().await;
        }
        let store = self.store.clone();
        if let Err(error) = blocking(move || store.close()).await? {
            tracing::warn!(%error, "the next start redoes what could not be made durable");
        }
        if let Some(guard) = &self.guard {
            guard.leave();
        }
        let mut unmounted = Ok(());
        match failed {
            true => self.mount.abandon(),
            false => unmounted = unmount(self.mount).await,
        }
        if voter {
            stopped = self.replication.stop().await;
        }
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        unmounted?;
        stopped
    }
}

async fn unmount(mount: Mount) -> Result<(), NodeError> {
    let path = mount.mount_point().to_owned();
    let unmounted = blocking(move || mount.unmount()).await?;
    unmounted.map_err(|error| NodeError::Mount { path, why: error.to_string() })
}

/// Locks the data directory and finds out who this node is and what it does.
fn identify(settings: &Settings) -> Result<(Arc<IdentityFile>, StartMode), NodeError> {
    let data = DataDir::open(&settings.data)?;
    let mut identity = match data.identity()? {
        Some(identity) => identity,
        None => NodeIdentity::draw(settings.name.clone(), settings.role)?,
    };
    // Before anything is written: a refused start leaves no trace.
    let mode = StartMode::of(settings, &identity)?;
    identity.name = settings.name.clone();
    identity.begin_start()?;
    if mode == StartMode::Found && identity.cluster.is_none() {
        identity.cluster = Some(draw_cluster_id()?);
        identity.founding = true;
    }
    Ok((Arc::new(IdentityFile::new(data, identity)?), mode))
}

/// The settings of a replica that is told nobody to follow: it goes on with those it followed.
fn with_followed(settings: &Settings, identity: &NodeIdentity) -> Result<Settings, NodeError> {
    let mut settings = settings.clone();
    if settings.role == Role::Replica && settings.join.is_empty() {
        let parsed: Result<_, _> = identity.follows.iter().map(|addr| addr.parse()).collect();
        settings.join = parsed.map_err(|error| {
            NodeError::Cluster(format!(
                "node.toml names a node to follow that is none ({error}): give --join"
            ))
        })?;
    }
    Ok(settings)
}

/// Connections of other nodes' proxies that this node's proxy has not taken yet.
const PEERS_WAITING_MAX: usize = 1024;

async fn open_store(
    settings: &Settings,
    identity: &IdentityFile,
    mode: StartMode,
    held_files: BTreeSet<u64>,
) -> Result<(Arc<BlobStore>, Arc<Store>), NodeError> {
    let layout = identity.layout().clone();
    let node = identity.get().node;
    let role = settings.role;
    let access = match role {
        Role::Voter => Access::Fenced,
        Role::Replica => Access::ReadOnly,
    };
    blocking(move || {
        let dir = layout.blobs();
        let open = if role == Role::Voter { BlobStore::open } else { BlobStore::open_unsynced };
        let blobs = open(dir.clone())
            .map_err(|source| StoreError::Io { what: format!("opening {}", dir.display()), source })?;
        let blobs = Arc::new(blobs);
        if mode == StartMode::Join {
            // What this node has came by a stream; the log it gets now begins anew, and skips what is here.
            Store::forget_log(&layout)?;
        }
        let store = Store::open(StoreOptions { layout, node, access, blobs: blobs.clone(), held_files })?;
        Ok((blobs, store))
    })
    .await?
}

async fn mount(
    settings: &Settings,
    store: Arc<Store>,
    own: bool,
    history: Option<Arc<History>>,
) -> Result<Mount, NodeError> {
    let options = MountOptions {
        mount_point: settings.mount.clone(),
        own,
        store,
        history,
        passthrough: settings.passthrough,
        forced: settings.forced,
        // The kernel lets nobody but the mounting user in otherwise.
        allow_other: settings.allow_other || !settings.exec.user.is_empty(),
        readonly_on_follower: settings.readonly_on_follower.clone(),
    };
    let path = settings.mount.clone();
    let mounted = blocking(move || {
        // Where this fails the attempt to mount says why, and what to do.
        let _ = std::fs::create_dir_all(&options.mount_point);
        Mount::start(options)
    });
    mounted.await?.map_err(|error| NodeError::Mount { path, why: error.to_string() })
}

/// Without a guard everything works but being killed in a bad moment.
fn guard(identity: &IdentityFile, mount: &Mount) -> Option<Guard> {
    let lock = identity.share_lock().map_err(|error| NodeError::System(error.to_string()));
    let started = lock.and_then(|lock| Guard::start(lock, mount));
    started.inspect_err(|error| tracing::warn!(%error, "nobody watches over the mount")).ok()
}

async fn serve_http(
    listener: tokio::net::TcpListener,
    router: http::Router,
    tls: Option<Arc<Certificates>>,
    shutdown: CancellationToken,
    failures: mpsc::Sender<NodeError>,
) {
    if let Err(error) = http::serve(listener, router, tls, shutdown).await {
        // Nobody to tell: the node ends already.
        let _ = failures.send(NodeError::System(format!("the http server failed: {error}"))).await;
    }
}

/// A voter is usable when a primary is known, and writable then where it is itself that; a replica when it has the
/// cluster's databases, however old.
async fn wait_until_usable(
    replication: &Arc<Replication>,
    store: &Arc<Store>,
    role: watch::Sender<CurrentRole>,
    stuck: watch::Receiver<Option<String>>,
    tasks: &TaskTracker,
    failures: &mpsc::Sender<NodeError>,
    shutdown: &CancellationToken,
) -> Result<(), NodeError> {
    if let Replication::Replica { .. } = **replication {
        tasks.spawn(follow_primary(store.clone(), replication.clone(), role.clone(), shutdown.clone()));
    }
    match &**replication {
        Replication::Voter { raft, own, term, handoffs, control, .. } => {
            let settled = watch::Sender::new(false);
            let mut watched = settled.subscribe();
            let states = raft.watch_primary();
            let handoffs = handoffs.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
            let voter = VoterAccess {
                store: store.clone(),
                raft: raft.clone(),
                own: own.clone(),
                term: term.clone(),
                gate: control.gate.clone(),
                ended: store.follow_lease(|late| {
                    metrics::histogram!(FENCE_LATE_SECONDS).record(late.as_secs_f64())
                })?,
                handoffs: handoffs.ok_or_else(|| NodeError::System("the node is started twice".into()))?,
                stuck,
                settled,
                role,
                failures: failures.clone(),
            };
            tasks.spawn(voter.follow(states, shutdown.clone()));
            match watched.wait_for(|settled| *settled).await {
                Ok(_) => Ok(()),
                // The task tells the reason itself.
                Err(_) => std::future::pending().await,
            }
        }
        Replication::Replica { .. } if !store.list().is_empty() => Ok(()),
        Replication::Replica { follower, .. } => {
            tracing::info!("waiting for the first copy of the cluster's databases");
            let synced = follower.wait_synced().await;
            synced.map_err(|error| NodeError::Replication(format!("cannot follow: {error}")))
        }
    }
}
