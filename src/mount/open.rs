//! Opening and creating files: what is common to all kinds, and which kind is asked.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::sync::Arc;

use fuser::{BackingId, Errno, FileHandle, FopenFlags, Generation, ReplyCreate, ReplyOpen};
use nix::libc;

use super::attr::entry_ttl;
use super::errno::{Doing, of_db, of_io, refuse};
use super::handle::{Handle, Kind, LastChange};
use super::names::Target;
use super::state::State;
use super::tree::Incarnation;
use super::upload::Staging;
use super::{control_files, database, history, journal, lock, shm, super_journal, wal};
use crate::db::{Database, DbError, FileKind};
use crate::history::PointId;

/// The reply an open waits for.
pub(super) enum OpenReply {
    /// Of an inode the kernel knows.
    Open(ReplyOpen, u64),
    /// Of a name that it creates.
    Create(ReplyCreate),
}

impl OpenReply {
    fn error(self, errno: Errno) {
        match self {
            OpenReply::Open(reply, _) => reply.error(errno),
            OpenReply::Create(reply) => reply.error(errno),
        }
    }

    fn open_backing(&self, file: &File) -> io::Result<BackingId> {
        match self {
            OpenReply::Open(reply, _) => reply.open_backing(file),
            OpenReply::Create(reply) => reply.open_backing(file),
        }
    }
}

/// Who opens, and how.
#[derive(Clone, Copy)]
pub(super) struct Opener {
    /// This program itself.
    pub own: bool,
    /// The thread; 0 where that is not known.
    pub thread: u32,
    /// `open(2)` flags.
    pub flags: i32,
    /// Owner of a new file.
    pub uid: u32,
    /// Group of a new file.
    pub gid: u32,
    /// Permissions of a new file.
    pub mode: u32,
}

impl Opener {
    /// Whether it may write through this handle.
    pub fn writes(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }

    /// Whether the content is to be cut to nothing first.
    pub fn truncates(&self) -> bool {
        self.flags & libc::O_TRUNC != 0
    }

    /// Whether it opens as SQLite never opens a file: only for writing, or cut to nothing, as `cp`, `dd` and
    /// `rsync --inplace` do.
    pub fn is_foreign(&self) -> bool {
        self.flags & libc::O_ACCMODE == libc::O_WRONLY || self.truncates()
    }

    /// Whether it opens as one who makes a temporary file (`mkstemp`), which a database never is for SQLite.
    pub fn excludes(&self) -> bool {
        self.flags & libc::O_EXCL != 0
    }

    /// Whether it opens a file for reading and writing as every SQLite since 3.31 does, and hardly anything else.
    pub fn is_sqlite_like(&self) -> bool {
        !self.is_foreign() && self.flags & libc::O_NOFOLLOW != 0
    }
}

/// An open that is not answered yet; moves into callbacks.
pub(super) struct PendingOpen {
    /// The filesystem.
    pub state: Arc<State>,
    /// What is opened.
    pub target: Target,
    /// By whom.
    pub opener: Opener,
    /// Where the answer goes.
    pub reply: OpenReply,
}

impl PendingOpen {
    /// Asks the kind of file.
    pub fn start(self) {
        if self.is_stale() || self.must_come_again() {
            return self.fail(Errno::ESTALE);
        }
        let held =
            if self.opener.own { Ok(()) } else { self.state.check_not_held(&self.target, self.doing()) };
        if let Err(errno) = held {
            return self.fail(errno);
        }
        match self.target.clone() {
            Target::Directory(_) | Target::History(_) => self.fail(Errno::EISDIR),
            Target::Point(_) if self.opener.writes() => self.fail(Errno::EROFS),
            Target::Point(point) => self.state.workers.clone().run(move || self.finish_point(&point)),
            Target::Pos(db) => self.state.workers.clone().run(move || {
                let pos =
                    self.state.store.get(&db).map_or(crate::types::Pos::ZERO, |database| database.pos());
                self.finish_control(control_files::pos(pos));
            }),
            Target::Lock(db) => lock::open(self, &db),
            Target::Primary => match self.state.primary() {
                Some(content) => self.finish_control(content),
                None => self.fail(Errno::ENOENT),
            },
            Target::Lag => {
                let lag = self.state.store.lag();
                self.finish_control(control_files::lag(lag));
            }
            Target::File(db, FileKind::Database) => database::open(self, &db),
            Target::File(db, FileKind::Wal) => wal::open(self, &db),
            Target::File(db, FileKind::Shm) => shm::open(self, &db),
            Target::File(db, FileKind::Journal) => journal::open(self, &db),
            Target::SuperJournal(_) => super_journal::open(self),
            Target::Temporary(_) => super_journal::open_temporary(self),
        }
    }

    /// Whether the kernel opens an inode whose name has no file, or another one, by now.
    fn is_stale(&self) -> bool {
        let OpenReply::Open(_, ino) = self.reply else { return false };
        let Some(known) = self.state.inodes.get(ino) else { return true };
        known.incarnation.is_some()
            && !matches!(self.state.tree.metadata(&self.target), Ok(Some(now)) if known.incarnation == Some(Incarnation::of(&now)))
    }

    /// Whether a creation has to be turned into an open: the kernel asks again without creating where it hears
    /// ESTALE. While it waits for a creation it keeps the directory locked, and attaching a database looks up files
    /// in that directory.
    fn must_come_again(&self) -> bool {
        let attaches =
            matches!(self.target, Target::File(_, FileKind::Database | FileKind::Wal | FileKind::Shm));
        matches!(self.reply, OpenReply::Create(_)) && !self.opener.own && attaches && !self.creates()
    }

    /// Whether the file has to be created first.
    pub fn creates(&self) -> bool {
        matches!(self.reply, OpenReply::Create(_))
            && !matches!(self.state.tree.metadata(&self.target), Ok(Some(_)))
    }

    /// Answers with an error number.
    pub fn fail(self, errno: Errno) {
        self.reply.error(errno);
    }

    /// The number for "it is not there": the kernel looks again, and creates it where that was asked for, only if it
    /// hears that what it knew is stale.
    pub fn absent(&self) -> Errno {
        if matches!(self.reply, OpenReply::Open(..)) { Errno::ESTALE } else { Errno::ENOENT }
    }

    /// The database of an application's file.
    pub fn database(&self, name: &crate::types::DbName) -> Result<Arc<Database>, Errno> {
        self.state.store.get(name).ok_or_else(|| self.absent())
    }

    /// Answers with an error number and logs the reason.
    pub fn refuse(self, errno: Errno, why: impl std::fmt::Display) {
        let errno = refuse(&self.target.path(), self.doing(), errno, why);
        self.reply.error(errno);
    }

    fn doing(&self) -> Doing {
        if matches!(self.reply, OpenReply::Create(_)) { Doing::Create } else { Doing::Open }
    }

    /// Answers with the number of a database's error.
    pub fn fail_db(self, doing: Doing, error: &DbError) {
        let errno = of_db(&self.target.path(), doing, error);
        self.reply.error(errno);
    }

    /// Creates the empty backing file of a side file, which is shown with owner and permissions of its database, or of a
    /// file of this node alone, which has them itself.
    pub fn create_backing(&self) -> Result<(), Errno> {
        let path = self.state.tree.backing(&self.target).ok_or(Errno::EPERM)?;
        let failed = |error| of_io(&self.target.path(), Doing::Create, &error);
        let alone = matches!(self.target, Target::SuperJournal(_) | Target::Temporary(_));
        if alone && let Some(directory) = path.parent() {
            // One in which there never was a database is not there yet.
            fs::create_dir_all(directory).map_err(failed)?;
        }
        match File::options().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) if alone => self.adopt_owner(&file),
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        Ok(())
    }

    /// Gives a new backing file its owner and permissions. Failing that is no reason to fail the open: without the right to
    /// change owners the daemon serves its own user only.
    fn adopt_owner(&self, file: &File) {
        let Opener { uid, gid, mode, .. } = self.opener;
        let owned = fchown(file, Some(uid), Some(gid))
            .and_then(|()| file.set_permissions(Permissions::from_mode(mode & 0o7777)));
        if let Err(error) = owned {
            tracing::debug!(path = self.target.path(), "owner and permissions stay as they are: {error}");
        }
    }

    /// Answers with a handle of a control file.
    fn finish_control(self, content: Vec<u8>) {
        if self.opener.writes() {
            return self.refuse(Errno::EACCES, "control files are read-only");
        }
        self.finish_without_file(Kind::Control(content));
    }

    /// Answers with a handle of what has no backing file.
    pub(super) fn finish_without_file(self, kind: Kind) {
        let OpenReply::Open(reply, ino) = self.reply else { return self.fail(Errno::EPERM) };
        let handle = Handle { ino, target: self.target, own: self.opener.own, kind };
        let fh = self.state.handles.insert(handle);
        reply.opened(FileHandle(fh), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH);
    }

    /// Answers with a handle of a database as it was, which never changes.
    fn finish_point(self, point: &PointId) {
        let OpenReply::Open(reply, ino) = self.reply else { return self.fail(Errno::EROFS) };
        match history::open(&self.state, point) {
            Ok(point) => {
                let kind = Kind::Point(point);
                let fh = self.state.handles.insert(Handle { ino, target: self.target, own: false, kind });
                reply.opened(FileHandle(fh), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// Answers with a handle of the backing file; `passthrough` where the kernel may use that file itself.
    ///
    /// A process of another process namespace (another container) may outlive this program together with the process that
    /// fences applications after its death: what ends one namespace ends both. So such a process writes `-wal` through this
    /// program, and cannot write it any more the moment this program is gone.
    pub fn finish(self, db: Option<Arc<Database>>, passthrough: bool) {
        let wal = matches!(self.target, Target::File(_, FileKind::Wal));
        if passthrough && self.opener.thread == 0 && wal && self.state.passthrough() {
            return self.finish_through_this_program(db);
        }
        let (file, ino) = match self.open_backing_file() {
            Ok(opened) => opened,
            Err(errno) => {
                self.closed(db.as_ref());
                return self.fail(errno);
            }
        };
        let connect = (passthrough && self.state.passthrough()).then_some(|| self.reply.open_backing(&file));
        let opening = self.state.inodes.open(ino, connect);
        // The close of a WAL database is heard of before it returns, see `Database::app_closes`; one that is in a rollback
        // mode now may be in WAL mode by then.
        let closes = matches!(self.target, Target::File(_, FileKind::Database)) && !self.opener.own;
        let mut flags = if closes { FopenFlags::empty() } else { FopenFlags::FOPEN_NOFLUSH };
        if opening.keep_cache {
            flags |= FopenFlags::FOPEN_KEEP_CACHE;
        }
        let backing = opening.backing;
        if let (Some(db), Some(_), Target::File(_, FileKind::Database)) = (&db, &backing, &self.target) {
            db.main_passed_through();
        }
        if let (Some(db), Some(_), Target::File(_, FileKind::Journal)) = (&db, &backing, &self.target)
            && self.opener.writes()
        {
            db.journal_passed_through();
        }
        let changed = (closes && self.opener.writes()).then(|| LastChange::of(&file, self.opener.thread));
        let kind = Kind::File { file, db, changed, counts: true, staging: None, _backing: backing.clone() };
        self.answer(ino, kind, flags, backing.as_deref());
    }

    /// Answers with a handle of `-wal` all of whose reads and writes come here, whatever other handles of it do.
    pub(super) fn finish_through_this_program(self, db: Option<Arc<Database>>) {
        self.finish_direct(None, |file, backing| Kind::File {
            file,
            db,
            changed: None,
            counts: false,
            staging: None,
            _backing: backing,
        });
    }

    /// Answers with a handle whose writes make up a new content of the database.
    pub fn finish_upload(self, staging: Staging) {
        self.finish_direct(None, |file, backing| Kind::Upload {
            file,
            staging: Box::new(staging),
            _backing: backing,
        });
    }

    /// Answers with a handle of the database file of which only its writes will tell whether it is SQLite's.
    pub fn finish_unsure(self, db: Arc<Database>) {
        let Opener { thread, flags, .. } = self.opener;
        let staging = Some(Box::new(Staging::new(db.name().clone(), thread, flags)));
        let same = db.clone();
        self.finish_direct(Some(same), |file, backing| Kind::File {
            changed: Some(LastChange::of(&file, thread)),
            file,
            db: Some(db),
            counts: false,
            staging,
            _backing: backing,
        });
    }

    /// Answers with a handle whose reads and writes all come here, past the kernel's cache.
    fn finish_direct(
        self,
        counted: Option<Arc<Database>>,
        kind: impl FnOnce(File, Option<Arc<BackingId>>) -> Kind,
    ) {
        let (file, ino) = match self.open_backing_file() {
            Ok(opened) => opened,
            Err(errno) => {
                self.closed(counted.as_ref());
                return self.fail(errno);
            }
        };
        // An inode that is open with passthrough allows no other handles; with both flags I/O comes to the daemon.
        let backing = self.state.inodes.backing(ino);
        self.answer(ino, kind(file, backing.clone()), FopenFlags::FOPEN_DIRECT_IO, backing.as_deref());
    }

    /// Takes back what `app_opened` counted, where the open fails after it.
    fn closed(&self, db: Option<&Arc<Database>>) {
        if let (Some(db), Target::File(_, FileKind::Database), false) = (db, &self.target, self.opener.own) {
            db.app_closed();
        }
    }

    /// The backing file, and the inode it has for the kernel.
    fn open_backing_file(&self) -> Result<(File, u64), Errno> {
        let path = self.state.tree.backing(&self.target).ok_or(Errno::EPERM)?;
        // Never write-only: the kernel may read a page to change a part of it.
        let file = File::options().read(true).write(self.opener.writes()).open(path).map_err(|error| {
            if super::tree::absent(&error) {
                return self.absent();
            }
            of_io(&self.target.path(), Doing::Open, &error)
        })?;
        let metadata = file.metadata().map_err(|error| of_io(&self.target.path(), Doing::Open, &error))?;
        let incarnation = Some(Incarnation::of(&metadata));
        let ino = match &self.reply {
            OpenReply::Create(_) => self.state.inodes.looked_up(&self.target, incarnation),
            OpenReply::Open(_, ino) => {
                // The name now belongs to another file than the kernel's; it looks again where it hears ESTALE.
                let known = self.state.inodes.get(*ino).ok_or(Errno::ESTALE)?;
                if known.incarnation != incarnation {
                    return Err(Errno::ESTALE);
                }
                *ino
            }
        };
        Ok((file, ino))
    }

    /// Notes which database an application gets a handle of.
    fn note(&self, ino: u64) {
        if self.opener.own {
            return;
        }
        if let (Target::File(db, FileKind::Database), Some(record)) = (&self.target, self.state.record())
            && let Some(incarnation) = self.state.inodes.get(ino).and_then(|known| known.incarnation)
        {
            record.opened(ino, incarnation.inode(), db);
        }
    }

    fn answer(self, ino: u64, kind: Kind, flags: FopenFlags, backing: Option<&BackingId>) {
        self.note(ino);
        let ttl = entry_ttl(&self.target);
        let handle = Handle { ino, target: self.target, own: self.opener.own, kind };
        let fh = self.state.handles.insert(handle);
        match (self.reply, backing) {
            (OpenReply::Open(reply, _), None) => reply.opened(FileHandle(fh), flags),
            (OpenReply::Open(reply, _), Some(backing)) => {
                reply.opened_passthrough(FileHandle(fh), flags, backing)
            }
            (OpenReply::Create(reply), backing) => match self.state.attributes(ino, Some(fh), 0) {
                Ok((attr, _)) => match backing {
                    None => reply.created(&ttl, &attr, Generation(0), FileHandle(fh), flags),
                    Some(backing) => {
                        reply.created_passthrough(&ttl, &attr, Generation(0), FileHandle(fh), flags, backing);
                    }
                },
                Err(errno) => {
                    super::file::release(&self.state, fh);
                    self.state.inodes.forget(ino, 1);
                    reply.error(errno);
                }
            },
        }
    }
}
