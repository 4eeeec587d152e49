//! Tells the kernel what changed behind its back.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};

use fuser::{INodeNo, Notifier};

use super::inode::Inodes;
use super::names::{Target, join};
use crate::db::{FileKind, KernelCache};
use crate::types::{DbName, MountPath};

/// Bytes given to the kernel with one notification.
const STORED_BYTES_MAX: usize = 64 << 10;

/// Invalidates entries and contents the kernel has cached.
///
/// Never call it from a FUSE thread, nor while holding what a thread needs that answers a request of this mount:
/// invalidating content waits until reads and writes of the pages that are under way have been answered. Entries are
/// invalidated a moment later, by a thread of their own, because that waits for the directory, which the kernel keeps
/// locked while a creation or removal in it (a commit) is not answered.
pub(super) struct Notify {
    inodes: Arc<Inodes>,
    mount_point: PathBuf,
    connection: Mutex<Option<Connection>>,
    passthrough: AtomicBool,
}

struct Connection {
    notifier: Notifier,
    entries: Sender<(INodeNo, OsString)>,
}

impl Notify {
    /// Not connected yet: until [`connect`](Self::connect) the kernel has nothing cached.
    pub fn new(inodes: Arc<Inodes>, mount_point: PathBuf) -> Self {
        Self { inodes, mount_point, connection: Mutex::new(None), passthrough: AtomicBool::new(false) }
    }

    /// Starts telling the kernel.
    ///
    /// # Errors
    /// Where no thread can be had.
    pub fn connect(&self, notifier: Notifier) -> std::io::Result<()> {
        let (entries, queue) = channel::<(INodeNo, OsString)>();
        let kernel = notifier.clone();
        std::thread::Builder::new().name("skein-notify".into()).spawn(move || {
            for (parent, name) in queue {
                if let Err(error) = kernel.inval_entry(parent, &name) {
                    tracing::debug!(?name, "invalidating a directory entry: {error}");
                }
            }
        })?;
        *self.lock() = Some(Connection { notifier, entries });
        Ok(())
    }

    /// Notes whether files of WAL databases are passed through.
    pub fn set_passthrough(&self, on: bool) {
        self.passthrough.store(on, Ordering::Relaxed);
    }

    /// Lets go of the connection, which otherwise would outlive the mount.
    pub fn disconnect(&self) {
        *self.lock() = None;
    }

    fn notifier(&self) -> Option<Notifier> {
        self.lock().as_ref().map(|connection| connection.notifier.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The entry of `path` to invalidate: the first component that the kernel may know to be missing, in the deepest
    /// directory it knows.
    fn entry(&self, path: &str) -> Option<(u64, String)> {
        let mut parent = String::new();
        let mut found = None;
        for name in path.split('/') {
            let Some(ino) = self.inodes.number(&Target::Directory(parent.clone())) else { break };
            found = Some((ino, name.to_owned()));
            parent = join(&parent, name);
        }
        found
    }
}

impl KernelCache for Notify {
    fn entry_changed(&self, db: &DbName, kind: FileKind) {
        self.path_changed(&Target::File(db.clone(), kind).path());
    }

    fn path_changed(&self, path: &str) {
        let Some((parent, name)) = self.entry(path) else { return };
        if let Some(connection) = self.lock().as_ref() {
            // The thread ends only after this sender is gone.
            let _ = connection.entries.send((INodeNo(parent), name.into()));
        }
    }

    fn attributes_changed(&self, path: &MountPath) {
        let Some(notifier) = self.notifier() else { return };
        let targets = match path {
            MountPath::Root => vec![Target::Directory(String::new())],
            MountPath::Directory(path) => vec![Target::Directory(path.to_string())],
            MountPath::Database(name) => {
                FileKind::ALL.into_iter().map(|kind| Target::File(name.clone(), kind)).collect()
            }
        };
        for ino in targets.iter().filter_map(|target| self.inodes.number(target)) {
            // An offset below zero leaves the content alone, so this waits for no page.
            if let Err(error) = notifier.inval_inode(INodeNo(ino), -1, 0) {
                tracing::debug!(%path, "invalidating attributes: {error}");
            }
        }
    }

    fn data_changed(&self, db: &DbName, kind: FileKind) {
        let Some(ino) = self.inodes.content_changed(&Target::File(db.clone(), kind)) else { return };
        // No length: to the end of the file.
        if let Some(Err(error)) = self.notifier().map(|notifier| notifier.inval_inode(INodeNo(ino), 0, 0)) {
            tracing::warn!(%db, ?kind, "invalidating the kernel's cache of a file: {error}");
        }
    }

    fn data_written(&self, db: &DbName, kind: FileKind, offset: u64, data: &[u8]) {
        let Some(ino) = self.inodes.number(&Target::File(db.clone(), kind)) else { return };
        let Some(notifier) = self.notifier() else { return };
        let mut at = offset;
        for part in data.chunks(STORED_BYTES_MAX) {
            if let Err(error) = notifier.store(INodeNo(ino), at, part) {
                tracing::warn!(%db, ?kind, "storing what was written in the kernel's cache of a file: {error}");
                return self.data_changed(db, kind);
            }
            at += part.len() as u64;
        }
    }

    fn passthrough(&self) -> bool {
        self.passthrough.load(Ordering::Relaxed)
    }

    fn mount_point(&self) -> &Path {
        &self.mount_point
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_directory_the_kernel_knows_is_told() {
        let inodes = Arc::new(Inodes::new(2));
        let notify = Notify::new(inodes.clone(), PathBuf::from("/mnt"));
        assert_eq!(notify.entry("a/b/app.db"), Some((1, "a".into())));
        let a = inodes.looked_up(&Target::Directory("a".into()), None);
        assert_eq!(notify.entry("a/b/app.db"), Some((a, "b".into())));
        assert_eq!(notify.entry("app.db-wal"), Some((1, "app.db-wal".into())));
    }
}
