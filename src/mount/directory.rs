//! Names: lookup, listing, and what may be made, removed and renamed.

use std::ffi::OsStr;
use std::fs;
use std::sync::Arc;

use fuser::{
    Errno, FileHandle, FileType, FopenFlags, Generation, INodeNo, RenameFlags, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen,
};

use super::attr::{self, FOREVER, NEVER};
use super::errno::{Doing, of_io, of_store, refuse};
use super::handle::{Handle, Kind};
use super::names::{self, Target, join};
use super::state::State;
use super::{database, history, journal, super_journal, wal};
use crate::db::FileKind;
use crate::types::{Access, DbName};

/// The directory's path, where the number is one's.
pub(super) fn path_of(state: &State, ino: u64) -> Result<String, Errno> {
    match state.inodes.get(ino).ok_or(Errno::ESTALE)?.target {
        Target::Directory(path) => Ok(path),
        Target::History(_) => Err(Errno::EROFS),
        _ => Err(Errno::ENOTDIR),
    }
}

/// What exists under a name.
pub(super) fn find(state: &State, parent: u64, name: &OsStr) -> Result<Target, Errno> {
    let directory = path_of(state, parent)?;
    let name = name.to_str().ok_or(Errno::ENOENT)?;
    let found = state.tree.find(&directory, name);
    found.map_err(|error| of_io(&join(&directory, name), Doing::Read, &error))?.ok_or(Errno::ENOENT)
}

/// Looks a name up. That there is nothing is remembered by the kernel as well: SQLite asks for journals that do not
/// exist at every read transaction.
pub(super) fn lookup(state: &Arc<State>, own: bool, parent: u64, name: &OsStr, reply: ReplyEntry) {
    if let (Some(directory), Some(name)) = (state.inodes.get(parent), name.to_str())
        && history::is_below(state, &directory.target, name)
    {
        return history::lookup(state, directory.target, name.to_owned(), reply);
    }
    let found = find(state, parent, name).and_then(|target| {
        let hidden = !own && state.hides(&target);
        if hidden { Err(Errno::ENOENT) } else { Ok((state.look_up(&target)?, target)) }
    });
    match found {
        Ok(((attr, attr_ttl), target)) => {
            reply.entry_with_ttls(&attr_ttl, &attr::entry_ttl(&target), &attr, Generation(0));
        }
        Err(errno) if errno == Errno::ENOENT => {
            let path = path_of(state, parent).map(|directory| join(&directory, &name.to_string_lossy()));
            let target = path.ok().and_then(|path| names::classify(&path).ok());
            let volatile = match &target {
                Some(Target::Primary | Target::Pos(_) | Target::Lock(_)) => true,
                // A journal that is hidden now is an empty one: nobody misses it when the node becomes primary.
                // Its log comes with the first open; only rollback databases are asked for it again and again.
                Some(Target::File(db, FileKind::Wal | FileKind::Shm)) => state.tree.is_wal(db),
                _ => false,
            };
            let ttl = if volatile { NEVER } else { FOREVER };
            reply.entry(&ttl, &attr::of_nothing(), Generation(0));
        }
        Err(errno) => reply.error(errno),
    }
}

/// Opens a directory: its listing is made now, so that positions in it stay valid.
pub(super) fn open(state: &Arc<State>, ino: u64, reply: ReplyOpen) {
    let known = state.inodes.get(ino).map(|known| known.target);
    if let Some(target @ Target::History(_)) = known {
        let state = state.clone();
        return state.workers.clone().run(move || {
            let Target::History(path) = &target else { return reply.error(Errno::ENOTDIR) };
            let kind = Kind::Directory(history::list(&state, path));
            let fh = state.handles.insert(Handle { ino, target, own: false, kind });
            reply.opened(FileHandle(fh), FopenFlags::empty());
        });
    }
    let listed = path_of(state, ino).and_then(|path| {
        let mut listed = state.tree.list(&path).map_err(|error| of_io(&path, Doing::Read, &error))?;
        listed.retain(|(_, target)| !state.hides(target));
        if path.is_empty() {
            listed.insert(0, (names::LAG.to_owned(), Target::Lag));
            if state.primary().is_some() {
                listed.insert(1, (names::PRIMARY.to_owned(), Target::Primary));
            }
        }
        Ok((path, listed))
    });
    match listed {
        Ok((path, listed)) => {
            let kind = Kind::Directory(listed);
            let fh = state.handles.insert(Handle { ino, target: Target::Directory(path), own: false, kind });
            reply.opened(FileHandle(fh), FopenFlags::empty());
        }
        Err(errno) => reply.error(errno),
    }
}

/// Lists a directory from position `offset` on.
pub(super) fn read(state: &State, fh: u64, offset: u64, mut reply: ReplyDirectory) {
    let Some(handle) = state.handles.get(fh) else { return reply.error(Errno::EBADF) };
    let Kind::Directory(listed) = &handle.kind else { return reply.error(Errno::ENOTDIR) };
    let dots = [(".", FileType::Directory), ("..", FileType::Directory)];
    let dots = dots.into_iter().map(|(name, kind)| (handle.ino, kind, name));
    let entries = listed.iter().enumerate().map(|(position, (name, target))| {
        let kind = match target {
            Target::Directory(_) | Target::History(_) => FileType::Directory,
            _ => FileType::RegularFile,
        };
        // A number is only given at lookup; until then any one that is nobody's will do.
        (state.inodes.number(target).unwrap_or(u64::MAX - position as u64), kind, name.as_str())
    });
    let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
    for (position, (ino, kind, name)) in dots.chain(entries).enumerate().skip(skipped) {
        if reply.add(INodeNo(ino), position as u64 + 1, kind, name) {
            break;
        }
    }
    reply.ok();
}

/// Makes a subdirectory, on every node.
pub(super) fn make(
    state: &Arc<State>,
    parent: u64,
    name: &OsStr,
    (mode, uid, gid): (u32, u32, u32),
    reply: ReplyEntry,
) {
    let checked = path_of(state, parent).and_then(|directory| {
        let path = join(&directory, name.to_str().ok_or(Errno::EINVAL)?);
        let refused = |why: &str| refuse(&path, Doing::Create, Errno::EPERM, why);
        match names::classify(&path) {
            Ok(Target::File(db, FileKind::Database)) => Ok((directory, db)),
            Ok(_) => Err(refused("the name is one of SQLite's side files")),
            Err(why) => Err(refused(&why)),
        }
    });
    let (directory, path) = match checked {
        Ok(checked) => checked,
        Err(errno) => return reply.error(errno),
    };
    if let Err(errno) = writable(state, path.as_str(), Doing::Create) {
        return reply.error(errno);
    }
    let attributes = state.attributes_of_new(&directory, (uid, gid, mode), true);
    let (after, target) = (state.clone(), Target::Directory(path.to_string()));
    let made = move |made| {
        let found = match made {
            Ok(()) => after.look_up(&target),
            Err(error) => Err(of_store(&target.path(), Doing::Create, &error)),
        };
        match found {
            Ok((attr, ttl)) => reply.entry_with_ttls(&ttl, &FOREVER, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    };
    let store = state.store.clone();
    state.workers.run(move || store.make_directory(&path, attributes, Box::new(made)));
}

/// Refuses a change of names where this node may not write.
fn writable(state: &State, path: &str, doing: Doing) -> Result<(), Errno> {
    if state.store.access() == Access::Write {
        return Ok(());
    }
    Err(refuse(path, doing, Errno::EROFS, "this node is not primary; .primary names the host that is"))
}

/// Removes an empty subdirectory, on every node.
pub(super) fn remove(state: &Arc<State>, parent: u64, name: &OsStr, reply: ReplyEmpty) {
    let target = match find(state, parent, name) {
        Ok(target) => target,
        Err(errno) => return reply.error(errno),
    };
    let Some(path) = directory_path(&target) else { return reply.error(Errno::ENOTDIR) };
    if let Err(errno) = writable(state, path.as_str(), Doing::Unlink) {
        return reply.error(errno);
    }
    let after = state.clone();
    let removed = move |removed| match removed {
        Ok(()) => {
            after.inodes.detach(&target);
            reply.ok();
        }
        Err(error) => reply.error(of_store(&target.path(), Doing::Unlink, &error)),
    };
    let store = state.store.clone();
    state.workers.run(move || store.remove_directory(&path, Box::new(removed)));
}

/// The path of a directory that can be removed or renamed.
fn directory_path(target: &Target) -> Option<DbName> {
    match target {
        Target::Directory(path) => DbName::new(path).ok(),
        _ => None,
    }
}

/// Renames a directory, on every node, with the databases in it.
fn rename_directory(state: &Arc<State>, from: Target, to: Target, flags: RenameFlags, reply: ReplyEmpty) {
    let (Some(old), Target::File(new, FileKind::Database)) = (directory_path(&from), to) else {
        let why = "a directory cannot have the name of one of SQLite's side files";
        return reply.error(refuse(&from.path(), Doing::Rename, Errno::EPERM, why));
    };
    if let Err(errno) = writable(state, old.as_str(), Doing::Rename) {
        return reply.error(errno);
    }
    if state.tree.has_database(&new) {
        return reply.error(Errno::ENOTDIR);
    }
    if state.store.is_directory(new.as_str()) && flags.contains(RenameFlags::RENAME_NOREPLACE) {
        return reply.error(Errno::EEXIST);
    }
    let (after, renamed) = (state.clone(), (old.clone(), new.clone()));
    let done = move |done| match done {
        Ok(()) => {
            after.inodes.detach(&Target::Directory(renamed.1.to_string()));
            after.inodes.rename_directory(renamed.0.as_str(), renamed.1.as_str());
            reply.ok();
        }
        Err(error) => reply.error(of_store(&from.path(), Doing::Rename, &error)),
    };
    let store = state.store.clone();
    state.workers.run(move || store.rename_directory(&old, &new, Box::new(done)));
}

/// Removes a file; of a database, a journal and a super-journal that is an event.
pub(super) fn unlink(state: &Arc<State>, own: bool, parent: u64, name: &OsStr, reply: ReplyEmpty) {
    let target = match find(state, parent, name) {
        Ok(target) => target,
        Err(errno) => return reply.error(errno),
    };
    if !own && let Err(errno) = state.check_not_held(&target, Doing::Unlink) {
        return reply.error(errno);
    }
    match target {
        Target::Directory(_) => reply.error(Errno::EISDIR),
        Target::History(_) | Target::Point(_) => reply.error(Errno::EROFS),
        Target::Temporary(_) => unlink_plain(state, &target, reply),
        Target::File(..) | Target::SuperJournal(_) if own => unlink_plain(state, &target, reply),
        Target::File(db, FileKind::Database) => database::unlink(state, db, reply),
        Target::File(db, FileKind::Journal) => journal::unlink(state, db, reply),
        Target::File(ref db, kind @ (FileKind::Wal | FileKind::Shm)) => {
            let db = db.clone();
            wal::unlink(state, target, &db, kind, reply);
        }
        Target::SuperJournal(_) => super_journal::unlink(state, target, reply),
        Target::Pos(_) | Target::Lock(_) | Target::Primary | Target::Lag => {
            reply.error(refuse(
                &target.path(),
                Doing::Unlink,
                Errno::EPERM,
                "control files cannot be removed",
            ));
        }
    }
}

fn unlink_plain(state: &State, target: &Target, reply: ReplyEmpty) {
    let Some(path) = state.tree.backing(target) else { return reply.error(Errno::EPERM) };
    match fs::remove_file(path) {
        Ok(()) => {
            state.inodes.detach(target);
            reply.ok();
        }
        Err(error) => reply.error(of_io(&target.path(), Doing::Unlink, &error)),
    }
}

/// Renames a database onto a new name, or over another database; or a directory.
pub(super) fn rename(
    state: &Arc<State>,
    (parent, name): (u64, &OsStr),
    (new_parent, new_name): (u64, &OsStr),
    flags: RenameFlags,
    reply: ReplyEmpty,
) {
    let to = path_of(state, new_parent)
        .and_then(|directory| Ok(join(&directory, names::text(new_name)?)))
        .map(|path| names::classify(&path));
    let (from, to) = match (find(state, parent, name), to) {
        (Ok(from), Ok(to)) => (from, to),
        (Err(errno), _) | (_, Err(errno)) => return reply.error(errno),
    };
    if flags.contains(RenameFlags::RENAME_EXCHANGE) {
        let why = "databases and directories cannot be exchanged";
        return reply.error(refuse(&from.path(), Doing::Rename, Errno::EINVAL, why));
    }
    if let (Target::Directory(_), Ok(to)) = (&from, &to) {
        let to = to.clone();
        return rename_directory(state, from, to, flags, reply);
    }
    let denied = |why: &str| refuse(&from.path(), Doing::Rename, Errno::EPERM, why);
    let (Target::File(old, FileKind::Database), Ok(Target::File(new, FileKind::Database))) = (&from, to)
    else {
        return reply.error(denied("only databases can be renamed, and only to the name of a database; a -wal or -journal beside one does not count: use skein db import"));
    };
    let onto = Target::File(new.clone(), FileKind::Database);
    let held =
        [&from, &onto].into_iter().find_map(|target| state.check_not_held(target, Doing::Rename).err());
    if let Some(errno) = held {
        return reply.error(errno);
    }
    let new_exists = state.tree.has_database(&new);
    if new_exists && flags.contains(RenameFlags::RENAME_NOREPLACE) {
        return reply.error(Errno::EEXIST);
    }
    if !new_exists && state.store.is_directory(new.as_str()) {
        return reply.error(Errno::EISDIR);
    }
    database::rename(state, old.clone(), new, reply);
}
