//! A simulated voter's databases as its log sees them: the real store behind the real applier.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::held::HeldStore;
use super::invariants::{pos_monotonic, reads_are_a_prefix};
use super::large;
use super::node::crash;
use super::peers::{SimConnector, address};
use super::power_cut::{Death, copy_tree};
use super::transaction::kinds;
use super::world::World;
use crate::raft::target::LogTarget;
use crate::store::{Change, ChangeKind, Store};
use crate::stream::{Applier, ApplierOptions};
use crate::types::{DbName, LogIndex, NodeId};

/// Real time that the product's own threads may take for one step of a simulation.
const ASIDE_MAX: Duration = Duration::from_secs(20);

/// Applies the log to the store.
pub struct SimTarget {
    world: Arc<World>,
    node: u64,
    run: u64,
    store: Arc<Store>,
    held: Arc<HeldStore>,
    applier: Arc<Applier>,
    /// Whom the applier may ask now.
    sources: Arc<Mutex<Vec<String>>>,
    replayed: watch::Sender<bool>,
    /// A copy of the databases as they were last durable.
    synced: PathBuf,
    /// It needs what no other node can give now.
    stuck: AtomicBool,
    /// Databases with a proposal of unknown fate.
    undecided: Mutex<BTreeSet<DbName>>,
    /// Names whose files are removed or moved only when a reader lets go.
    moves_late: Mutex<BTreeSet<DbName>>,
}

impl SimTarget {
    /// The target of run `run` of a node.
    pub fn new(
        world: Arc<World>,
        (node, run): (u64, u64),
        store: Arc<Store>,
        synced: PathBuf,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let sources: Arc<Mutex<Vec<String>>> = Arc::default();
        let ask = sources.clone();
        let options = ApplierOptions {
            node: NodeId::new(node),
            cluster: super::peers::cluster(),
            sources: Box::new(move || Some(ask.lock().unwrap().clone())),
            queue_bytes_max: 64 << 20,
        };
        let held = HeldStore::new(store.clone());
        let connector = Arc::new(SimConnector { world: world.clone() });
        let applier = {
            let _aside = world.aside.enter();
            Applier::start(options, held.clone(), connector, stop)
        };
        Arc::new(Self {
            world,
            node,
            run,
            store,
            held,
            applier,
            sources,
            replayed: watch::Sender::new(false),
            synced,
            stuck: AtomicBool::new(false),
            undecided: Mutex::default(),
            moves_late: Mutex::default(),
        })
    }

    /// A long read of a database begins: its commits wait.
    pub fn hold(&self, db: &DbName) {
        self.held.hold(db);
    }

    /// All long reads end, and what waited for them is applied, the simulation standing still.
    pub fn release(&self) {
        if !self.held.release(ASIDE_MAX) {
            self.world.broken(format!("n{} does not apply what waited for a reader", self.node));
        }
        let late: Vec<DbName> = std::mem::take(&mut *self.moves_late.lock().unwrap()).into_iter().collect();
        self.world.check(self.note_moved(&late).map_err(|error| error.to_string()));
        self.check_positions();
    }

    /// Whether a database is being read for long, or lacks entries because of that.
    pub fn is_held(&self, db: &DbName) -> bool {
        self.held.is_busy(db)
    }

    /// Lets what is slow end.
    pub fn stop(&self) {
        self.applier.stop();
    }

    /// Whether the databases agree with the log of the start.
    pub fn is_replayed(&self) -> bool {
        *self.replayed.borrow()
    }

    /// Up to here every database has everything.
    pub fn settled(&self) -> LogIndex {
        *self.applier.settled().borrow()
    }

    /// The copy of the databases as they were last durable.
    pub fn synced(&self) -> &Path {
        &self.synced
    }

    /// Makes the databases durable, as the node's own task does now and then.
    pub fn checkpoint(&self) -> Result<(), String> {
        self.store.checkpoint().map_err(|error| format!("n{} cannot checkpoint: {error}", self.node))?;
        let copied = match std::fs::remove_dir_all(&self.synced) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => copy_tree(&self.store.layout().dbs(), &self.synced),
        };
        copied.map_err(|error| error.to_string())
    }

    /// A drop or rename is durable at once: that much of the databases is as it is now after a power cut, too.
    fn note_moved(&self, names: &[DbName]) -> io::Result<()> {
        for name in names {
            let (now, durable) =
                (self.store.layout().dbs().join(name.as_str()), self.synced.join(name.as_str()));
            match std::fs::remove_dir_all(&durable) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            if now.is_dir() {
                copy_tree(&now, &durable)?;
            }
        }
        Ok(())
    }

    /// The fate of a change of these databases is unknown: nothing may be built on them until it is.
    pub fn set_undecided(&self, dbs: &[DbName]) {
        self.undecided.lock().unwrap().extend(dbs.iter().cloned());
    }

    /// Whether a database waits for the fate of a change.
    pub fn is_undecided(&self, db: &DbName) -> bool {
        self.undecided.lock().unwrap().contains(db)
    }

    /// Looks at every database's position.
    pub fn check_positions(&self) {
        let mut history = self.world.history();
        for kind in kinds() {
            let Some(database) = self.store.get(&kind.db) else { continue };
            let (pos, index) = (database.pos(), database.index());
            self.world.check(pos_monotonic::check(&mut history, (self.node, self.run), &kind.db, index));
            self.world.check(reads_are_a_prefix::position(&history, self.node, &kind.db, pos));
            if let Some(why) = database.failure() {
                self.world.broken(format!("{} on n{} is not served: {why}", kind.db, self.node));
            }
        }
    }

    /// Looks at every page on disk.
    fn check_pages(&self) {
        for database in kinds().iter().filter_map(|kind| self.store.get(&kind.db)) {
            match database.scrub() {
                Ok(None) => {}
                Ok(Some(pgno)) => {
                    let (node, db) = (self.node, database.name());
                    self.world.broken(format!("page {pgno} of {db} on n{node} is not repaired by redo"));
                }
                Err(error) => self.world.broken(error),
            }
        }
    }

    /// Waits until an entry is applied, the simulation standing still: large change sets are applied on a thread of
    /// their own.
    fn settle(&self, index: LogIndex) {
        let mut settled = self.applier.settled();
        if *settled.borrow() >= index {
            return;
        }
        let (told, done) = mpsc::channel();
        self.world.aside.spawn(async move {
            let applied = settled.wait_for(|settled| *settled >= index).await;
            // Nobody waits any more where it took too long.
            let _ = told.send(applied.is_ok());
        });
        if !done.recv_timeout(ASIDE_MAX).unwrap_or(false) {
            self.world.broken(format!("n{} cannot apply entry {index}", self.node));
        }
    }

    /// What entry `index` keeps beside the log is sought among all nodes where this one lacks it. Where the others need
    /// it no more, the applier fetches the databases from one of them; false where none can be asked now.
    fn bring_blobs(&self, index: LogIndex, change: &Change) -> bool {
        let blobs = self.store.blobs();
        for blob in change.blobs().filter(|blob| !blobs.contains((blob.digest, blob.size_bytes))) {
            self.world.note(format!("n{} fetches blob {blob}", self.node));
            if !large::holders(&self.world, blob).is_empty() {
                self.world.check(large::fetch(&self.world, blob, blobs));
                continue;
            }
            let Some(source) = self.able(index) else { return false };
            self.world.note(format!("n{} fetches its database from n{source}", self.node));
            *self.sources.lock().unwrap() = vec![address(source)];
        }
        true
    }

    fn is_dead(&self) -> bool {
        !self.world.runs(self.node, self.run)
    }

    fn able(&self, index: LogIndex) -> Option<u64> {
        let able = self.world.all_live().into_iter().find(|live| {
            live.id != self.node
                && self.world.links().connects(self.node, live.id)
                && live.store.applied_index() >= index
                && serves(&live.store)
        });
        able.map(|live| live.id)
    }

    /// A node that can be asked for everything up to `index`, once there is one.
    async fn source(&self, index: LogIndex) -> io::Result<u64> {
        loop {
            if self.is_dead() {
                return Err(io::Error::other("the node is dead"));
            }
            if let Some(able) = self.able(index) {
                return Ok(able);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn fetch_from_another(self: Arc<Self>, index: LogIndex) -> io::Result<()> {
        let source = self.source(index).await?;
        self.world.note(format!("n{} fetches everything up to {index} from n{source}", self.node));
        *self.sources.lock().unwrap() = vec![address(source)];
        self.held.reset();
        // The rest of the world stands still until it is done: only so it ends the same way each time.
        let (told, done) = mpsc::channel();
        let applier = self.applier.clone();
        self.world.aside.spawn(async move { told.send(applier.fetch_all(index).await) });
        let fetched = done.recv_timeout(ASIDE_MAX).map_err(io::Error::other)?;
        self.sources.lock().unwrap().clear();
        self.held.reset();
        fetched?;
        // As the node's own target: what was to be redone has been replaced, and only what is redone can be durable.
        self.store.end_replay();
        self.checkpoint().map_err(io::Error::other)?;
        self.check_positions();
        if self.store.durable_index() < index {
            let durable = self.store.durable_index();
            self.world.broken(format!("n{} fetched up to {index}, of which {durable} is durable", self.node));
        }
        Ok(())
    }
}

/// The names whose files an entry removes or moves.
fn moved_by(change: &Change) -> Option<Vec<DbName>> {
    match &change.kind {
        ChangeKind::Drop(db) => Some(vec![db.clone()]),
        ChangeKind::Rename { from, to } => Some(vec![from.clone(), to.clone()]),
        _ => None,
    }
}

/// Whether all databases of a node can be read; after a crash that takes a while.
fn serves(store: &Store) -> bool {
    kinds().iter().all(|kind| store.get(&kind.db).is_none() || store.snapshot(&kind.db).is_ok())
}

/// A target as the state machine has it: the real one is shared with those who wait for it.
pub struct Shared(pub Arc<SimTarget>);

impl LogTarget for Shared {
    fn entry(&self, index: LogIndex, change: Option<Change>) {
        let this = &self.0;
        if this.is_dead() || this.stuck.load(Ordering::SeqCst) {
            return;
        }
        if let Some(change) = &change {
            let known = this.world.history().committed(index, change);
            this.world.check(known);
            if change.origin.node.get() == this.node && change.origin.run == this.run {
                let mut undecided = this.undecided.lock().unwrap();
                let decided = change.databases();
                undecided.retain(|db| !decided.contains(db));
            }
        }
        let (changes, moved) = (change.is_some(), change.as_ref().and_then(moved_by));
        if let Some(change) = &change
            && !this.bring_blobs(index, change)
        {
            // It would wait for another node, as the simulation cannot: it tries again in its next run.
            this.stuck.store(true, Ordering::SeqCst);
            let (world, node, run) = (this.world.clone(), this.node, this.run);
            tokio::spawn(async move {
                // It may still be starting.
                while world.runs(node, run) && !crash(&world, node, Death::Killed) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            });
            return;
        }
        this.applier.take(index, change);
        this.settle(index);
        this.sources.lock().unwrap().clear();
        if let Some(names) = moved {
            if names.iter().any(|db| this.is_held(db)) {
                this.moves_late.lock().unwrap().extend(names.iter().cloned());
            }
            this.world.check(this.note_moved(&names).map_err(|error| error.to_string()));
        }
        if changes {
            this.check_positions();
        }
    }

    fn term_began(&self, term: u64) {
        self.0.store.proposals_resolved();
        self.0.undecided.lock().unwrap().clear();
        if !self.0.is_dead() {
            if let Some(number) = self.0.world.history().open_of((self.0.node, self.0.run)) {
                // What an earlier term left out of this log never gets into it, and its proposer waits for that word.
                self.0.world.broken(format!("proposal {number} has no fate in term {term}"));
            }
            self.0.world.note(format!("n{} follows the log of term {term}", self.0.node));
        }
    }

    fn settled(&self) -> watch::Receiver<LogIndex> {
        self.0.applier.settled()
    }

    fn replayed(&self) -> watch::Receiver<bool> {
        self.0.replayed.subscribe()
    }

    fn shippable(&self) -> watch::Receiver<LogIndex> {
        self.0.applier.shippable()
    }

    fn durable_index(&self) -> LogIndex {
        self.0.store.durable_index()
    }

    fn begin_replay(&self) {
        self.0.store.begin_replay();
    }

    fn end_replay(&self) {
        self.0.store.end_replay();
        self.0.replayed.send_replace(true);
        self.0.check_positions();
        self.0.check_pages();
    }

    fn fetch(&self, index: LogIndex) -> BoxFuture<'static, io::Result<()>> {
        Box::pin(self.0.clone().fetch_from_another(index))
    }
}
