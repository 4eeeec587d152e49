//! Three nodes below one temporary directory, each in its own network namespace.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::netns::{Namespace, Network};
use crate::harness::{self, Node, PATIENCE, Settings, http, within};

const LISTEN: u16 = 20203;
const HTTP: u16 = 20202;
/// Lines of each node's log that are shown after a failure.
const LAST_LINES: usize = 30;

/// Who votes: all three, or only the one that founded the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    ThreeVoters,
    OneVoterTwoReplicas,
}

/// A node and where it is in the network.
struct Placed {
    node: Node,
    at: Namespace,
    is_paused: bool,
}

/// How others reach a node's HTTP, from any thread and whatever becomes of the node.
#[derive(Clone, Debug)]
pub struct Door {
    pub name: String,
    at: Namespace,
    http: SocketAddr,
}

impl Door {
    /// Does something with the node's address, inside its namespace: no cut comes between.
    pub fn inside<T: Send>(&self, act: impl FnOnce(SocketAddr) -> T + Send) -> T {
        self.at.inside(|| act(self.http))
    }
}

/// The nodes; dropped before their network is, and that before their directory.
pub struct Nodes {
    placed: Vec<Placed>,
    pub network: Network,
    dir: tempfile::TempDir,
}

impl Nodes {
    /// Starts the cluster; none, said aloud, where it cannot be had here.
    pub fn start(shape: Shape, passthrough: bool) -> Option<Self> {
        if !harness::needs_skein() {
            return None;
        }
        let network = Network::new(3)?;
        let dir = tempfile::Builder::new().prefix("skein-cluster-").tempdir().unwrap();
        let mut nodes = Self { placed: Vec::new(), network, dir };
        let founder = SocketAddr::new(IpAddr::V4(nodes.network.nodes[0].address), LISTEN);
        for index in 0..nodes.network.nodes.len() {
            let name = format!("n{}", index + 1);
            let settings = match (index, shape) {
                (0, _) => Settings::primary(&name),
                (_, Shape::ThreeVoters) => Settings { role: "voter", ..Settings::replica(&name, founder) },
                (_, Shape::OneVoterTwoReplicas) => Settings::replica(&name, founder),
            };
            let at = nodes.network.nodes[index].clone();
            let extra = vec!["--insecure".to_owned()];
            let mut settings = Settings { passthrough, extra, ..settings };
            settings.env.extend(nodes.clock(index));
            nodes.set_clock(index, 0);
            let mut node = Node::new(nodes.dir.path(), settings);
            (node.listen, node.http) =
                (SocketAddr::new(at.address.into(), LISTEN), SocketAddr::new(at.address.into(), HTTP));
            nodes.placed.push(Placed { node, at, is_paused: false });
            nodes.start_again(&[index]).unwrap_or_else(|error| panic!("{error}"));
        }
        Some(nodes)
    }

    /// The environment in which a daemon's wall clock is what [`Self::set_clock`] says; its monotonic clock is the
    /// machine's, as when an operator or NTP sets the time. None, said aloud, where the library for it is missing.
    fn clock(&self, index: usize) -> Vec<(String, String)> {
        let Some(library) = harness::find_library("faketime/libfaketimeMT.so.1") else {
            harness::skip("clocks do not jump: no libfaketime (package faketime)");
            return Vec::new();
        };
        let file = self.clock_file(index);
        [
            ("LD_PRELOAD", library.as_path()),
            ("FAKETIME_TIMESTAMP_FILE", &file),
            ("FAKETIME_CACHE_DURATION", Path::new("1")),
            ("FAKETIME_DONT_FAKE_MONOTONIC", Path::new("1")),
            ("FAKETIME_DISABLE_SHM", Path::new("1")),
            ("NO_FAKE_STAT", Path::new("1")),
        ]
        .map(|(key, value)| (key.to_owned(), value.display().to_string()))
        .into()
    }

    fn clock_file(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("clock-{index}"))
    }

    /// Sets a node's clock so many seconds off; it takes a second to be noticed.
    pub fn set_clock(&self, index: usize, seconds: i64) {
        std::fs::write(self.clock_file(index), format!("{seconds:+}\n")).unwrap();
    }

    /// The end of what each daemon said, without what it says of every refused write.
    pub fn last_words(&self) -> String {
        let mut said = String::new();
        for Placed { node, .. } in &self.placed {
            let log = node.log();
            let lines: Vec<_> =
                log.lines().filter(|line| !line.contains("this node is not primary")).collect();
            said += &format!("\n{}:", node.settings.name);
            for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
                said += &format!("\n    {line}");
            }
        }
        said
    }

    /// Leaves everything where it is when the nodes have ended.
    pub fn keep_directory(&mut self) {
        self.dir.disable_cleanup(true);
        eprintln!("kept: {}", self.dir.path().display());
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.placed.len()
    }

    /// Where records of the test may be kept.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A node's name.
    pub fn name(&self, index: usize) -> &str {
        &self.placed[index].node.settings.name
    }

    /// A path on a node's mount.
    pub fn path(&self, index: usize, db: &str) -> PathBuf {
        self.placed[index].node.path(db)
    }

    /// The change sets that a node has dropped and kept.
    pub fn discarded(&self, index: usize) -> Vec<PathBuf> {
        let kept = std::fs::read_dir(self.placed[index].node.data().join("discarded"));
        let paths = kept.into_iter().flatten().flatten().map(|entry| entry.path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "ltx")).collect()
    }

    /// Starts nodes that do not run, side by side: two voters may need one another.
    ///
    /// # Errors
    /// Where one does not come up.
    pub fn start_again(&mut self, wanted: &[usize]) -> Result<(), String> {
        let chosen = self.placed.iter_mut().enumerate().filter(|(index, _)| wanted.contains(index));
        std::thread::scope(|scope| {
            let start = |placed: &'_ mut Placed| {
                let Placed { node, at, .. } = placed;
                at.inside(|| node.start())
            };
            let starting: Vec<_> = chosen.map(|(_, placed)| scope.spawn(move || start(placed))).collect();
            let ended: Vec<_> =
                starting.into_iter().map(|one| one.join().expect("starting does not panic")).collect();
            ended.into_iter().collect()
        })
    }

    /// Kills a daemon as a power cut would.
    pub fn kill9(&mut self, index: usize) {
        self.placed[index].node.kill9();
    }

    /// Ends a daemon in order.
    ///
    /// # Errors
    /// Where it ends with an error.
    pub fn terminate(&mut self, index: usize) -> Result<(), String> {
        let node = &mut self.placed[index].node;
        match node.terminate() {
            Some(status) if status.success() => Ok(()),
            status => Err(format!("{} ended with {status:?} after SIGTERM", node.settings.name)),
        }
    }

    /// Stops a daemon where it stands (SIGSTOP); it knows nothing of the time until [`Self::resume`].
    pub fn pause(&mut self, index: usize) {
        kill(self.pid(index), Signal::SIGSTOP).unwrap();
        self.placed[index].is_paused = true;
    }

    /// Lets a daemon go on.
    pub fn resume(&mut self, index: usize) {
        kill(self.pid(index), Signal::SIGCONT).unwrap();
        self.placed[index].is_paused = false;
    }

    fn pid(&self, index: usize) -> Pid {
        Pid::from_raw(i32::try_from(self.placed[index].node.pid()).expect("pids are small"))
    }

    /// Nodes whose daemon has ended though nobody ended it.
    pub fn fallen(&mut self, expected: &[usize]) -> Vec<String> {
        let running = self.placed.iter_mut().enumerate().filter(|(index, _)| expected.contains(index));
        running
            .filter_map(|(_, placed)| (!placed.node.is_running()).then(|| placed.node.settings.name.clone()))
            .collect()
    }

    /// The way to a node's HTTP.
    pub fn door(&self, index: usize) -> Door {
        let Placed { node, at, .. } = &self.placed[index];
        Door { name: node.settings.name.clone(), at: at.clone(), http: node.http }
    }

    /// `GET /v1/status` of a node.
    pub fn status(&self, index: usize) -> Result<Value, String> {
        self.door(index).inside(|address| http::get_json(address, "/v1/status"))
    }

    /// The one of `among` that calls itself primary and that all of them call primary.
    ///
    /// # Errors
    /// Where there is none within `limit`; says what each node said last.
    pub fn wait_for_primary(&self, among: &[usize], limit: Duration) -> Result<usize, String> {
        let mut said = Vec::new();
        let found = within(limit, || {
            said = among
                .iter()
                .map(|index| self.status(*index).map(|status| status["primary"]["name"].clone()))
                .collect();
            among.iter().copied().find(|index| {
                said.iter().all(|named| named.as_ref().is_ok_and(|name| name == self.name(*index)))
            })
        });
        let names: Vec<_> = among.iter().map(|index| self.name(*index)).collect();
        found.ok_or_else(|| format!("no primary among {names:?} within {limit:?}; they say {said:?}"))
    }

    /// Waits until all nodes export the same bytes of a database, and gives them.
    ///
    /// # Errors
    /// Where they do not; says which positions they name.
    pub fn same_bytes(&self, db: &str) -> Result<Vec<u8>, String> {
        let all = 0..self.len();
        let same = within(PATIENCE, || {
            let positions: Vec<_> = all.clone().map(|index| self.pos(index, db)).collect();
            if positions[0].is_err() || positions.iter().any(|pos| *pos != positions[0]) {
                return None;
            }
            let first = self.export(0, db).ok()?;
            all.clone().skip(1).all(|index| self.export(index, db).as_ref() == Ok(&first)).then_some(first)
        });
        same.ok_or_else(|| {
            let said: Vec<_> = all.map(|index| (self.name(index), self.pos(index, db))).collect();
            format!("{db} did not converge within {PATIENCE:?}: {said:?}")
        })
    }

    /// What a node's status says of a database: TXID and checksum.
    fn pos(&self, index: usize, db: &str) -> Result<(String, String), String> {
        let status = self.status(index)?;
        let found = status["databases"].as_array().into_iter().flatten().find(|entry| entry["name"] == db);
        let word = |key: &str| found.and_then(|entry| entry[key].as_str()).map(str::to_owned);
        word("txid").zip(word("checksum")).ok_or_else(|| format!("no {db}"))
    }

    fn export(&self, index: usize, db: &str) -> Result<Vec<u8>, String> {
        let node = &self.placed[index].node;
        self.placed[index].at.inside(|| node.export(db))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for index in 0..self.len() {
            if self.placed[index].is_paused {
                self.resume(index);
            }
        }
        // A dead daemon's mount answers nobody: whoever waits for it gets an error from here on. Nothing else of this
        // machine's mounts is touched.
        for placed in &mut self.placed {
            placed.node.kill9();
            let _ = umount2(&placed.node.mount(), MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW);
        }
    }
}
