//! Open files: what each handle number given to the kernel stands for.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use fuser::BackingId;

use super::caller::process_of;
use super::names::Target;
use super::upload::Staging;
use crate::db::{Database, FileKind};
use crate::history::Point;
use crate::store::Hold;

/// One open file.
pub(super) struct Handle {
    /// The inode.
    pub ino: u64,
    /// What was opened, for log lines.
    pub target: Target,
    /// Opened by this program itself: no event of an application.
    pub own: bool,
    /// What it reads and writes.
    pub kind: Kind,
}

/// What a handle reads and writes.
pub(super) enum Kind {
    /// A backing file.
    File {
        /// The backing file.
        file: File,
        /// Its database; super-journals have none.
        db: Option<Arc<Database>>,
        /// When a database file that was opened for writing last changed.
        changed: Option<LastChange>,
        /// Whether it is counted among the inode's open handles.
        counts: bool,
        /// Where it may turn out not to be SQLite that writes the database file.
        staging: Option<Box<Staging>>,
        /// Keeps the kernel's reference to the backing file while the handle is open.
        _backing: Option<Arc<BackingId>>,
    },
    /// A database as it was.
    Point(Point),
    /// A control file as it was at the time of opening.
    Control(Vec<u8>),
    /// `<db>-lock`, and the hold on the primary of whoever has opened it for writing.
    Lock { _hold: Option<Hold> },
    /// A database file that a program other than SQLite writes.
    Upload {
        /// The backing file as it was when it was opened.
        file: File,
        /// What has arrived.
        staging: Box<Staging>,
        /// Keeps the kernel's reference where the inode is also open with passthrough.
        _backing: Option<Arc<BackingId>>,
    },
    /// A directory as it was at the time of opening: name, target.
    Directory(Vec<(String, Target)>),
}

/// When a file last changed, as far as a handle of it knows: `st_ctim`, which no program can set.
pub(super) struct LastChange {
    time: Mutex<Option<(i64, i64)>>,
    /// The thread that opened the handle.
    opened_by: u32,
}

impl LastChange {
    /// Now, for a handle that this thread opens.
    pub fn of(file: &File, thread: u32) -> Self {
        Self { time: Mutex::new(Self::time_of(file)), opened_by: thread }
    }

    fn time_of(file: &File) -> Option<(i64, i64)> {
        let metadata = file.metadata().ok()?;
        Some((metadata.ctime(), metadata.ctime_nsec()))
    }

    fn differs(&self, file: &File) -> bool {
        *self.time.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) != Self::time_of(file)
    }

    /// Whether it has changed since, or since this was last asked.
    fn is_another(&self, file: &File) -> bool {
        let now = Self::time_of(file);
        let mut known = self.time.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        std::mem::replace(&mut *known, now) != now
    }
}

impl Handle {
    /// Whether the database file, which this handle may write, has changed since the process that opened it last closed a
    /// descriptor of it; `thread` is one of the process that closes one now. A child that only inherited the descriptor may be
    /// waited for by a writer.
    pub fn file_has_changed(&self, thread: u32) -> bool {
        let Kind::File { file, changed: Some(changed), .. } = &self.kind else { return false };
        changed.differs(file)
            && process_of(changed.opened_by) == process_of(thread)
            && changed.is_another(file)
    }

    /// The backing file, where there is one.
    pub fn file(&self) -> Option<&File> {
        match &self.kind {
            Kind::File { file, .. } | Kind::Upload { file, .. } => Some(file),
            _ => None,
        }
    }

    /// Whether it is counted among the inode's open handles, see [`Inodes`](super::inode::Inodes).
    pub fn counts(&self) -> bool {
        matches!(self.kind, Kind::File { counts: true, .. })
    }

    /// What a program other than SQLite writes, or may come to write.
    pub fn staging(&self) -> Option<&Staging> {
        match &self.kind {
            Kind::Upload { staging, .. } | Kind::File { staging: Some(staging), .. } => Some(staging),
            _ => None,
        }
    }

    /// Whether what is read and written is staged by now.
    pub fn is_staged(&self) -> bool {
        match &self.kind {
            Kind::Upload { .. } => true,
            _ => self.staging().is_some_and(Staging::is_active),
        }
    }

    /// The database, where this is its database file, of which a part may be staged.
    pub fn staged_db(&self) -> Option<&Arc<Database>> {
        self.app_db().filter(|_| matches!(self.target, Target::File(_, FileKind::Database)))
    }

    /// The database, where it is one of its files opened by an application.
    pub fn app_db(&self) -> Option<&Arc<Database>> {
        match &self.kind {
            Kind::File { db: Some(db), .. } if !self.own => Some(db),
            _ => None,
        }
    }
}

/// All open files.
pub(super) struct Handles {
    open: RwLock<HashMap<u64, Arc<Handle>>>,
    next: AtomicU64,
}

impl Handles {
    /// None yet.
    pub fn new() -> Self {
        Self { open: RwLock::default(), next: AtomicU64::new(1) }
    }

    /// A number for a handle; numbers are never reused.
    pub fn insert(&self, handle: Handle) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(fh, Arc::new(handle));
        fh
    }

    /// The handle of a number.
    pub fn get(&self, fh: u64) -> Option<Arc<Handle>> {
        self.open.read().unwrap_or_else(|poisoned| poisoned.into_inner()).get(&fh).cloned()
    }

    /// Ends a handle.
    pub fn remove(&self, fh: u64) -> Option<Arc<Handle>> {
        self.open.write().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(&fh)
    }

    /// Size of what a program other than SQLite has written to an inode, in bytes, and the thread that opened it.
    pub fn staged_size(&self, ino: u64) -> Option<(u64, u32)> {
        let open = self.open.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let staged = |handle: &Arc<Handle>| {
            let staging = handle.staging()?;
            Some((staging.size()?, staging.opened_by()))
        };
        open.values().filter(|handle| handle.ino == ino).find_map(staged)
    }

    /// Any handle of an inode that has a backing file: the only way to an unlinked one.
    pub fn any_of(&self, ino: u64) -> Option<Arc<Handle>> {
        let open = self.open.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        open.values().find(|handle| handle.ino == ino && handle.file().is_some()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_handle_is_gone_and_its_number_is_not_given_again() {
        let handles = Handles::new();
        let control =
            || Handle { ino: 5, target: Target::Primary, own: false, kind: Kind::Control(b"db1\n".to_vec()) };
        let first = handles.insert(control());
        assert_eq!(handles.get(first).unwrap().ino, 5);
        assert!(handles.any_of(5).is_none(), "a control file has no backing file");
        assert!(handles.remove(first).is_some() && handles.get(first).is_none());
        assert_ne!(handles.insert(control()), first);
    }
}
