//! What every operation of the filesystem needs, and what it may assume about a file's attributes.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, ReplyAttr};

use super::attr::{self, FOREVER, NEVER};
use super::caller::{self, Callers};
use super::control_files;
use super::errno::{Doing, of_io, refuse};
use super::handle::Handles;
use super::inode::Inodes;
use super::names::Target;
use super::record::MountRecord;
use super::tree::{Incarnation, Tree};
use super::workers::Workers;
use crate::db::{Database, DbError, FileKind};
use crate::history::History;
use crate::store::Store;
use crate::types::{Access, Attributes, DbName, ForcedAttributes, Globs, MountPath};

/// How long directory attributes are believed; nothing but `ls` looks at them.
const DIRECTORY_TTL: Duration = Duration::from_secs(1);

/// `S_ISGID`: what is made in a directory gets the directory's group.
const SET_GROUP_ID: u32 = 0o2000;

/// The filesystem's state, shared by its threads.
pub(super) struct State {
    /// The databases.
    pub store: Arc<Store>,
    /// Their files.
    pub tree: Tree,
    /// What the kernel knows.
    pub inodes: Arc<Inodes>,
    /// What is open.
    pub handles: Handles,
    /// Threads for what may take time.
    pub workers: Workers,
    /// Which requests are this program's own.
    pub callers: Callers,
    forced: ForcedAttributes,
    passthrough: AtomicBool,
    readonly_on_follower: Option<Globs>,
    record: OnceLock<MountRecord>,
    /// What databases were, where that is kept.
    pub history: Option<Arc<History>>,
}

impl State {
    /// The state of a mount that shows `tree`.
    ///
    /// # Errors
    /// Where `/proc` is not there.
    pub fn new(
        store: Arc<Store>,
        tree: Tree,
        inodes: Arc<Inodes>,
        forced: ForcedAttributes,
        readonly_on_follower: Option<Globs>,
        history: Option<Arc<History>>,
    ) -> io::Result<Self> {
        Ok(Self {
            store,
            tree,
            inodes,
            handles: Handles::new(),
            workers: Workers::new(),
            callers: Callers::new()?,
            forced,
            passthrough: AtomicBool::new(false),
            readonly_on_follower,
            record: OnceLock::new(),
            history,
        })
    }

    /// Whether files of WAL databases are passed through.
    pub fn passthrough(&self) -> bool {
        self.passthrough.load(Ordering::Relaxed)
    }

    /// Sets it, before the first file is opened.
    pub fn set_passthrough(&self, on: bool) {
        self.passthrough.store(on, Ordering::Relaxed);
    }

    /// Notes from now on which databases applications open; the first call counts.
    pub fn set_record(&self, record: MountRecord) {
        let _ = self.record.set(record);
    }

    /// Where that is noted, if it is.
    pub fn record(&self) -> Option<&MountRecord> {
        self.record.get()
    }

    /// Refuses what an application wants to do by name with a file of a database that processes have open through the mount
    /// of an earlier run: their locks are not seen here, and they may be who asks.
    ///
    /// # Errors
    /// EBUSY where that is so.
    pub fn check_not_held(&self, target: &Target, doing: Doing) -> Result<(), Errno> {
        let Target::File(db, _) = target else { return Ok(()) };
        self.store.held_by(db).map_or(Ok(()), |pids| {
            let pids: Vec<_> = pids.iter().map(ToString::to_string).collect();
            let why = format!(
                "processes {} have the database open through the mount of an earlier run: let them close it",
                pids.join(", ")
            );
            Err(refuse(&target.path(), doing, Errno::EBUSY, why))
        })
    }

    /// Whether applications may only read a database on this node now, so that SQLite is to open it read-only. On a voter
    /// only while another node is known to be primary: a connection keeps what it was opened with.
    pub fn is_read_only(&self, db: &DbName) -> bool {
        match self.store.access() {
            Access::ReadOnly => true,
            Access::Fenced => {
                self.readonly_on_follower.as_ref().is_some_and(|globs| globs.matches(db))
                    && self.store.primary().is_some()
                    && !self.store.may_commit()
            }
            Access::Write => false,
        }
    }

    /// The database of that name.
    ///
    /// # Errors
    /// ENOENT where there is none.
    pub fn database(&self, name: &DbName) -> Result<Arc<Database>, Errno> {
        self.store.get(name).ok_or(Errno::ENOENT)
    }

    /// The content of `.primary`, `None` where there is no such file now.
    pub fn primary(&self) -> Option<Vec<u8>> {
        control_files::primary(self.store.access(), self.store.primary().as_ref())
    }

    /// Whether the file kept for a transaction is to be hidden from applications that may not write: SQLite says
    /// "attempt to write a readonly database" only where it finds no journal and cannot create one.
    pub fn hides(&self, target: &Target) -> bool {
        match target {
            Target::File(db, FileKind::Journal) => {
                self.store.access() != Access::Write && !self.tree.has_hot_journal(db)
            }
            _ => false,
        }
    }

    /// Number, attributes and how long they hold, of what `target` is now; counts a lookup by the kernel.
    ///
    /// # Errors
    /// ENOENT where it does not exist.
    pub fn look_up(&self, target: &Target) -> Result<(FileAttr, Duration), Errno> {
        match target {
            Target::Primary if self.primary().is_none() => Err(Errno::ENOENT),
            Target::Pos(_) | Target::Lock(_) | Target::Primary | Target::Lag => {
                let ino = self.inodes.looked_up(target, None);
                Ok((self.control_file(ino, target), NEVER))
            }
            Target::Directory(path) => {
                let attr = |ino| self.directory(ino, path);
                if !self.store.is_directory(path) {
                    return Err(Errno::ENOENT);
                }
                // A directory stays the same one however its entries change.
                Ok((attr(self.inodes.looked_up(target, None)), DIRECTORY_TTL))
            }
            _ => {
                let found =
                    self.tree.metadata(target).map_err(|error| of_io(&target.path(), Doing::Read, &error))?;
                let metadata = found.ok_or(Errno::ENOENT)?;
                let ino = self.inodes.looked_up(target, Some(Incarnation::of(&metadata)));
                Ok((self.shown(ino, target, &metadata, 0), self.attr_ttl(ino, target)))
            }
        }
    }

    /// Attributes of an inode the kernel knows, also where its file has lost its name but is open, as the thread `by`
    /// sees them.
    ///
    /// # Errors
    /// ESTALE where neither the file nor a handle of it is there any more.
    pub fn attributes(&self, ino: u64, fh: Option<u64>, by: u32) -> Result<(FileAttr, Duration), Errno> {
        let known = self.inodes.get(ino).ok_or(Errno::ESTALE)?;
        if matches!(known.target, Target::History(_) | Target::Point(_)) {
            return Ok((self.past_attributes(ino, &known.target), NEVER));
        }
        if matches!(known.target, Target::Pos(_) | Target::Lock(_) | Target::Primary | Target::Lag) {
            return Ok((self.control_file(ino, &known.target), NEVER));
        }
        if let Target::Directory(path) = &known.target {
            if !self.store.is_directory(path) {
                return Err(Errno::ESTALE);
            }
            return Ok((self.directory(ino, path), DIRECTORY_TTL));
        }
        let by_name = self.tree.metadata(&known.target).ok().flatten();
        if let Target::File(db, FileKind::Shm) = &known.target
            && let Some(database) = self.store.get(db)
        {
            database.shm_measured();
        }
        if let Some(metadata) = by_name
            && known.incarnation == Some(Incarnation::of(&metadata))
        {
            return Ok((self.shown(ino, &known.target, &metadata, by), self.attr_ttl(ino, &known.target)));
        }
        let handle = fh.and_then(|fh| self.handles.get(fh)).or_else(|| self.handles.any_of(ino));
        let metadata =
            handle.as_ref().and_then(|handle| handle.file()?.metadata().ok()).ok_or(Errno::ESTALE)?;
        let mut attr = self.owned(attr::of_metadata(ino, &metadata), &known.target);
        if let Some((staged, _)) = self.handles.staged_size(ino) {
            attr.size = staged;
        }
        Ok((attr, NEVER))
    }

    /// Answers with the attributes of an inode.
    pub fn answer_attr(&self, ino: u64, fh: Option<u64>, by: u32, reply: ReplyAttr) {
        match self.attributes(ino, fh, by) {
            Ok((attr, ttl)) => reply.attr(&ttl, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    /// The attributes of a control file: as in LiteFS, a position is as old as its transaction, and the lag as what this
    /// node has.
    fn control_file(&self, ino: u64, target: &Target) -> FileAttr {
        let now = SystemTime::now();
        let (size, time) = match target {
            Target::Pos(db) => {
                let time = self.store.get(db).map(|database| database.timestamp_ms());
                (control_files::POS_SIZE, attr::of_ms(time.unwrap_or(0)))
            }
            Target::Lag => {
                let lag = self.store.lag();
                let time = lag.and_then(|lag| now.checked_sub(lag)).unwrap_or(SystemTime::UNIX_EPOCH);
                (control_files::lag(lag).len() as u64, time)
            }
            // Whoever may write the database may take its write lease.
            Target::Lock(db) => {
                let of = Target::File(db.clone(), FileKind::Database);
                return self.owned(attr::of_control_file(ino, 0, now), &of);
            }
            _ => (self.primary().map_or(0, |content| content.len() as u64), now),
        };
        let mut attr = attr::of_control_file(ino, size, time);
        (attr.uid, attr.gid) = (self.forced.uid.unwrap_or(attr.uid), self.forced.gid.unwrap_or(attr.gid));
        attr
    }

    fn directory(&self, ino: u64, path: &str) -> FileAttr {
        let of = DbName::new(path).map_or(MountPath::Root, MountPath::Directory);
        let changed = attr::of_ms(self.store.attributes(&of).changed_ms);
        let backing = std::fs::metadata(self.tree.root().join(path)).ok();
        let attr = attr::of_directory(ino, changed, backing.as_ref());
        self.owned(attr, &Target::Directory(path.to_owned()))
    }

    /// The attributes with owner and permissions as the log has them; side files have those of their database.
    fn owned(&self, attr: FileAttr, target: &Target) -> FileAttr {
        let (of, directory) = match target {
            Target::File(db, _) => (MountPath::Database(db.clone()), false),
            Target::Directory(path) => {
                (DbName::new(path).map_or(MountPath::Root, MountPath::Directory), true)
            }
            _ => return attr,
        };
        let Attributes { uid, gid, mode } = self.shown_attributes(&of, directory);
        FileAttr { uid, gid, perm: (mode & 0o7777) as u16, ..attr }
    }

    /// Attributes of a database as it was, or of a directory of such. Whoever may not read a database may not read what it was; of
    /// one that is no more only the daemon's own user may.
    pub fn past_attributes(&self, ino: u64, target: &Target) -> FileAttr {
        let (attr, of, mask) = match target {
            Target::Point(point) => {
                let of = self.store.get(&point.db).map(|_| MountPath::Database(point.db.clone()));
                let attr = attr::of_control_file(ino, point.size_bytes, attr::of_ms(point.time.ms()));
                (FileAttr { blocks: point.size_bytes.div_ceil(512), ..attr }, of, 0o444)
            }
            _ => {
                let path = target.past_directory();
                let of = || DbName::new(path).map_or(MountPath::Root, MountPath::Directory);
                let of = self.store.is_directory(path).then(of);
                (attr::of_directory(ino, SystemTime::UNIX_EPOCH, None), of, 0o555)
            }
        };
        let Some(of) = of else { return FileAttr { perm: mask & 0o500, ..attr } };
        let directory = !matches!(of, MountPath::Database(_));
        let Attributes { uid, gid, mode } = self.shown_attributes(&of, directory);
        FileAttr { uid, gid, perm: (mode & 0o7777) as u16 & mask, ..attr }
    }

    /// Owner and permissions of a database or directory as this mount shows them.
    pub fn shown_attributes(&self, of: &MountPath, directory: bool) -> Attributes {
        self.forced.over(self.store.attributes(of).attributes, directory)
    }

    /// The attributes of what somebody makes in a directory. A directory with the set-group-ID bit passes its group on,
    /// and to directories the bit itself.
    pub fn attributes_of_new(
        &self,
        parent: &str,
        (uid, gid, mode): (u32, u32, u32),
        directory: bool,
    ) -> Attributes {
        let parent = DbName::new(parent).map_or(MountPath::Root, MountPath::Directory);
        let parent = self.store.attributes(&parent).attributes;
        if parent.mode & SET_GROUP_ID == 0 {
            return Attributes::new(uid, gid, mode);
        }
        Attributes::new(uid, parent.gid, if directory { mode | SET_GROUP_ID } else { mode })
    }

    /// The attributes of a backing file; of a database in the middle of a transaction the size its writer sees.
    fn shown(&self, ino: u64, target: &Target, metadata: &std::fs::Metadata, by: u32) -> FileAttr {
        let mut attr = self.owned(attr::of_metadata(ino, metadata), target);
        let Target::File(name, FileKind::Database) = target else { return attr };
        if let Some(size) = self.store.get(name).and_then(|database| database.database_bytes()) {
            attr.size = size;
        }
        if let Some((staged, process)) = self.handles.staged_size(ino) {
            // Whoever writes it sees it as written. SQLite takes a file that is shorter than it must be for a damaged one.
            let own = process != 0 && caller::process_of(by) == process;
            attr.size = if own { staged } else { attr.size.max(staged) };
        }
        attr
    }

    /// How long the kernel may believe the attributes of a file. Those of files it reads and writes through the
    /// daemon change by its own doing or are invalidated; passthrough files change behind its back.
    fn attr_ttl(&self, ino: u64, target: &Target) -> Duration {
        let passed_through = match target {
            Target::Directory(_) => return DIRECTORY_TTL,
            Target::File(_, FileKind::Database) if self.handles.staged_size(ino).is_some() => return NEVER,
            // Who opens `-shm` asks for its size when it has taken its lock, which the daemon waits for.
            Target::File(_, FileKind::Shm) => return NEVER,
            Target::File(_, FileKind::Wal) => self.passthrough(),
            Target::File(db, FileKind::Database) if self.passthrough() => {
                let open = self.inodes.get(ino).is_some_and(|known| known.passthrough);
                open || !self.inodes.is_open(target) && self.tree.is_wal(db)
            }
            _ => false,
        };
        if passed_through { NEVER } else { FOREVER }
    }

    /// The kernel's error number for a failed event of a database, logged.
    pub fn refused(&self, target: &Target, doing: Doing, error: &DbError) -> Errno {
        super::errno::of_db(&target.path(), doing, error)
    }
}
