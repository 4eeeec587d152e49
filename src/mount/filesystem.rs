//! Decodes the kernel's requests and passes them on; nothing here decides anything.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::directory;
use super::errno::{Doing, of_io, refuse};
use super::file::{self, Changes};
use super::names::{self, classify, join};
use super::open::{OpenReply, Opener, PendingOpen};
use super::state::State;
use crate::io::watchdog;

/// Largest write the kernel sends at once, in bytes.
const WRITE_MAX: u32 = 1 << 20;

/// Requests of the kernel that it may have under way in the background (read-ahead) at once.
const BACKGROUND_MAX: u16 = 64;

/// The filesystem as `fuser` calls it.
pub(super) struct Skein {
    /// What the operations work on.
    pub state: Arc<State>,
    /// Ask the kernel for passthrough.
    pub passthrough_wanted: bool,
    /// Set where the kernel has it.
    pub passthrough_offered: Arc<AtomicBool>,
}

impl Skein {
    fn own(&self, request: &Request) -> bool {
        self.state.callers.is_own(request.pid())
    }

    fn opener(&self, request: &Request, flags: i32, mode: u32) -> Opener {
        let (own, thread) = (self.own(request), request.pid());
        Opener { own, thread, flags, uid: request.uid(), gid: request.gid(), mode }
    }
}

/// Answers that something is not offered, once per use in the log at debug level.
fn unsupported(operation: &str, why: &str) {
    tracing::debug!(operation, "not supported: {why}");
}

impl Filesystem for Skein {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Locks stay in the kernel: neither FUSE_POSIX_LOCKS nor FUSE_FLOCK_LOCKS. Writes come at once: no
        // FUSE_WRITEBACK_CACHE, for a write the daemon has not seen could not be captured.
        for wanted in
            [InitFlags::FUSE_ATOMIC_O_TRUNC, InitFlags::FUSE_PARALLEL_DIROPS, InitFlags::FUSE_ASYNC_READ]
        {
            if config.add_capabilities(wanted).is_err() {
                tracing::debug!("the kernel does not offer {wanted:?}");
            }
        }
        // These fail only for values out of a range that is far larger.
        let _ = config.set_max_write(WRITE_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        if self.passthrough_wanted && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() {
            // 2 is the kernel's limit; with it the data directory may itself be on overlayfs.
            let depth = config.set_max_stack_depth(2).is_ok();
            self.passthrough_offered.store(depth, Ordering::SeqCst);
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _call = watchdog::begin("answering lookup");
        directory::lookup(&self.state, self.own(request), parent.0, name, reply);
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        self.state.inodes.forget(ino.0, count);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let _call = watchdog::begin("answering getattr");
        match self.state.attributes(ino.0, fh.map(|fh| fh.0), request.pid()) {
            Ok((attr, ttl)) => reply.attr(&ttl, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _call = watchdog::begin("answering setattr");
        let changes = Changes { mode, uid, gid, size, atime, mtime };
        file::change(
            &self.state,
            (self.own(request), request.pid()),
            ino.0,
            fh.map(|fh| fh.0),
            changes,
            reply,
        );
        self.state.store.drive_log();
    }

    fn mknod(&self, _: &Request, _: INodeNo, name: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        let why = "only databases and directories can be made here";
        reply.error(refuse(&name.to_string_lossy(), Doing::Create, Errno::EPERM, why));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let _call = watchdog::begin("answering mkdir");
        if let Err(errno) = names::check_new_directory(name) {
            return reply.error(errno);
        }
        directory::make(&self.state, parent.0, name, (mode, request.uid(), request.gid()), reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _call = watchdog::begin("answering unlink");
        directory::unlink(&self.state, self.own(request), parent.0, name, reply);
        self.state.store.drive_log();
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _call = watchdog::begin("answering rmdir");
        directory::remove(&self.state, parent.0, name, reply);
    }

    fn symlink(&self, _: &Request, _: INodeNo, name: &OsStr, _: &Path, reply: ReplyEntry) {
        let why = "a symbolic link would not be replicated";
        reply.error(refuse(&name.to_string_lossy(), Doing::Create, Errno::EPERM, why));
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let why = "a database has one name: SQLite finds its journal by it";
        reply.error(refuse(&name.to_string_lossy(), Doing::Create, Errno::EPERM, why));
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _call = watchdog::begin("answering rename");
        directory::rename(&self.state, (parent.0, name), (new_parent.0, new_name), flags, reply);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _call = watchdog::begin("answering open");
        let Some(known) = self.state.inodes.get(ino.0) else { return reply.error(Errno::ESTALE) };
        let opener = self.opener(request, flags.0, 0);
        let reply = OpenReply::Open(reply, ino.0);
        PendingOpen { state: self.state.clone(), target: known.target, opener, reply }.start();
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let _call = watchdog::begin("answering create");
        let path = directory::path_of(&self.state, parent.0)
            .and_then(|directory| Ok(join(&directory, names::text(name)?)));
        let target = path
            .and_then(|path| classify(&path).map_err(|why| refuse(&path, Doing::Create, Errno::EPERM, why)));
        let target = match target {
            Ok(target) => target,
            Err(errno) => return reply.error(errno),
        };
        let opener = self.opener(request, flags, mode);
        let pending =
            PendingOpen { state: self.state.clone(), target, opener, reply: OpenReply::Create(reply) };
        if flags & nix::libc::O_EXCL != 0 && !pending.creates() {
            return pending.fail(Errno::EEXIST);
        }
        pending.start();
    }

    fn read(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _call = watchdog::begin("answering read");
        file::read(&self.state, request.pid(), fh.0, offset, size, reply);
    }

    fn write(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _call = watchdog::begin("answering write");
        file::write(&self.state, request.pid(), fh.0, offset, data, reply);
        self.state.store.drive_log();
    }

    fn flush(&self, request: &Request, _ino: INodeNo, fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        let _call = watchdog::begin("answering flush");
        file::flush(&self.state, request.pid(), fh.0, reply);
        self.state.store.drive_log();
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _call = watchdog::begin("answering release");
        file::release(&self.state, fh.0);
        reply.ok();
    }

    fn fsync(&self, _request: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let _call = watchdog::begin("answering fsync");
        file::sync(&self.state, fh.0, reply);
        self.state.store.drive_log();
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        directory::open(&self.state, ino.0, reply);
    }

    fn readdir(&self, _request: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        directory::read(&self.state, fh.0, offset, reply);
    }

    fn releasedir(&self, _request: &Request, _ino: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.state.handles.remove(fh.0);
        reply.ok();
    }

    /// Nothing to do: no journal has to survive, and what a database is called is in the log. The kernel takes
    /// ENOSYS for success, and asks no more.
    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match nix::sys::statvfs::statvfs(self.state.tree.root()) {
            Ok(fs) => reply.statfs(
                fs.blocks(),
                fs.blocks_free(),
                fs.blocks_available(),
                fs.files(),
                fs.files_free(),
                fs.block_size() as u32,
                // What a database's name may have, see `DbName`.
                247,
                fs.fragment_size() as u32,
            ),
            Err(errno) => reply.error(of_io("", Doing::Read, &errno.into())),
        }
    }

    /// Never asked: the kernel checks permissions by itself (`default_permissions`).
    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    // ENOSYS is remembered by the kernel, which then answers by itself with EOPNOTSUPP or its own way of doing it.

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        unsupported("setxattr", "extended attributes would not be replicated");
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        unsupported("getxattr", "files have no extended attributes");
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        unsupported("listxattr", "files have no extended attributes");
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        unsupported("removexattr", "files have no extended attributes");
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        unsupported("fallocate", "space is taken by writing");
        reply.error(Errno::ENOSYS);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
