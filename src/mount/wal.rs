//! `-wal`: where a commit of a WAL database becomes durable.

use std::sync::Arc;

use fuser::{Errno, ReplyEmpty};

use super::caller::process_of;
use super::errno::{Doing, of_db};
use super::names::Target;
use super::open::PendingOpen;
use super::state::State;
use crate::db::FileKind;
use crate::types::DbName;

/// Why a side file cannot be written by anything but SQLite: its rows would not count.
pub(super) const COPIED: &str = "what is copied beside a database does not count; close the source with SQLite and copy the \
                                 database alone, or use skein db import";

/// Opens or creates the write-ahead log.
pub(super) fn open(open: PendingOpen, name: &DbName) {
    if !open.opener.own && open.opener.is_foreign() {
        return open.refuse(Errno::EPERM, COPIED);
    }
    if open.opener.own || open.creates() {
        return create_or_finish(open);
    }
    let database = match open.database(name) {
        Ok(database) => database,
        Err(errno) => return open.fail(errno),
    };
    if open.opener.writes() && open.state.is_read_only(name) {
        // SQLite then opens it read-only, and answers every write with SQLITE_READONLY at once.
        return open.refuse(Errno::EACCES, "the write-ahead log is read-only on this node");
    }
    let same = database.clone();
    let writes = open.opener.writes();
    let opened = move |attached| match attached {
        Err(error) => open.fail_db(Doing::Open, &error),
        Ok(()) if same.has_exclusive_client() => {
            same.log_opened_by(process_of(open.opener.thread));
            open.finish_through_this_program(Some(same));
        }
        Ok(()) => open.finish(Some(same), true),
    };
    database.wal_opened(writes, Box::new(opened));
}

/// Creates `-wal` or `-shm` where it is missing. This program's own open ends there; an application comes again to
/// open what is there now, see [`PendingOpen::start`].
pub(super) fn create_or_finish(open: PendingOpen) {
    prepare(open, |open| if open.opener.own { open.finish(None, true) } else { open.fail(Errno::ESTALE) });
}

/// Creates the backing file where it is missing, then goes on.
pub(super) fn prepare(open: PendingOpen, then: impl FnOnce(PendingOpen)) {
    if open.creates() {
        let has_database = open.target.db().is_some_and(|db| open.state.tree.has_database(db));
        if !has_database {
            return open.refuse(Errno::ENOENT, "a side file needs its database first");
        }
        if let Err(errno) = open.create_backing() {
            return open.fail(errno);
        }
    }
    then(open);
}

/// Removes `-wal` or `-shm`: SQLite does so when the last connection closes, which no application is while the daemon
/// takes part for good.
pub(super) fn unlink(state: &Arc<State>, target: Target, name: &DbName, kind: FileKind, reply: ReplyEmpty) {
    let database = match state.database(name) {
        Ok(database) => database,
        Err(errno) => return reply.error(errno),
    };
    let open = |kind| state.inodes.is_open(&Target::File(name.clone(), kind));
    let in_use = open(FileKind::Wal) || open(FileKind::Shm);
    let state = state.clone();
    database.side_file_unlinked(
        kind,
        in_use,
        Box::new(move |removed| match removed {
            Ok(()) => {
                state.inodes.detach(&target);
                reply.ok();
            }
            Err(error) => reply.error(of_db(&target.path(), Doing::Unlink, &error)),
        }),
    );
}
