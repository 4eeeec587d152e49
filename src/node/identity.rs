use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, mpsc};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::NodeError;
use crate::io::durable;
use crate::mount::MountMark;
use crate::store::Layout;
use crate::types::{NodeId, NodeName, Role};

/// Version of the data directory that this program writes; newer ones are refused.
pub const FORMAT_VERSION: u32 = 1;

/// How long a start waits for the lock of the data directory.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);

/// Who a node is for life: the content of `node.toml`.
///
/// | key | meaning |
/// |---|---|
/// | `format_version` | version of the data directory, 1 |
/// | `node` | the node's number, 16 hex digits, drawn at random, never reused |
/// | `name` | the operator's name for it at the last start |
/// | `role` | `voter` or `replica` |
/// | `cluster` | the cluster's id, 32 hex digits; missing until it is known |
/// | `former` | ids of the clusters it was in before `skein recover`; missing where there are none |
/// | `starts` | how often the node was started, see `raft::Incarnation` |
/// | `founding` | true from drawing a new cluster's id until its log exists |
/// | `promised` | number of the node whose cluster this one has promised to join, and no other's; missing without promise |
/// | `fuse_connection` | number of the last mount's FUSE connection |
/// | `mount_point` | directory of the last mount |
/// | `boot_id`, `inode_place` | what tells the last mount from a later one with its number: see [`MountMark`] |
/// | `follows` | HOST:PORT of the nodes that a replica followed or could have followed last |
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeIdentity {
    /// The node's number.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// What it is in its cluster.
    pub role: Role,
    /// Its cluster; `None` before it has one.
    pub cluster: Option<String>,
    /// The clusters it was in before it was made the only voter of another one: their nodes are refused.
    pub former: Vec<String>,
    /// Whether the cluster is being founded: its id is drawn, its log may not exist yet.
    pub founding: bool,
    /// The founder whose cluster it has promised to join, see `super::founding`.
    pub promised: Option<NodeId>,
    /// How often the node was started, this time included.
    pub starts: u64,
    /// A random number of this start, not stored.
    pub run: u64,
    /// The FUSE connection of the last run and where it was mounted.
    pub last_mount: Option<(u64, PathBuf)>,
    /// What tells that mount from others; `None` of a version that noted none.
    pub last_mark: Option<MountMark>,
    /// HOST:PORT of the nodes a replica followed, or could have followed, when it last ran; the last one first.
    pub follows: Vec<String>,
}

/// A data directory that no other daemon can use meanwhile.
#[derive(Debug)]
pub struct DataDir {
    layout: Layout,
    lock: Flock<File>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    format_version: u32,
    node: String,
    name: String,
    role: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    former: Vec<String>,
    #[serde(default)]
    starts: u64,
    #[serde(default)]
    founding: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    promised: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fuse_connection: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mount_point: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inode_place: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    follows: Vec<String>,
}

impl DataDir {
    /// Locks the directory, making it where it is missing.
    ///
    /// # Errors
    /// Where another daemon has it, or it holds something that is not a node's data.
    pub fn open(root: &Path) -> Result<Self, NodeError> {
        let data = |why: String| NodeError::Data { path: root.to_owned(), why };
        fs::create_dir_all(root).map_err(|e| data(format!("cannot be made: {e}; choose another --data")))?;
        // The directory itself carries the lock: no file of its own has to be made in a directory of something else.
        let dir = File::open(root).map_err(|e| data(format!("cannot be opened: {e}")))?;
        let lock = match lock_soon(dir) {
            Ok(Ok(lock)) => lock,
            Ok(Err(errno)) => {
                return Err(data(format!("cannot be locked: {errno}; use a local file system")));
            }
            Err(_) => {
                return Err(data(
                    "is in use by another skein daemon; stop that one, or choose another --data".into(),
                ));
            }
        };
        let layout = Layout::new(root.to_owned());
        if !layout.node_toml().exists()
            && !is_vacant(root).map_err(|e| data(format!("cannot be read: {e}")))?
        {
            return Err(data(
                "is not empty and has no node.toml, so it belongs to something else; choose an empty directory".into(),
            ));
        }
        Ok(Self { layout, lock })
    }

    /// The lock of the directory: who keeps this open keeps the directory locked, also when this process dies.
    ///
    /// # Errors
    /// Where no more files can be opened.
    pub fn share_lock(&self) -> std::io::Result<File> {
        self.lock.try_clone()
    }

    /// Names of everything in the directory.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The identity of the node that lives here; `None` in a new directory.
    ///
    /// # Errors
    /// Where `node.toml` is damaged, or written by a newer program.
    pub fn identity(&self) -> Result<Option<NodeIdentity>, NodeError> {
        identity_in(self.layout.root())
    }

    /// Stores the identity durably.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn save(&self, identity: &NodeIdentity) -> Result<(), NodeError> {
        let path = self.layout.node_toml();
        durable::write_atomic(&path, encode(identity).as_bytes())
            .map_err(|e| NodeError::Identity { path, why: format!("cannot be written: {e}") })
    }
}

/// The identity of the node that lives in `root`, whether it runs or not; `None` where none does.
///
/// # Errors
/// Where `node.toml` cannot be read, is damaged, or written by a newer program.
pub(super) fn identity_in(root: &Path) -> Result<Option<NodeIdentity>, NodeError> {
    let path = Layout::new(root.to_owned()).node_toml();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(NodeError::Identity { path, why: format!("cannot be read: {e}") }),
    };
    decode(&text).map(Some).map_err(|why| NodeError::Identity { path, why })
}

/// The identity together with its file.
#[derive(Debug)]
pub struct IdentityFile {
    data: DataDir,
    identity: Mutex<NodeIdentity>,
}

impl IdentityFile {
    /// Stores `identity` as that of the node in `data`.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn new(data: DataDir, identity: NodeIdentity) -> Result<Self, NodeError> {
        let root = data.layout.root();
        durable::remove_temporaries(root).map_err(|e| NodeError::Data {
            path: root.to_owned(),
            why: format!("holds files of an interrupted write that cannot be removed: {e}"),
        })?;
        data.save(&identity)?;
        Ok(Self { data, identity: Mutex::new(identity) })
    }

    /// See [`DataDir::share_lock`].
    ///
    /// # Errors
    /// Where no more files can be opened.
    pub fn share_lock(&self) -> std::io::Result<File> {
        self.data.share_lock()
    }

    /// Names of everything in the data directory.
    pub fn layout(&self) -> &Layout {
        self.data.layout()
    }

    /// The identity as it is now.
    pub fn get(&self) -> NodeIdentity {
        self.lock().clone()
    }

    /// Changes the identity, durably.
    ///
    /// # Errors
    /// Where the file cannot be written; the identity then stays as it was.
    pub fn update(&self, change: impl FnOnce(&mut NodeIdentity)) -> Result<(), NodeError> {
        let mut identity = self.lock();
        let mut changed = identity.clone();
        change(&mut changed);
        if changed != *identity {
            self.data.save(&changed)?;
            *identity = changed;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, NodeIdentity> {
        self.identity.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl NodeIdentity {
    /// A new node, not yet in a cluster.
    ///
    /// # Errors
    /// Where the system has no random numbers.
    pub fn draw(name: NodeName, role: Role) -> Result<Self, NodeError> {
        // 0 is LTX's "unknown node".
        let node = NodeId::new(u64::from_be_bytes(random()?).max(1));
        let (last_mount, last_mark) = (None, None);
        Ok(Self {
            node,
            name,
            role,
            cluster: None,
            former: Vec::new(),
            founding: false,
            promised: None,
            starts: 0,
            run: 0,
            last_mount,
            last_mark,
            follows: Vec::new(),
        })
    }

    /// Counts this start.
    ///
    /// # Errors
    /// Where the system has no random numbers.
    pub fn begin_start(&mut self) -> Result<(), NodeError> {
        self.starts += 1;
        self.run = u64::from_be_bytes(random()?);
        Ok(())
    }
}

/// A new cluster's id: 32 hex digits.
///
/// # Errors
/// Where the system has no random numbers.
pub fn draw_cluster_id() -> Result<String, NodeError> {
    Ok(format!("{:032x}", u128::from_be_bytes(random()?)))
}

/// Takes the lock, waiting a little: a daemon that was killed may be on its way out.
fn lock_soon(dir: File) -> Result<Result<Flock<File>, nix::errno::Errno>, mpsc::RecvTimeoutError> {
    let (sender, locked) = mpsc::channel();
    // Where it comes too late nobody receives the lock, and it is let go.
    std::thread::spawn(move || sender.send(Flock::lock(dir, FlockArg::LockExclusive).map_err(|(_, e)| e)));
    locked.recv_timeout(LOCK_WAIT_MAX)
}

fn random<const N: usize>() -> Result<[u8; N], NodeError> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|e| NodeError::System(format!("reading random numbers from /dev/urandom: {e}")))?;
    Ok(bytes)
}

/// Whether the directory has nothing but what a file system or a write cut short puts there.
fn is_vacant(dir: &Path) -> std::io::Result<bool> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let leftover = durable::is_temporary(&name.to_string_lossy()) && entry.file_type()?.is_file();
        if name != "lost+found" && !leftover {
            return Ok(false);
        }
    }
    Ok(true)
}

fn encode(identity: &NodeIdentity) -> String {
    let (fuse_connection, mount_point) = identity.last_mount.clone().unzip();
    let record = Record {
        format_version: FORMAT_VERSION,
        node: identity.node.to_string(),
        name: identity.name.to_string(),
        role: identity.role.to_string(),
        cluster: identity.cluster.clone(),
        former: identity.former.clone(),
        starts: identity.starts,
        founding: identity.founding,
        promised: identity.promised.map(|node| node.to_string()),
        fuse_connection,
        mount_point,
        boot_id: identity.last_mark.as_ref().map(|mark| mark.boot_id.clone()),
        inode_place: identity.last_mark.as_ref().map(|mark| mark.place),
        follows: identity.follows.clone(),
    };
    let body = toml::to_string(&record).expect("an identity is plain data");
    format!("# Identity of a Skein node. Do not edit, and do not copy to another node.\n{body}")
}

fn decode(text: &str) -> Result<NodeIdentity, String> {
    let damaged =
        |what: &str| format!("is damaged ({what}); restore it, or start over with an empty data directory");
    let table: toml::Table = text.parse().map_err(|_| damaged("no TOML"))?;
    // The version comes first: other keys of a newer version need not mean what they mean here.
    match table.get("format_version").and_then(toml::Value::as_integer) {
        Some(version) if version > i64::from(FORMAT_VERSION) => {
            return Err(format!(
                "has format version {version}, and this program knows versions up to {FORMAT_VERSION}; use a newer skein"
            ));
        }
        Some(1) => {}
        _ => return Err(damaged("format_version")),
    }
    let record: Record = table.try_into().map_err(|e: toml::de::Error| damaged(e.message().trim()))?;
    let node = (record.node.len() == 16).then(|| u64::from_str_radix(&record.node, 16).ok()).flatten();
    let promised =
        record.promised.map(|number| u64::from_str_radix(&number, 16).map_err(|_| damaged("promised")));
    let last_mark = record.boot_id.zip(record.inode_place);
    let last_mount = record.fuse_connection.zip(record.mount_point);
    Ok(NodeIdentity {
        node: NodeId::new(node.ok_or_else(|| damaged("node"))?),
        name: record.name.parse().map_err(|_| damaged("name"))?,
        role: record.role.parse().map_err(|_| damaged("role"))?,
        cluster: record.cluster,
        former: record.former,
        starts: record.starts,
        run: 0,
        founding: record.founding,
        promised: promised.transpose()?.map(NodeId::new),
        last_mount,
        last_mark: last_mark.map(|(boot_id, place)| MountMark { boot_id, place }),
        follows: record.follows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> NodeIdentity {
        NodeIdentity {
            cluster: Some(draw_cluster_id().unwrap()),
            last_mount: Some((51, "/mnt/a b".into())),
            last_mark: Some(MountMark { boot_id: "b-1".into(), place: 77 }),
            follows: vec!["10.0.0.1:20203".into(), "[::1]:20203".into()],
            ..NodeIdentity::draw("n1".parse().unwrap(), Role::Replica).unwrap()
        }
    }

    #[test]
    fn an_identity_survives_a_restart_and_is_drawn_anew_for_another_node() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(&dir.path().join("new/data")).unwrap();
        assert_eq!(data.identity().unwrap(), None);
        let identity = sample();
        data.save(&identity).unwrap();
        drop(data);
        let data = DataDir::open(&dir.path().join("new/data")).unwrap();
        assert_eq!(data.identity().unwrap(), Some(identity.clone()));
        assert_ne!(sample().node, identity.node);
        assert_ne!(sample().cluster, identity.cluster);
    }

    #[test]
    fn two_daemons_cannot_share_a_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let refusal = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(refusal.contains("in use by another skein daemon"), "{refusal}");
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_directory_of_something_else_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("PG_VERSION"), "17").unwrap();
        let refusal = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(refusal.contains("belongs to something else"), "{refusal}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_fresh_file_system_is_vacant() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_newer_format_is_refused_with_the_remedy() {
        let text = encode(&sample()).replace("format_version = 1", "format_version = 2");
        let refusal = decode(&text).unwrap_err();
        assert!(refusal.contains("version 2") && refusal.contains("newer skein"), "{refusal}");
    }

    #[test]
    fn damage_is_told_apart_from_a_newer_format() {
        let good = encode(&sample());
        for text in [
            String::new(),
            "garbage".into(),
            good.replace("node = ", "nod = "),
            good.replace("replica", "king"),
            good.replace("format_version = 1", "format_version = \"x\""),
        ] {
            let refusal = decode(&text).unwrap_err();
            assert!(refusal.contains("damaged"), "{refusal}");
        }
    }
}
