//! Three voters on loopback.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rusqlite::Connection;

use super::{Node, PATIENCE, Settings, eventually, needs_skein, sql, within};

/// The voters; dropped before their directory is.
pub struct Voters {
    pub nodes: Vec<Node>,
    dir: tempfile::TempDir,
}

impl Voters {
    /// Three of them, running; none where nothing can be mounted here.
    pub fn three() -> Option<Self> {
        Self::start(3, true)
    }

    /// `count` of them.
    pub fn start(count: usize, passthrough: bool) -> Option<Self> {
        Self::start_below(&std::env::temp_dir(), count, passthrough)
    }

    /// As [`Self::start`], with the temporary directory below `parent`: the file system that is measured.
    pub fn start_below(parent: &std::path::Path, count: usize, passthrough: bool) -> Option<Self> {
        if !needs_skein() {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("skein-voters-").tempdir_in(parent).unwrap();
        let mut settings = Settings::primary("n1");
        settings.passthrough = passthrough;
        let mut first = Node::new(dir.path(), settings);
        first.must_start();
        let mut voters = Self { nodes: vec![first], dir };
        for _ in 1..count {
            voters.add();
        }
        // An even one waits until there is another.
        voters.wait_voting(count - usize::from(count.is_multiple_of(2)));
        Some(voters)
    }

    /// Nodes that are voters of one cluster already; `dir` is where they live.
    pub fn of(nodes: Vec<Node>, dir: tempfile::TempDir) -> Self {
        Self { nodes, dir }
    }

    /// One more voter.
    pub fn add(&mut self) -> usize {
        let mut settings = Settings::primary(&format!("n{}", self.nodes.len() + 1));
        settings.bootstrap = false;
        settings.passthrough = self.nodes[0].settings.passthrough;
        settings.join = self.nodes.iter().map(|node| node.listen).collect();
        let mut node = Node::new(self.dir.path(), settings);
        node.must_start();
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// One more node, a replica.
    pub fn add_replica(&mut self) -> usize {
        let settings = Settings::replica(&format!("n{}", self.nodes.len() + 1), self.nodes[0].listen);
        let mut node = Node::new(self.dir.path(), settings);
        node.must_start();
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Where the nodes' directories are.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// Waits until the primary counts this many voters, all of them healthy.
    pub fn wait_voting(&self, count: usize) {
        eventually("all voters vote", || {
            let status = self.nodes[self.primary()].status().ok()?;
            let members = status["members"].as_array()?;
            let voting = members.iter().filter(|m| m["standing"] == "votes" && m["healthy"] == true);
            (voting.count() == count).then_some(())
        });
    }

    /// Which running node says that it is primary itself; one that was stopped cannot say anything.
    pub fn primary(&self) -> usize {
        self.primary_among(&(0..self.nodes.len()).collect::<Vec<_>>())
    }

    /// The same among some of them.
    pub fn primary_among(&self, some: &[usize]) -> usize {
        let found = within(PATIENCE, || {
            some.iter().copied().find(|which| {
                let node = &self.nodes[*which];
                // Missing on the primary, and where nothing is mounted.
                let alone = node.pid_if_running().is_some() && !node.path(".primary").exists();
                alone && node.status().is_ok_and(|status| status["primary"]["name"] == node.settings.name)
            })
        });
        found.unwrap_or_else(|| panic!("nobody is primary"))
    }

    /// Moves the primary as planned.
    pub fn hand_to(&self, to: usize) {
        let name = &self.nodes[to].settings.name;
        self.nodes[to].must_client(&["handoff", name]);
        assert_eq!(self.primary(), to);
    }

    /// Any node that is not primary.
    pub fn follower(&self) -> usize {
        let primary = self.primary();
        (0..self.nodes.len()).find(|which| *which != primary).expect("there are several")
    }

    /// Sends a signal to a node's process.
    pub fn signal(&self, which: usize, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.nodes[which].pid()).expect("pids are small")), signal).unwrap();
    }

    /// Opens a database on a node's mount as soon as it is there.
    pub fn open(&self, which: usize, db: &str) -> Connection {
        let path = self.nodes[which].path(db);
        eventually("the database is there", || path.exists().then_some(()));
        sql::open(&path)
    }

    /// Waits until all nodes export the same bytes, and gives them.
    pub fn same_bytes(&self, db: &str) -> Vec<u8> {
        let mut seen = Vec::new();
        let same = within(PATIENCE, || {
            seen = self.nodes.iter().map(|node| node.pos(db)).collect();
            let first = self.nodes[0].export(db).ok()?;
            self.nodes.iter().all(|node| node.export(db).as_ref() == Ok(&first)).then_some(first)
        });
        same.unwrap_or_else(|| panic!("{db} differs: {seen:?}"))
    }

    /// Writes until somebody takes it; the node, and how long that took.
    pub fn first_write(&self, db: &str, statement: &str, some: &[usize]) -> (usize, Duration) {
        let start = Instant::now();
        let connections: Vec<_> = some.iter().map(|which| (*which, self.open(*which, db))).collect();
        for (_, connection) in &connections {
            connection.busy_timeout(Duration::from_millis(20)).unwrap();
        }
        let which = within(PATIENCE, || {
            connections.iter().find(|(_, c)| c.execute_batch(statement).is_ok()).map(|(which, _)| *which)
        });
        (which.expect("nobody takes a write"), start.elapsed())
    }
}
