//! A database file being written by a program other than SQLite: `cp`, `dd`, `rsync`, a script. What it writes is its own
//! until it closes the file, and then counts as one transaction, or is refused as a whole.
//!
//! Such a program shows by how it opens the file: only for writing, or cut to nothing, or as one that must not exist yet.
//! Where that leaves it open, its first write decides, see [`Database::is_foreign_write`](crate::db::Database::is_foreign_write).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use fuser::{Errno, ReplyAttr, ReplyData, ReplyEmpty, ReplyWrite};
use nix::libc;

use super::caller;
use super::errno::{Doing, of_db, of_store};
use super::handle::Handle;
use super::processes;
use super::state::State;
use crate::db::DbError;
use crate::store::{StoreError, Upload};
use crate::types::DbName;

/// `size` of a file of which nothing is staged.
const NONE: u64 = u64::MAX;

/// `size` of a file of which a part was refused.
const REFUSED: u64 = u64::MAX - 1;

/// What one handle of a database file has written.
pub(super) struct Staging {
    name: DbName,
    /// The process that opened it; 0 where that is not known.
    opened_by: u32,
    /// `open(2)` flags.
    flags: i32,
    progress: Mutex<Progress>,
    /// Size of the file as its writer sees it, in bytes; [`NONE`] where that is the database's.
    size: AtomicU64,
}

enum Progress {
    /// Nothing has been written since the open or the last transaction; closing now changes nothing (`touch`, or the
    /// shell before it starts `cat`).
    Untouched {
        /// Whether nothing of what the database has counts any more. Where nobody writes anything, the file is empty.
        whole: bool,
    },
    Receiving {
        upload: Upload,
        /// Thread and process of the last write.
        writer: (u32, u32),
    },
    /// A part was refused; the rest is too.
    Refused(Errno),
}

impl Staging {
    /// Of an open by a thread, which waits for the answer, that cuts the file to nothing or leaves its content as it is;
    /// `flags` are those of `open(2)`.
    pub fn new(name: DbName, thread: u32, flags: i32) -> Self {
        let (whole, size) = if flags & libc::O_TRUNC != 0 { (true, 0) } else { (false, NONE) };
        Self {
            name,
            opened_by: caller::process_of(thread),
            flags,
            progress: Mutex::new(Progress::Untouched { whole }),
            size: AtomicU64::new(size),
        }
    }

    /// The process that opened it; 0 where that is not known.
    pub fn opened_by(&self) -> u32 {
        self.opened_by
    }

    /// Size of the file as its writer sees it, in bytes; `None` where that is the database's.
    pub fn size(&self) -> Option<u64> {
        Some(self.size.load(Ordering::Acquire)).filter(|size| *size < REFUSED)
    }

    /// Whether something is staged, or was refused: from then on the handle is not SQLite's.
    pub fn is_active(&self) -> bool {
        self.size.load(Ordering::Acquire) != NONE
    }

    /// Whether the open cut the content of a database to nothing, and nobody has written since.
    fn has_only_cut(&self, state: &State) -> bool {
        let has_content =
            || state.store.get(&self.name).is_some_and(|database| database.pos().txid.is_some());
        matches!(*self.lock(), Progress::Untouched { whole: true }) && has_content()
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Does something to what is staged, which begins here where nothing is.
    fn with<T>(
        &self,
        state: &State,
        ino: u64,
        by: u32,
        work: impl FnOnce(&mut Upload) -> Result<T, StoreError>,
    ) -> Result<T, Errno> {
        let mut progress = self.lock();
        if let Progress::Untouched { whole } = *progress {
            let begun = match self.present_name(state, ino) {
                None => state.store.nameless(&self.name),
                Some(name) if whole => state.store.upload(&name),
                Some(name) => state.store.rewrite(&name),
            };
            match begun {
                Ok(upload) => {
                    *progress = Progress::Receiving { upload, writer: (by, caller::process_of(by)) }
                }
                Err(error) => return Err(self.fail(&mut progress, &error)),
            }
        }
        match &mut *progress {
            Progress::Receiving { upload, writer } => {
                if writer.0 != by {
                    *writer = (by, caller::process_of(by));
                }
                match work(upload).and_then(|done| Ok((done, upload.size_bytes().map_err(failed)?))) {
                    Ok((done, size)) => {
                        self.size.store(size, Ordering::Release);
                        Ok(done)
                    }
                    Err(error) => Err(self.fail(&mut progress, &error)),
                }
            }
            Progress::Refused(errno) => Err(*errno),
            Progress::Untouched { .. } => Err(Errno::EIO),
        }
    }

    /// What the database is called by now, `None` where it was unlinked.
    fn present_name(&self, state: &State, ino: u64) -> Option<DbName> {
        let known = state.inodes.get(ino)?;
        let named = state.inodes.number(&known.target) == Some(ino);
        known.target.db().filter(|_| named).cloned()
    }

    /// What was received, where closing a descriptor ends it: a process that only inherited the descriptor, such as a
    /// child on its way into another program, ends nothing that is not complete.
    fn take_closed(&self, by: u32) -> Result<Option<Upload>, Errno> {
        let progress = self.lock();
        let ends = match &*progress {
            Progress::Receiving { upload, writer } => {
                writer.0 == by || writer.1 == caller::process_of(by) || upload.is_complete()
            }
            Progress::Refused(errno) => return Err(*errno),
            Progress::Untouched { .. } => false,
        };
        Ok(if ends { self.take(progress) } else { None })
    }

    /// What was received, where it is complete.
    fn take_synced(&self, others_have_it_open: bool) -> Result<Option<Upload>, Errno> {
        let progress = self.lock();
        match &*progress {
            Progress::Receiving { upload, .. } if upload.is_complete() && !others_have_it_open => {
                Ok(self.take(progress))
            }
            Progress::Refused(errno) => Err(*errno),
            _ => Ok(None),
        }
    }

    fn take(&self, mut progress: MutexGuard<'_, Progress>) -> Option<Upload> {
        if !matches!(*progress, Progress::Receiving { .. }) {
            return None;
        }
        self.size.store(NONE, Ordering::Release);
        match std::mem::replace(&mut *progress, Progress::Untouched { whole: false }) {
            Progress::Receiving { upload, .. } => Some(upload),
            _ => None,
        }
    }

    fn fail(&self, progress: &mut Progress, error: &StoreError) -> Errno {
        let errno = of_store(self.name.as_str(), Doing::Upload, error);
        self.refuse(progress, errno);
        errno
    }

    fn refuse(&self, progress: &mut Progress, errno: Errno) {
        self.size.store(REFUSED, Ordering::Release);
        if let Progress::Receiving { upload, .. } = std::mem::replace(progress, Progress::Refused(errno)) {
            upload.discard();
        }
    }
}

fn failed(source: std::io::Error) -> StoreError {
    StoreError::Io { what: "reading what was received".into(), source }
}

/// Makes what was received of `handle` the database's content; `answer` hears what came of it.
fn finish(handle: Arc<Handle>, received: Upload, answer: impl FnOnce(Result<(), Errno>) + Send + 'static) {
    received.finish(Box::new(move |result: Result<(), DbError>| {
        let Some(staging) = handle.staging() else { return answer(Err(Errno::EBADF)) };
        answer(result.map_err(|error| {
            let errno = of_db(staging.name.as_str(), Doing::Upload, &error);
            // What comes now would lie on top of what is lost.
            staging.refuse(&mut staging.lock(), errno);
            errno
        }));
    }));
}

fn answer_empty(reply: ReplyEmpty) -> impl FnOnce(Result<(), Errno>) + Send + 'static {
    move |result| match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// Reads the file as its writer sees it.
pub(super) fn read(
    state: &Arc<State>,
    handle: Arc<Handle>,
    by: u32,
    offset: u64,
    size: u32,
    reply: ReplyData,
) {
    let state = state.clone();
    state.workers.clone().run(move || {
        let Some(staging) = handle.staging() else { return reply.error(Errno::EBADF) };
        if matches!(*staging.lock(), Progress::Untouched { whole: true }) {
            return reply.data(&[]);
        }
        let mut data = vec![0; size as usize];
        match staging.with(&state, handle.ino, by, |upload| upload.read_at(offset, &mut data).map_err(failed))
        {
            Ok(length) => reply.data(&data[..length]),
            Err(errno) => reply.error(errno),
        }
    });
}

/// Takes a part of the file.
pub(super) fn write(
    state: &State,
    handle: &Handle,
    by: u32,
    (offset, data): (u64, &[u8]),
    reply: ReplyWrite,
) {
    let Some(staging) = handle.staging() else { return reply.error(Errno::EBADF) };
    match staging.with(state, handle.ino, by, |upload| upload.write_at(offset, data)) {
        Ok(()) => reply.written(data.len() as u32),
        Err(errno) => reply.error(errno),
    }
}

/// Cuts or extends the file.
pub(super) fn truncate(state: &State, handle: &Handle, fh: u64, by: u32, size: u64, reply: ReplyAttr) {
    let Some(staging) = handle.staging() else { return reply.error(Errno::EBADF) };
    let cut = staging.with(state, handle.ino, by, |upload| {
        upload.set_len(size);
        Ok(())
    });
    match cut {
        Ok(()) => state.answer_attr(handle.ino, Some(fh), by, reply),
        Err(errno) => reply.error(errno),
    }
}

/// Cuts or extends a database file by its name, which no SQLite does.
pub(super) fn truncate_by_name(
    state: &Arc<State>,
    name: DbName,
    (ino, by): (u64, u32),
    size: u64,
    reply: ReplyAttr,
) {
    let state = state.clone();
    state.workers.clone().run(move || {
        let refuse = |error: &StoreError| of_store(name.as_str(), Doing::Truncate, error);
        if state.store.get(&name).is_some_and(|database| database.in_use()) {
            let why = "is open; close it before it is cut or extended".to_owned();
            return reply.error(refuse(&DbError::Conflict { db: name.clone(), why }.into()));
        }
        let mut upload = match state.store.rewrite(&name) {
            Ok(upload) => upload,
            Err(error) => return reply.error(refuse(&error)),
        };
        upload.set_len(size);
        let after = state.clone();
        upload.finish(Box::new(move |result| match result {
            Ok(()) => after.answer_attr(ino, None, by, reply),
            Err(error) => reply.error(of_db(name.as_str(), Doing::Truncate, &error)),
        }));
    });
}

/// Empties a database whose file was cut to nothing by the open of `handle`; `answer` hears what came of it.
fn empty(
    state: &State,
    handle: Arc<Handle>,
    by: u32,
    answer: impl FnOnce(Result<(), Errno>) + Send + 'static,
) {
    let Some(staging) = handle.staging() else { return answer(Err(Errno::EBADF)) };
    let cut = staging.with(state, handle.ino, by, |upload| {
        upload.set_len(0);
        Ok(())
    });
    match cut.map(|()| staging.take(staging.lock())) {
        Ok(Some(received)) => finish(handle, received, answer),
        Ok(None) => answer(Ok(())),
        Err(errno) => answer(Err(errno)),
    }
}

/// The writer closes the file: checks it, makes it the content, and lets `close(2)` return what came of it.
///
/// One who has only cut the file to nothing empties the database with the last descriptor: the shell closes its first one
/// before `cat` writes to another. Where its descriptors cannot be seen, `released` does it.
pub(super) fn flush(state: &Arc<State>, handle: Arc<Handle>, by: u32, reply: ReplyEmpty) {
    let state = state.clone();
    state.workers.clone().run(move || {
        let Some(staging) = handle.staging() else { return reply.error(Errno::EBADF) };
        if staging.has_only_cut(&state) {
            let left = processes::have_descriptor(caller::process_of(by), handle.ino, staging.flags);
            return match left {
                Some(false) => empty(&state, handle, by, answer_empty(reply)),
                _ => reply.ok(),
            };
        }
        match staging.take_closed(by) {
            Ok(None) => reply.ok(),
            Ok(Some(received)) => finish(handle, received, answer_empty(reply)),
            Err(errno) => reply.error(errno),
        }
    });
}

/// `fsync`: what is complete becomes the content now, unless applications have the database open. Then it does when the
/// file is closed: a transaction under way may have to write to the file, which the kernel keeps locked until this is
/// answered.
pub(super) fn sync(state: &Arc<State>, handle: Arc<Handle>, reply: ReplyEmpty) {
    let state = state.clone();
    state.workers.clone().run(move || {
        let Some(staging) = handle.staging() else { return reply.error(Errno::EBADF) };
        let own = u32::from(handle.app_db().is_some());
        let database = state.store.get(&staging.name);
        let others_have_it_open = database.is_some_and(|database| database.app_handles() > own);
        match staging.take_synced(others_have_it_open) {
            Ok(None) => reply.ok(),
            Ok(Some(received)) => finish(handle, received, answer_empty(reply)),
            Err(errno) => reply.error(errno),
        }
    });
}

/// The last descriptor is closed, by whomever: what is not complete by now is refused, with the reason in the log.
pub(super) fn released(state: &Arc<State>, handle: Arc<Handle>) {
    let state = state.clone();
    state.workers.clone().run(move || {
        let store = &state.store;
        let Some(staging) = handle.staging() else { return };
        if staging.has_only_cut(&state) {
            return empty(&state, handle, 0, |_told_in_the_log| ());
        }
        if matches!(*staging.lock(), Progress::Refused(_))
            && let Some(database) = store.get(&staging.name)
        {
            // It could not go while it was open.
            store.forget_if_empty(&database);
        }
        if let Some(received) = staging.take(staging.lock()) {
            // Nobody waits for an answer any more.
            finish(handle, received, |_told_in_the_log| ());
        }
    });
}
