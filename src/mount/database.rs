//! The database file: attach before an open is answered, uploads, writes under a rollback journal.

use std::sync::Arc;
use std::time::Duration;

use fuser::{Errno, ReplyEmpty};

use super::errno::{Doing, of_db, of_store, refuse};
use super::names::Target;
use super::open::PendingOpen;
use super::state::State;
use super::upload::Staging;
use crate::db::{Database, FileKind};
use crate::store::{Renamed, StoreError};
use crate::types::{Access, DbName, PageCount};

const NOT_PRIMARY: &str = "this node is not primary; .primary names the host that is";

/// How long a database that is being closed may take until the daemon hears of it.
const CLOSING: Duration = Duration::from_millis(250);

const READ_ONLY: &str = "the database is read-only on this node; .primary names the host that writes";

/// Opens or creates a database file.
pub(super) fn open(open: PendingOpen, name: &DbName) {
    let opener = open.opener;
    if opener.own {
        if open.creates() {
            return open.fail(Errno::EPERM);
        }
        let wal = is_wal(&open);
        return open.finish(None, wal);
    }
    let access = open.state.store.access();
    if open.creates() {
        return match access {
            Access::Write => create(open, name.clone()),
            _ => open.refuse(Errno::EACCES, NOT_PRIMARY),
        };
    }
    if opener.writes() && open.state.is_read_only(name) {
        // SQLite then opens it read-only by itself, and answers every write with SQLITE_READONLY at once.
        return open.refuse(Errno::EACCES, READ_ONLY);
    }
    if access != Access::Write && opener.is_foreign() {
        return open.refuse(Errno::EROFS, NOT_PRIMARY);
    }
    match open.database(name) {
        Ok(_) if opener.is_foreign() => upload(open, name),
        Ok(database) => attach(open, database),
        Err(errno) => open.fail(errno),
    }
}

fn create(open: PendingOpen, name: DbName) {
    let state = open.state.clone();
    let directory = name.as_str().rsplit_once('/').map_or("", |(directory, _)| directory);
    let opener = &open.opener;
    let attributes = state.attributes_of_new(directory, (opener.uid, opener.gid, opener.mode), false);
    state.workers.clone().run(move || {
        let db = name.clone();
        // The answer comes on the log's thread, and what follows may wait.
        let made = move |made| open.state.workers.clone().run(move || created(open, made, &db));
        state.store.create_database(&name, attributes, Box::new(made));
    });
}

fn created(open: PendingOpen, made: Result<Arc<Database>, StoreError>, name: &DbName) {
    match made {
        Ok(_) if open.opener.is_foreign() || open.opener.excludes() => upload(open, name),
        Ok(database) => attach(open, database),
        Err(error) => {
            open.state.store.abandon_creation(name);
            let errno = of_store(name.as_str(), Doing::Create, &error);
            open.fail(errno);
        }
    }
}

/// Answers the open of a program that is not SQLite.
fn upload(open: PendingOpen, name: &DbName) {
    let staging = Staging::new(name.clone(), open.opener.thread, open.opener.flags);
    open.finish_upload(staging);
}

/// Answers the open once the database is attached.
fn attach(open: PendingOpen, database: Arc<Database>) {
    let same = database.clone();
    database.app_opened(Box::new(move |attached| match attached {
        Err(error) => open.fail_db(Doing::Open, &error),
        Ok(()) => {
            let wal = is_wal(&open);
            let unsure = open.opener.writes() && !open.opener.is_sqlite_like();
            // In a rollback mode a write without a journal is refused anyway.
            if unsure && (wal || same.size().1 == PageCount::ZERO) {
                open.finish_unsure(same);
            } else {
                open.finish(Some(same), wal);
            }
        }
    }));
}

fn is_wal(open: &PendingOpen) -> bool {
    open.target.db().is_some_and(|db| open.state.tree.is_wal(db))
}

/// Drops a database everywhere.
pub(super) fn unlink(state: &Arc<State>, name: DbName, reply: ReplyEmpty) {
    if state.store.access() != Access::Write {
        return reply.error(refuse(name.as_str(), Doing::Unlink, Errno::EROFS, NOT_PRIMARY));
    }
    let same = state.clone();
    state.workers.run(move || {
        let after = same.clone();
        let db = name.clone();
        same.store.drop_database(
            &name,
            Box::new(move |dropped| match dropped {
                Ok(()) => {
                    for kind in FileKind::ALL {
                        after.inodes.detach(&Target::File(db.clone(), kind));
                    }
                    after.inodes.detach(&Target::Pos(db));
                    reply.ok();
                }
                Err(error) => reply.error(of_db(db.as_str(), Doing::Unlink, &error)),
            }),
        );
    });
}

/// Renames a database everywhere.
pub(super) fn rename(state: &Arc<State>, from: DbName, to: DbName, reply: ReplyEmpty) {
    if state.store.access() != Access::Write {
        return reply.error(refuse(from.as_str(), Doing::Rename, Errno::EROFS, NOT_PRIMARY));
    }
    let written = state.inodes.number(&Target::File(from.clone(), FileKind::Database));
    if written.is_some_and(|ino| state.handles.staged_size(ino).is_some()) {
        let why = "is being written; close it before renaming";
        return reply.error(refuse(from.as_str(), Doing::Rename, Errno::EBUSY, why));
    }
    let same = state.clone();
    state.workers.run(move || {
        let after = same.clone();
        for closing in [&from, &to].into_iter().filter_map(|name| same.store.get(name)) {
            closing.wait_until_closed(CLOSING);
        }
        let (old, new) = (from.clone(), to.clone());
        same.store.rename(
            &from,
            &to,
            Box::new(move |renamed| match renamed {
                Ok(Renamed::Into) => {
                    // The kernel has moved the old name's inode to the new name, whose own has the content: it asks
                    // again, for the old inode is nobody's.
                    for kind in FileKind::ALL {
                        after.inodes.detach(&Target::File(old.clone(), kind));
                    }
                    reply.ok();
                }
                Ok(Renamed::Moved) => {
                    for kind in [FileKind::Wal, FileKind::Shm, FileKind::Journal] {
                        after.inodes.detach(&Target::File(old.clone(), kind));
                        after.inodes.detach(&Target::File(new.clone(), kind));
                    }
                    after.inodes.rename(
                        &Target::File(old, FileKind::Database),
                        &Target::File(new, FileKind::Database),
                    );
                    reply.ok();
                }
                Err(error) => reply.error(of_db(old.as_str(), Doing::Rename, &error)),
            }),
        );
    });
}
