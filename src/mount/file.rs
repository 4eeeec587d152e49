//! Open files: reads, writes, truncation, durability and release, by kind of file.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{Errno, ReplyAttr, ReplyData, ReplyEmpty, ReplyWrite, TimeOrNow};

use super::caller::process_of;
use super::errno::{Doing, of_db, of_io, of_store, refuse};
use super::handle::{Handle, Kind};
use super::history;
use super::names::Target;
use super::state::State;
use super::upload;
use crate::db::{Database, DbError, Done, FileKind};
use crate::io::read_up_to;
use crate::types::{Access, AttributesChange, DbName, JournalMode, MountPath};

/// Reads from what the handle stands for, for the thread `by`.
pub(super) fn read(state: &Arc<State>, by: u32, fh: u64, offset: u64, size: u32, reply: ReplyData) {
    let Some(handle) = state.handles.get(fh) else { return reply.error(Errno::EBADF) };
    if handle.is_staged() {
        return upload::read(state, handle, by, offset, size, reply);
    }
    match &handle.kind {
        Kind::File { file, .. } => {
            let mut data = vec![0; size as usize];
            let read = match handle.staged_db() {
                Some(db) => db.database_read(file, offset, &mut data),
                None => read_up_to(file, &mut data, offset),
            };
            match read {
                Ok(length) => reply.data(&data[..length]),
                Err(error) => reply.error(of_io(&handle.target.path(), Doing::Read, &error)),
            }
        }
        Kind::Point(point) => history::read(point, &handle.target.path(), offset, size, reply),
        Kind::Control(content) => {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
            reply.data(&content[start..content.len().min(start.saturating_add(size as usize))]);
        }
        Kind::Lock { .. } => reply.data(&[]),
        Kind::Upload { .. } => reply.error(Errno::EBADF),
        Kind::Directory(_) => reply.error(Errno::EISDIR),
    }
}

/// Writes for the thread `by`: an application's as an event of its database, on another thread where the database is busy.
pub(super) fn write(state: &Arc<State>, by: u32, fh: u64, offset: u64, data: &[u8], reply: ReplyWrite) {
    let Some(handle) = state.handles.get(fh) else { return reply.error(Errno::EBADF) };
    let length = data.len() as u32;
    let (store, workers) = (state.store.clone(), state.workers.clone());
    let written = move |target: &Target, reply: ReplyWrite, result: Result<(), DbError>| match result {
        Ok(()) => reply.written(length),
        Err(error) => {
            reply.error(of_db(&target.path(), Doing::Write, &error));
            if let Target::File(name, FileKind::Database) = target
                && let Some(db) = store.get(name)
            {
                workers.run(move || db.drop_refused_write());
            }
        }
    };
    match (&handle.kind, &handle.target) {
        (Kind::Upload { .. }, _) => {
            let (state, data) = (state.clone(), data.to_vec());
            state.workers.clone().run(move || upload::write(&state, &handle, by, (offset, &data), reply));
        }
        (Kind::File { db: Some(_), staging: Some(_), .. }, _) => {
            let (state, data) = (state.clone(), data.to_vec());
            state.workers.clone().run(move || {
                let Kind::File { file, db: Some(db), .. } = &handle.kind else { return };
                if handle.is_staged() || db.is_foreign_write() {
                    return upload::write(&state, &handle, by, (offset, &data), reply);
                }
                written(&handle.target, reply, db.database_write(file, offset, &data));
            });
        }
        (
            Kind::File { file, db: Some(db), .. },
            Target::File(_, kind @ (FileKind::Database | FileKind::Journal)),
        ) if !handle.own => {
            let target = handle.target.clone();
            if *kind == FileKind::Journal {
                let done = Box::new(move |result| written(&target, reply, result));
                return db.journal_write(file, offset, data, done);
            }
            if let Some(result) = db.try_database_write(file, offset, data) {
                return written(&target, reply, result);
            }
            let (handle, data) = (handle.clone(), data.to_vec());
            state.workers.run(move || {
                let Kind::File { file, db: Some(db), .. } = &handle.kind else { return };
                written(&target, reply, db.database_write(file, offset, &data));
            });
        }
        (Kind::File { db: Some(db), .. }, Target::File(_, FileKind::Wal)) if !handle.own => {
            let (db, data, target) = (db.clone(), data.to_vec(), handle.target.clone());
            let done = Box::new(move |result| written(&target, reply, result));
            state.workers.run(move || db.wal_write(offset, &data, done));
        }
        (Kind::File { file, .. }, target) => match write_own(file, data, offset) {
            Ok(()) => reply.written(length),
            Err(error) => reply.error(of_io(&target.path(), Doing::Write, &error)),
        },
        (Kind::Control(_) | Kind::Lock { .. } | Kind::Point(_) | Kind::Directory(_), _) => {
            reply.error(Errno::EBADF)
        }
    }
}

fn write_own(file: &File, data: &[u8], offset: u64) -> io::Result<()> {
    crate::io::fault::point("mount_own_write")?;
    file.write_all_at(data, offset)
}

/// A file descriptor is closed by the thread `by`: that ends what is staged, and may be the last close of a database.
pub(super) fn flush(state: &Arc<State>, by: u32, fh: u64, reply: ReplyEmpty) {
    match state.handles.get(fh) {
        Some(handle) if handle.is_staged() => upload::flush(state, handle, by, reply),
        Some(handle) => match handle.staged_db() {
            Some(db)
                if db.journal_mode() == Some(JournalMode::Wal)
                    && handle.file_has_changed(by)
                    && !db.uses_log(process_of(by)) =>
            {
                close_changed(state, db, reply);
            }
            Some(db) => db.app_closes(Box::new(move |_| reply.ok())),
            None => reply.ok(),
        },
        None => reply.ok(),
    }
}

/// One who is not SQLite, as far as is known, closes the file of a WAL database that has changed since it opened it.
fn close_changed(state: &State, db: &Arc<Database>, reply: ReplyEmpty) {
    let same = db.clone();
    let captured: Done = Box::new(move |captured| {
        let errno = captured.err().map(|error| of_db(same.name().as_str(), Doing::Write, &error));
        same.app_closes(Box::new(move |_| match errno {
            None => reply.ok(),
            Some(errno) => reply.error(errno),
        }));
    });
    state.store.capture_unseen_writes(db, captured);
}

/// The last descriptor of a handle is closed.
pub(super) fn release(state: &Arc<State>, fh: u64) {
    let Some(handle) = state.handles.remove(fh) else { return };
    if handle.counts() {
        state.inodes.close(handle.ino);
    }
    if matches!(handle.kind, Kind::Upload { .. }) {
        return upload::released(state, handle);
    }
    if let (Some(db), Target::File(_, FileKind::Database)) = (handle.app_db(), &handle.target) {
        db.app_closed();
        if db.content_was_refused() {
            let (store, db) = (state.store.clone(), db.clone());
            state.workers.run(move || store.forget_if_empty(&db));
        }
    }
    if handle.staging().is_some() {
        return upload::released(state, handle);
    }
    if let (Some(db), Target::File(_, FileKind::Journal)) = (handle.app_db(), &handle.target) {
        // With synchronous=OFF nothing but this tells of the end in journal_mode=PERSIST.
        let path = handle.target.path();
        db.journal_synced(Box::new(move |result| {
            if let Err(error) = result {
                let _told_in_the_log = of_db(&path, Doing::Sync, &error);
            }
        }));
    }
}

/// Makes what was written durable; for `-wal` that is the commit.
pub(super) fn sync(state: &Arc<State>, fh: u64, reply: ReplyEmpty) {
    let Some(handle) = state.handles.get(fh) else { return reply.error(Errno::EBADF) };
    if handle.is_staged() {
        return upload::sync(state, handle, reply);
    }
    let Kind::File { db, .. } = &handle.kind else { return reply.ok() };
    let target = handle.target.clone();
    let app_db = db.clone().filter(|_| !handle.own);
    match (app_db, &handle.target) {
        (Some(db), Target::File(_, FileKind::Wal)) => {
            let done = answer_empty(target, Doing::Sync, reply);
            if state.passthrough() {
                // The hot path of every commit: no hop to another thread. What it touches is not behind this mount.
                db.wal_synced(done);
            } else {
                state.workers.run(move || db.wal_synced(done));
            }
        }
        (Some(db), Target::File(_, FileKind::Database)) => {
            let done = answer_empty(target, Doing::Sync, reply);
            if state.passthrough() {
                db.database_synced(done);
            } else {
                // It may look into the wal-index, which is behind this mount then.
                state.workers.run(move || db.database_synced(done));
            }
        }
        (Some(db), Target::File(_, FileKind::Journal)) => {
            db.journal_synced(answer_empty(target, Doing::Sync, reply));
        }
        // Shared memory is made anew after a crash, and there is nothing to roll back: what a transaction writes
        // reaches its database only through the log.
        (
            _,
            Target::File(_, FileKind::Shm | FileKind::Journal)
            | Target::SuperJournal(_)
            | Target::Temporary(_),
        ) => reply.ok(),
        _ => {
            state.workers.run(move || {
                let Some(file) = handle.file() else { return reply.ok() };
                let synced = file.sync_data().map_err(|error| of_io(&target.path(), Doing::Sync, &error));
                match synced {
                    Ok(()) => reply.ok(),
                    Err(errno) => reply.error(errno),
                }
            });
        }
    }
}

/// The callback that answers a request which has nothing to return.
pub(super) fn answer_empty(target: Target, doing: Doing, reply: ReplyEmpty) -> Done {
    Box::new(move |result| match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(of_db(&target.path(), doing, &error)),
    })
}

/// Changes of attributes that are asked for at once.
#[derive(Clone, Copy, Default)]
pub(super) struct Changes {
    /// Permissions.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: Option<TimeOrNow>,
    /// Time of last change.
    pub mtime: Option<TimeOrNow>,
}

/// Changes attributes of an inode, for this program itself or for the thread `by`; a size is an event of its database.
pub(super) fn change(
    state: &Arc<State>,
    (own, by): (bool, u32),
    ino: u64,
    fh: Option<u64>,
    changes: Changes,
    reply: ReplyAttr,
) {
    let Some(known) = state.inodes.get(ino) else { return reply.error(Errno::ESTALE) };
    if matches!(known.target, Target::History(_) | Target::Point(_)) {
        return reply.error(Errno::EROFS);
    }
    if let Err(errno) = change_plain(state, &known.target, &changes) {
        return reply.error(errno);
    }
    let change = AttributesChange { uid: changes.uid, gid: changes.gid, mode: changes.mode };
    let path = match &known.target {
        Target::Directory(path) => DbName::new(path).map_or(MountPath::Root, MountPath::Directory),
        Target::File(db, FileKind::Database) => MountPath::Database(db.clone()),
        // Side files have owner and permissions of their database, control files those of the mount: asked for what a
        // database below the same directory is given, as `chown -R` does, they say yes.
        _ => return change_size(state, (own, by), &known.target, (ino, fh), changes.size, reply),
    };
    if own || change.is_empty() {
        return change_size(state, (own, by), &known.target, (ino, fh), changes.size, reply);
    }
    if state.store.access() != Access::Write {
        let why = "this node is not primary; .primary names the host that is";
        return reply.error(refuse(&known.target.path(), Doing::Attributes, Errno::EROFS, why));
    }
    let (after, target, size) = (state.clone(), known.target, changes.size);
    let done = move |changed| match changed {
        Ok(()) => change_size(&after, (own, by), &target, (ino, fh), size, reply),
        Err(error) => reply.error(of_store(&target.path(), Doing::Attributes, &error)),
    };
    let store = state.store.clone();
    state.workers.run(move || store.set_attributes(&path, change, Box::new(done)));
}

/// Changes the size, where that was asked for too, and answers.
fn change_size(
    state: &Arc<State>,
    (own, by): (bool, u32),
    target: &Target,
    (ino, fh): (u64, Option<u64>),
    size: Option<u64>,
    reply: ReplyAttr,
) {
    let handle = fh.and_then(|fh| state.handles.get(fh));
    let Some(size) = size else { return state.answer_attr(ino, fh, by, reply) };
    let own = own || handle.as_ref().is_some_and(|handle| handle.own);
    match (&handle, target) {
        (Some(handle), _) if handle.staging().is_some() => {
            return truncate_staged(state, handle.clone(), fh.unwrap_or_default(), by, size, reply);
        }
        (None, Target::File(name, FileKind::Database)) if !own => {
            return upload::truncate_by_name(state, name.clone(), (ino, by), size, reply);
        }
        _ => {}
    }
    truncate(state, own, target, handle.as_deref(), size, ino, reply);
}

/// Cuts or extends through a handle that may not be SQLite's.
fn truncate_staged(state: &Arc<State>, handle: Arc<Handle>, fh: u64, by: u32, size: u64, reply: ReplyAttr) {
    let state = state.clone();
    state.workers.clone().run(move || {
        let sqlite = handle.app_db().filter(|db| !handle.is_staged() && !db.is_foreign_write());
        match sqlite {
            Some(_) => truncate(&state, false, &handle.target, Some(&handle), size, handle.ino, reply),
            None => upload::truncate(&state, &handle, fh, by, size, reply),
        }
    });
}

fn truncate(
    state: &Arc<State>,
    own: bool,
    target: &Target,
    handle: Option<&Handle>,
    size: u64,
    ino: u64,
    reply: ReplyAttr,
) {
    match target {
        Target::File(db, kind) if !own => {
            let db = match handle.and_then(Handle::app_db).cloned().map_or_else(|| state.database(db), Ok) {
                Ok(db) => db,
                Err(errno) => return reply.error(errno),
            };
            let (after, target, kind) = (state.clone(), target.clone(), *kind);
            let done: Done = Box::new(move |result| match result {
                Ok(()) => after.answer_attr(ino, None, 0, reply),
                Err(error) => reply.error(after.refused(&target, Doing::Truncate, &error)),
            });
            if kind == FileKind::Journal {
                // The commit of journal_mode=TRUNCATE; never waits here.
                return db.journal_truncated(size, done);
            }
            state.workers.run(move || match kind {
                FileKind::Database => db.database_truncated(size, done),
                FileKind::Shm => db.shm_truncated(size, done),
                _ => db.wal_truncated(size, done),
            });
        }
        Target::File(..) | Target::SuperJournal(_) | Target::Temporary(_) => {
            let cut = match handle.and_then(Handle::file) {
                Some(file) => file.set_len(size),
                None => state.tree.backing(target).map_or(Ok(()), |path| {
                    File::options().write(true).open(path).and_then(|file| file.set_len(size))
                }),
            };
            match cut {
                Ok(()) => state.answer_attr(ino, None, 0, reply),
                Err(error) => reply.error(of_io(&target.path(), Doing::Truncate, &error)),
            }
        }
        _ => reply.error(Errno::EPERM),
    }
}

/// Times go to the backing file and stay there, and so do owner and permissions of a file of this node alone.
fn change_plain(state: &State, target: &Target, changes: &Changes) -> Result<(), Errno> {
    let Changes { mut mode, mut uid, mut gid, atime, mtime, size: _ } = *changes;
    if !matches!(target, Target::SuperJournal(_) | Target::Temporary(_)) {
        (mode, uid, gid) = (None, None, None);
    }
    let times = atime.is_some() || mtime.is_some();
    if mode.is_none() && uid.is_none() && gid.is_none() && !times {
        return Ok(());
    }
    let path = state.tree.backing(target).ok_or(Errno::EPERM)?;
    if matches!(target, Target::Directory(_)) && !path.is_dir() {
        // It has no times of its own before there is a database in it.
        return Ok(());
    }
    let apply = || -> io::Result<()> {
        if uid.is_some() || gid.is_some() {
            chown(&path, uid, gid)?;
        }
        if let Some(mode) = mode {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o7777))?;
        }
        if times {
            let mut times = fs::FileTimes::new();
            times = atime.map_or(times, |atime| times.set_accessed(moment(atime)));
            times = mtime.map_or(times, |mtime| times.set_modified(moment(mtime)));
            File::open(&path)?.set_times(times)?;
        }
        Ok(())
    };
    apply().map_err(|error| of_io(&target.path(), Doing::Write, &error))
}

fn moment(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}
