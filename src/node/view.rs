use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use tokio::sync::{broadcast, watch};

use super::holds::Holds;
use super::joining;
use super::member_facts::MemberFacts;
use super::replication::Replication;
use crate::backup::{BackupStatus, StatusBoard};
use crate::db::{DbError, Done};
use crate::history::History;
use crate::http::{Api, Details, ExportSink, Import, Overview};
use crate::io::free_space::Space;
use crate::ltx::page_checksum;
use crate::security::{CertificateFiles, Peering};
use crate::store::{
    ClusterAnswer, ClusterControl, ClusterError, DbStatus, FactsSource, Member, MemberChange, NodeFacts,
    Store, StoreError, StoreEvent, Upload,
};
use crate::types::{Access, Checksum, DbName, NodeName, PageCount, Pgno, Pos, Role, Txid};

/// Bytes of an export that are read at a time.
const EXPORT_CHUNK_BYTES: usize = 256 << 10;

/// How long a node has to say who it is.
const IDENTIFY_MAX: Duration = Duration::from_secs(2);

/// A node as HTTP shows it.
pub(super) struct NodeView {
    pub(super) name: NodeName,
    pub(super) role: Role,
    pub(super) store: Arc<Store>,
    pub(super) replication: Arc<Replication>,
    /// The cluster as a whole; empty until it is known.
    pub(super) control: Arc<OnceLock<Arc<dyn ClusterControl>>>,
    /// How other nodes are reached.
    pub(super) peering: Peering,
    /// What the other nodes say of themselves.
    pub(super) member_facts: MemberFacts,
    /// Why applications may not start yet.
    pub(super) ready: watch::Receiver<Result<(), String>>,
    /// What applications hold.
    pub(super) holds: Holds,
    /// How its backups stand.
    pub(super) backups: Vec<StatusBoard>,
    /// What its databases were.
    pub(super) history: Option<Arc<History>>,
    /// Which of its threads is stuck.
    pub(super) stuck: watch::Receiver<Option<String>>,
    /// Since when there is no quorum.
    pub(super) no_quorum_since: watch::Receiver<Option<SystemTime>>,
    /// Whether the kernel reads and writes WAL databases itself.
    pub(super) passthrough: bool,
    /// Where databases are mounted.
    pub(super) mount: PathBuf,
    /// URL of the proxy, empty where there is none.
    pub(super) proxy: String,
    /// The files of its certificate.
    pub(super) certificates: Option<CertificateFiles>,
    /// When it was started.
    pub(super) started: Instant,
}

impl Api for NodeView {
    fn overview(&self) -> Overview {
        // A process that was stopped may be asked before it has noticed.
        let expired = self.replication.has_expired();
        let no_quorum = self.replication.no_quorum();
        let unsettled = || match (&*self.ready.borrow(), &no_quorum) {
            (Err(why), _) if self.store.copying().progress().is_some() => {
                let progress = self.store.copying().progress().map(|progress| progress.to_string());
                Err(format!("{why}: fetching databases, {}", progress.unwrap_or_default()))
            }
            (Err(why), _) if self.replication.refusal().is_some() => {
                Err(format!("{why}: {}", self.replication.refusal().unwrap_or_default()))
            }
            (Err(why), Some(lost)) => {
                Err(format!("{why}; what is here can be read on the mount: no quorum, {lost}"))
            }
            (ready, _) => ready.clone(),
        };
        Overview {
            name: self.name.clone(),
            role: self.role,
            primary: self.store.primary().filter(|_| !expired),
            is_primary: self.store.access() == Access::Write && !expired,
            term: self.replication.term(),
            index: self.store.applied_index(),
            durable_index: self.store.durable_index(),
            ready: match self.stuck.borrow().clone().or_else(|| self.replication.removed()) {
                Some(why) => Err(why),
                None => unsettled(),
            },
            no_quorum_since: no_quorum.as_ref().and_then(|_| *self.no_quorum_since.borrow()),
            copying: self.store.copying().progress(),
            no_quorum,
        }
    }

    fn details(&self) -> Details {
        let left = |files: &CertificateFiles| files.remaining().ok().flatten();
        Details {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: self.started.elapsed(),
            passthrough: self.passthrough,
            write_leases: self.holds.databases(),
            mount: self.mount.display().to_string(),
            proxy: self.proxy.clone(),
            disk_free_bytes: disk_free(&self.store),
            certificate_left: self.certificates.as_ref().and_then(left),
        }
    }

    fn backups(&self) -> Vec<BackupStatus> {
        self.backups.iter().map(StatusBoard::status).collect()
    }

    fn history(&self) -> Option<Arc<History>> {
        self.history.clone()
    }

    fn databases(&self) -> Vec<DbStatus> {
        self.store.list()
    }

    fn database(&self, name: &DbName) -> Option<DbStatus> {
        self.store.status(name)
    }

    fn members(&self) -> Vec<Member> {
        self.replication.members()
    }

    fn member_facts<'a>(&'a self, members: &'a [Member]) -> BoxFuture<'a, HashMap<NodeName, NodeFacts>> {
        Box::pin(self.member_facts.of(members))
    }

    fn cluster_members(&self) -> ClusterAnswer<'_, Vec<Member>> {
        Box::pin(async move { self.control()?.members().await })
    }

    fn add_member(&self, addr: String) -> ClusterAnswer<'_, ()> {
        Box::pin(async move {
            let candidate = joining::candidate_at(addr, &self.peering).await?;
            self.or_no_quorum(self.control()?.enlist(candidate).await)
        })
    }

    fn change_member(&self, change: MemberChange) -> ClusterAnswer<'_, ()> {
        Box::pin(async move { self.or_no_quorum(self.control()?.change_member(change).await) })
    }

    fn hand_off(&self, to: Option<NodeName>) -> ClusterAnswer<'_, NodeName> {
        Box::pin(async move { self.or_no_quorum(self.control()?.hand_off(to).await) })
    }

    fn newest(&self, db: DbName) -> ClusterAnswer<'_, Pos> {
        Box::pin(async move { self.or_no_quorum(self.control()?.newest(db).await) })
    }

    fn nodes(&self) -> ClusterAnswer<'_, Vec<(NodeName, Role, Option<String>)>> {
        Box::pin(async move {
            let members = self.control()?.members().await?;
            let found = members.into_iter().map(|member| async move {
                let asked =
                    tokio::time::timeout(IDENTIFY_MAX, joining::who_is(&member.addr, &self.peering)).await;
                (member.name, member.role, asked.ok().and_then(Result::ok).map(|found| found.http))
            });
            Ok(futures::future::join_all(found).await)
        })
    }

    fn check(&self, name: &DbName) -> Result<(Pos, Checksum), StoreError> {
        if self.store.status(name).is_none() {
            return Err(StoreError::NotFound(name.to_string()));
        }
        let mut snapshot = self.store.snapshot(name)?;
        let header = snapshot.header();
        let mut computed = Checksum::EMPTY;
        for pgno in header.commit.pages(header.page_size) {
            computed = computed ^ snapshot.page_checksum(pgno)?;
        }
        Ok((header.pos, computed))
    }

    fn repair(&self, name: &DbName) -> Result<(), ClusterError> {
        if self.store.access() == Access::Write {
            let why = "this node is primary, and others are compared with it: skein handoff, then repair it";
            return Err(ClusterError::Refused(why.into()));
        }
        let why = DbError::Corrupt { db: name.clone(), why: "to be repaired, as an operator asked".into() };
        if let Some(database) = self.store.get(name) {
            database.fail(&why);
            self.replication.repair(name);
        }
        Ok(())
    }

    fn discarded(&self) -> u64 {
        count_files(&self.store.layout().discarded())
    }

    fn events(&self) -> broadcast::Receiver<StoreEvent> {
        self.store.events()
    }

    fn wait_for(&self, name: DbName, txid: Txid, deadline: Instant) -> BoxFuture<'static, bool> {
        let store = self.store.clone();
        Box::pin(async move { store.wait_for(&name, txid, deadline).await })
    }

    fn export(&self, name: &DbName, out: &mut dyn ExportSink) -> Result<(), StoreError> {
        if self.store.status(name).is_none() {
            return Err(StoreError::NotFound(name.to_string()));
        }
        let mut snapshot = self.store.snapshot(name)?;
        let header = snapshot.header();
        out.begin(header);
        let lock_page = Pgno::lock_page(header.page_size);
        let mut computed = Checksum::EMPTY;
        let mut chunk = BytesMut::with_capacity(EXPORT_CHUNK_BYTES + header.page_size.len());
        for pgno in all_pages(header.commit) {
            let start = chunk.len();
            chunk.resize(start + header.page_size.len(), 0);
            // SQLite never writes the lock page, so its bytes are zeros.
            if pgno != lock_page {
                snapshot.read_page(pgno, &mut chunk[start..])?;
                computed = computed ^ page_checksum(pgno, &chunk[start..]);
            }
            if pgno.get() == header.commit.get() && computed != header.pos.checksum {
                // The end is never sent, so that nobody takes it for a copy.
                let why = format!(
                    "the pages read for an export have checksum {computed}, not that of {}",
                    header.pos
                );
                return Err(DbError::Corrupt { db: name.clone(), why }.into());
            }
            if chunk.len() >= EXPORT_CHUNK_BYTES
                && out.chunk(chunk.split().freeze()) == ControlFlow::Break(())
            {
                return Ok(());
            }
        }
        if !chunk.is_empty() {
            let _last: ControlFlow<()> = out.chunk(Bytes::from(chunk));
        }
        Ok(())
    }

    fn import(&self, name: &DbName) -> Result<Box<dyn Import>, StoreError> {
        Ok(Box::new(UploadImport(self.store.upload(name)?)))
    }

    fn drop_database(&self, name: &DbName, done: Done) {
        self.store.drop_database(name, done);
    }
}

impl NodeView {
    /// Where the cluster did not answer because it cannot, that is the reason to tell.
    fn or_no_quorum<T>(&self, answer: Result<T, ClusterError>) -> Result<T, ClusterError> {
        let no_quorum = |error| self.replication.no_quorum().map_or(error, ClusterError::NoQuorum);
        answer.map_err(|error| match error {
            ClusterError::NotPrimary(_) | ClusterError::Unavailable(_) => no_quorum(error),
            other => other,
        })
    }

    fn control(&self) -> Result<&Arc<dyn ClusterControl>, ClusterError> {
        let unknown = || ClusterError::Unavailable("this node is not in its cluster yet; try again".into());
        self.control.get().ok_or_else(unknown)
    }
}

fn disk_free(store: &Store) -> Option<u64> {
    Space::of(store.layout().root()).map(|space| space.free).ok()
}

/// What a node that started at `started` says of itself to other nodes.
pub(super) fn facts_of(store: &Arc<Store>, started: Instant, passthrough: bool) -> FactsSource {
    let store = Arc::downgrade(store);
    Box::new(move || {
        let store = store.upgrade();
        NodeFacts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: started.elapsed(),
            disk_free_bytes: store.as_deref().and_then(disk_free),
            passthrough,
            copying: store
                .and_then(|store| store.copying().progress())
                .map(|progress| (progress.bytes, progress.total_bytes)),
        }
    })
}

/// Every page of a database of this size, the lock page included.
fn all_pages(commit: PageCount) -> impl Iterator<Item = Pgno> {
    (1..=commit.get()).filter_map(Pgno::new)
}

struct UploadImport(Upload);

impl Import for UploadImport {
    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.0.write_at(offset, data)
    }

    fn finish(self: Box<Self>, done: Done) {
        self.0.finish(done);
    }
}

/// Number of files below a directory; a missing one has none.
fn count_files(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => count_files(&entry.path()),
            Ok(_) => 1,
            Err(_) => 0,
        })
        .sum()
}
