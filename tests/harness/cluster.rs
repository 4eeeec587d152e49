//! A primary and its replicas below one temporary directory.

use std::path::PathBuf;
use std::time::Duration;

use super::{Node, PATIENCE, Settings, can_mount, eventually, http, is_plain};

/// What a test asks of its cluster.
#[derive(Clone, Debug)]
pub struct Options {
    pub replicas: usize,
    pub passthrough: bool,
    /// Environment of every node.
    pub env: Vec<(String, String)>,
    /// Data directory of the primary, where it is not below the cluster's own.
    pub primary_data: Option<PathBuf>,
    /// Data directory of the first replica, likewise.
    pub replica_data: Option<PathBuf>,
}

impl Options {
    /// `replicas` replicas, passthrough where the kernel has it.
    pub fn replicas(replicas: usize) -> Self {
        Self { replicas, passthrough: true, env: Vec::new(), primary_data: None, replica_data: None }
    }

    /// The same without passthrough.
    pub fn without_passthrough(mut self) -> Self {
        self.passthrough = false;
        self
    }
}

/// The nodes; dropped before their directory is.
pub struct Cluster {
    pub primary: Node,
    pub replicas: Vec<Node>,
    dir: tempfile::TempDir,
}

impl Cluster {
    /// A primary and `n` replicas, running; none where nothing can be mounted here.
    pub fn primary_and_replicas(n: usize) -> Option<Self> {
        Self::start(&Options::replicas(n))
    }

    /// As [`Self::primary_and_replicas`], with everything to choose.
    pub fn start(options: &Options) -> Option<Self> {
        Self::start_below(&std::env::temp_dir(), options)
    }

    /// As [`Self::start`], with the temporary directory below `parent`: the file system that is measured.
    pub fn start_below(parent: &std::path::Path, options: &Options) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("skein-test-").tempdir_in(parent).unwrap();
        let mut settings = Settings::primary("n1");
        settings.passthrough = options.passthrough;
        settings.env.clone_from(&options.env);
        settings.data.clone_from(&options.primary_data);
        let mut primary = Node::new(dir.path(), settings);
        primary.must_start();
        let mut cluster = Self { primary, replicas: Vec::new(), dir };
        for number in 0..options.replicas {
            let mut settings = cluster.replica_settings();
            settings.data = options.replica_data.clone().filter(|_| number == 0);
            cluster.add_node(settings);
        }
        Some(cluster)
    }

    /// Where the nodes' directories are.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Settings of one more replica.
    pub fn replica_settings(&self) -> Settings {
        let name = format!("r{}", self.replicas.len() + 1);
        let mut settings = Settings::replica(&name, self.primary.listen);
        settings.passthrough = self.primary.settings.passthrough;
        settings.env.clone_from(&self.primary.settings.env);
        settings.mount = is_plain().then(|| self.primary.mount());
        settings
    }

    /// Starts one more replica.
    pub fn add_replica(&mut self) -> &mut Node {
        self.add_node(self.replica_settings())
    }

    fn add_node(&mut self, settings: Settings) -> &mut Node {
        let mut node = Node::new(self.dir.path(), settings);
        node.must_start();
        self.replicas.push(node);
        self.replicas.last_mut().expect("just pushed")
    }

    /// Waits until every replica has what the primary's status names for `db` now, and the checksums agree.
    pub fn converge(&self, db: &str) {
        for replica in &self.replicas {
            self.converge_one(db, replica);
        }
    }

    /// As [`Self::converge`], for one replica.
    pub fn converge_one(&self, db: &str, replica: &Node) {
        if is_plain() {
            return;
        }
        let (txid, _) = eventually("the primary's status names the database", || self.primary.pos(db));
        wait(replica, db, &txid, PATIENCE)
            .unwrap_or_else(|error| panic!("{}: {error}", replica.settings.name));
        let mut seen = (None, None);
        let equal = super::within(PATIENCE, || {
            seen = (self.primary.pos(db), replica.pos(db));
            (seen.0.is_some() && seen.0 == seen.1).then_some(())
        });
        assert!(equal.is_some(), "{db}: primary at {:?}, {} at {:?}", seen.0, replica.settings.name, seen.1);
    }

    /// Waits until all nodes export the same bytes, and gives them.
    pub fn same_bytes(&self, db: &str) -> Vec<u8> {
        self.converge(db);
        eventually("all nodes export the same bytes", || {
            let bytes = self.primary.export(db).ok()?;
            self.replicas.iter().all(|node| node.export(db).as_ref() == Ok(&bytes)).then_some(bytes)
        })
    }
}

/// `GET /v1/databases/{db}/wait`: until `node` has `txid`.
pub fn wait(node: &Node, db: &str, txid: &str, limit: Duration) -> Result<(), String> {
    let path =
        format!("/v1/databases/{}/wait?txid={txid}&timeout_ms={}", http::encode(db), limit.as_millis());
    let reply = http::request(node.http, "GET", &path, &[])?;
    if (200..300).contains(&reply.status) {
        Ok(())
    } else {
        Err(format!("{path}: {} {}", reply.status, reply.text()))
    }
}
