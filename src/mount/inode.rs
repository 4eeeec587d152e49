//! Inode numbers: which file each stands for, while the kernel knows it, and how it is open.
//!
//! Locks live on the kernel's inode, so one file must never have two numbers, and a file made again must never get
//! the number of its predecessor. Numbers are never reused.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use fuser::BackingId;

use super::names::Target;
use super::tree::Incarnation;

/// Number of the mount's root.
pub(super) const ROOT: u64 = 1;

/// All inodes the kernel knows.
pub(super) struct Inodes(Mutex<Table>);

struct Table {
    nodes: HashMap<u64, Node>,
    by_target: HashMap<Target, u64>,
    next: u64,
}

struct Node {
    target: Target,
    incarnation: Option<Incarnation>,
    lookups: u64,
    /// Open handles that the kernel counts as cached or passed through.
    opens: u32,
    backing: Option<Arc<BackingId>>,
    /// The last of them: while a handle has it open, the kernel takes no other one for the inode.
    last_backing: Weak<BackingId>,
    /// Moves when the content changes behind the kernel's page cache.
    generation: u64,
    /// The generation the kernel's page cache is of.
    cached: Option<u64>,
}

/// What an inode number stands for now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Known {
    /// The file.
    pub target: Target,
    /// Which file of that name it was, `None` for control files.
    pub incarnation: Option<Incarnation>,
    /// Whether it is open with passthrough.
    pub passthrough: bool,
}

/// How a file is to be opened.
#[derive(Debug)]
pub(super) struct Opening {
    /// The backing file the kernel shall use; `None`: it reads and writes through the daemon and caches.
    pub backing: Option<Arc<BackingId>>,
    /// What the kernel has cached is still right.
    pub keep_cache: bool,
}

impl Inodes {
    /// Knows the root only; the numbers of all others begin at `first`.
    pub fn new(first: u64) -> Self {
        let root = Target::Directory(String::new());
        let nodes = HashMap::from([(ROOT, Node::new(root.clone(), None, 1))]);
        Self(Mutex::new(Table { nodes, by_target: HashMap::from([(root, ROOT)]), next: first }))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The number of a file that was found, counting one lookup by the kernel.
    pub fn looked_up(&self, target: &Target, incarnation: Option<Incarnation>) -> u64 {
        let mut table = self.lock();
        if let Some(&ino) = table.by_target.get(target)
            && let Some(node) = table.nodes.get_mut(&ino)
            && node.incarnation == incarnation
        {
            node.lookups += 1;
            return ino;
        }
        let ino = table.next;
        table.next += 1;
        table.nodes.insert(ino, Node::new(target.clone(), incarnation, 1));
        table.by_target.insert(target.clone(), ino);
        ino
    }

    /// The kernel forgets `count` lookups of an inode; the last one ends it.
    pub fn forget(&self, ino: u64, count: u64) {
        let mut table = self.lock();
        let Some(node) = table.nodes.get_mut(&ino) else { return };
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups == 0 && ino != ROOT {
            let gone = table.nodes.remove(&ino).expect("it was there a moment ago, under the same lock");
            if table.by_target.get(&gone.target) == Some(&ino) {
                table.by_target.remove(&gone.target);
            }
        }
    }

    /// What a number stands for.
    pub fn get(&self, ino: u64) -> Option<Known> {
        let table = self.lock();
        let node = table.nodes.get(&ino)?;
        Some(Known {
            target: node.target.clone(),
            incarnation: node.incarnation,
            passthrough: node.backing.is_some() && node.opens > 0,
        })
    }

    /// The number of a file, if the kernel knows it.
    pub fn number(&self, target: &Target) -> Option<u64> {
        self.lock().by_target.get(target).copied()
    }

    /// The file of that name is gone: whoever has it open keeps it, the next one of that name gets a new number.
    pub fn detach(&self, target: &Target) {
        self.lock().by_target.remove(target);
    }

    /// A file has another name now, and replaces what had it.
    pub fn rename(&self, from: &Target, to: &Target) {
        let mut table = self.lock();
        table.by_target.remove(to);
        if let Some(ino) = table.by_target.remove(from) {
            if let Some(node) = table.nodes.get_mut(&ino) {
                node.target = to.clone();
            }
            table.by_target.insert(to.clone(), ino);
        }
    }

    /// A directory has another path now, and all below it with it.
    pub fn rename_directory(&self, from: &str, to: &str) {
        let mut table = self.lock();
        let below: Vec<(Target, Target)> = table
            .by_target
            .keys()
            .filter_map(|target| Some((target.clone(), target.in_renamed_directory(from, to)?)))
            .collect();
        for (old, new) in below {
            let Some(ino) = table.by_target.remove(&old) else { continue };
            if let Some(node) = table.nodes.get_mut(&ino) {
                node.target = new.clone();
            }
            table.by_target.insert(new, ino);
        }
    }

    /// Whether the file is open by anyone.
    pub fn is_open(&self, target: &Target) -> bool {
        let table = self.lock();
        table.by_target.get(target).and_then(|ino| table.nodes.get(ino)).is_some_and(|node| node.opens > 0)
    }

    /// Decides how one more handle of an inode is opened. `connect` makes the one backing reference of an inode; it
    /// is called where passthrough is wanted and not forbidden by a cached handle. End it with
    /// [`close`](Self::close).
    ///
    /// The kernel refuses passthrough and cached handles of one inode at the same time (fs/fuse/iomode.c), so the
    /// first handle decides until the last is closed.
    pub fn open(&self, ino: u64, connect: Option<impl FnOnce() -> io::Result<BackingId>>) -> Opening {
        let mut table = self.lock();
        let Some(node) = table.nodes.get_mut(&ino) else {
            return Opening { backing: None, keep_cache: false };
        };
        if node.opens == 0 {
            node.backing = None;
            if let Some(connect) = connect {
                let last = node.last_backing.upgrade();
                match last.map_or_else(|| connect().map(Arc::new), Ok) {
                    Ok(backing) => {
                        node.last_backing = Arc::downgrade(&backing);
                        node.backing = Some(backing);
                    }
                    Err(error) => tracing::warn!("no passthrough for {}: {error}", node.target.path()),
                }
            }
        }
        node.opens += 1;
        if let Some(backing) = &node.backing {
            // What is written past the page cache makes it stale.
            node.generation += 1;
            return Opening { backing: Some(backing.clone()), keep_cache: false };
        }
        let keep_cache = node.cached == Some(node.generation);
        node.cached = Some(node.generation);
        Opening { backing: None, keep_cache }
    }

    /// The backing reference of an inode that is open with passthrough, if only by handles that
    /// [`open`](Self::open) did not count: whoever opens it must use it too.
    pub fn backing(&self, ino: u64) -> Option<Arc<BackingId>> {
        self.lock().nodes.get(&ino)?.last_backing.upgrade()
    }

    /// A handle that [`open`](Self::open) counted is released.
    pub fn close(&self, ino: u64) {
        if let Some(node) = self.lock().nodes.get_mut(&ino) {
            node.opens = node.opens.saturating_sub(1);
            if node.opens == 0 {
                node.backing = None;
            }
        }
    }

    /// The content changed behind the kernel: the next open must not trust its cache. Returns the number, if known.
    pub fn content_changed(&self, target: &Target) -> Option<u64> {
        let mut table = self.lock();
        let ino = *table.by_target.get(target)?;
        table.nodes.get_mut(&ino)?.generation += 1;
        Some(ino)
    }
}

impl Node {
    fn new(target: Target, incarnation: Option<Incarnation>, lookups: u64) -> Self {
        Self {
            target,
            incarnation,
            lookups,
            opens: 0,
            backing: None,
            last_backing: Weak::new(),
            generation: 0,
            cached: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::FileKind;
    use crate::types::DbName;

    fn target(name: &str) -> Target {
        Target::File(DbName::new(name).unwrap(), FileKind::Database)
    }

    fn incarnation() -> Option<Incarnation> {
        let file = tempfile::NamedTempFile::new().unwrap();
        Some(Incarnation::of(&file.as_file().metadata().unwrap()))
    }

    fn open(inodes: &Inodes, ino: u64) -> Opening {
        inodes.open(ino, None::<fn() -> io::Result<BackingId>>)
    }

    #[test]
    fn two_lookups_of_a_file_give_one_number_until_the_last_is_forgotten() {
        let (inodes, file) = (Inodes::new(ROOT + 1), incarnation());
        let ino = inodes.looked_up(&target("a"), file);
        assert_eq!(inodes.looked_up(&target("a"), file), ino);
        inodes.forget(ino, 1);
        assert_eq!(inodes.get(ino).unwrap().target, target("a"));
        inodes.forget(ino, 1);
        assert_eq!(inodes.get(ino), None);
        assert_ne!(inodes.looked_up(&target("a"), file), ino);
    }

    #[test]
    fn a_file_made_again_gets_a_new_number_while_the_old_one_lives() {
        let (inodes, old) = (Inodes::new(ROOT + 1), incarnation());
        let first = inodes.looked_up(&target("a"), old);
        let second = inodes.looked_up(&target("a"), incarnation());
        assert_ne!(first, second);
        assert_eq!(inodes.number(&target("a")), Some(second));
        inodes.forget(first, 1);
        assert_eq!(inodes.number(&target("a")), Some(second));
    }

    #[test]
    fn a_renamed_file_keeps_its_number() {
        let inodes = Inodes::new(ROOT + 1);
        let (a, b) =
            (inodes.looked_up(&target("a"), incarnation()), inodes.looked_up(&target("b"), incarnation()));
        inodes.rename(&target("a"), &target("b"));
        assert_eq!(inodes.number(&target("b")), Some(a));
        assert_eq!(inodes.number(&target("a")), None);
        assert_ne!(a, b);
    }

    #[test]
    fn what_is_in_a_renamed_directory_keeps_its_number() {
        let inodes = Inodes::new(ROOT + 1);
        let directory = inodes.looked_up(&Target::Directory("a".into()), None);
        let file = inodes.looked_up(&target("a/x"), incarnation());
        let other = inodes.looked_up(&target("ab"), incarnation());
        inodes.rename_directory("a", "b/c");
        assert_eq!(inodes.number(&Target::Directory("b/c".into())), Some(directory));
        assert_eq!(inodes.number(&target("b/c/x")), Some(file));
        assert_eq!(inodes.number(&target("ab")), Some(other));
        assert_eq!(inodes.get(file).unwrap().target, target("b/c/x"));
    }

    #[test]
    fn the_cache_is_kept_from_open_to_open_until_the_content_changes() {
        let inodes = Inodes::new(ROOT + 1);
        let ino = inodes.looked_up(&target("a"), incarnation());
        assert!(!open(&inodes, ino).keep_cache);
        inodes.close(ino);
        assert!(open(&inodes, ino).keep_cache);
        assert_eq!(inodes.content_changed(&target("a")), Some(ino));
        assert!(!open(&inodes, ino).keep_cache);
        assert!(open(&inodes, ino).keep_cache);
    }

    #[test]
    fn a_file_that_cannot_be_passed_through_is_opened_cached() {
        let inodes = Inodes::new(ROOT + 1);
        let ino = inodes.looked_up(&target("a"), incarnation());
        let opening = inodes.open(ino, Some(|| Err(io::Error::from_raw_os_error(nix::libc::EPERM))));
        assert!(opening.backing.is_none());
        assert!(inodes.is_open(&target("a")));
        inodes.close(ino);
        assert!(!inodes.is_open(&target("a")));
    }

    #[test]
    fn the_root_is_never_forgotten() {
        let inodes = Inodes::new(ROOT + 1);
        inodes.forget(ROOT, 100);
        assert_eq!(inodes.get(ROOT).unwrap().target, Target::Directory(String::new()));
    }
}
