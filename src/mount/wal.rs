//! `-wal`: where a commit of a WAL database becomes durable.

use fuser::Errno;

use super::errno::Doing;
use super::names::Target;
use super::open::{OpenReply, PendingOpen};
use super::state::State;
use crate::db::FileKind;
use crate::types::{Access, DbName};

/// Opens or creates the write-ahead log.
pub(super) fn open(open: PendingOpen, name: &DbName) {
    let replica = open.state.store.access() == Access::ReadOnly;
    let opener = open.opener;
    if opener.own {
        return prepare(open, |open| open.finish(None, true));
    }
    let database = match open.state.database(name) {
        Ok(database) => database,
        Err(errno) => return open.fail(errno),
    };
    if replica && opener.writes() && matches!(open.reply, OpenReply::Open(..)) {
        // SQLite then opens it read-only, and answers every write with SQLITE_READONLY at once.
        return open.refuse(Errno::EACCES, "this node is a replica: the write-ahead log is read-only here");
    }
    prepare(open, move |open| {
        let same = database.clone();
        database.wal_opened(Box::new(move |attached| match attached {
            Err(error) => open.fail_db(Doing::Open, &error),
            // The file is there now. The kernel looks again where it hears ESTALE, finds it, and the open of it
            // for writing is refused as above; a refusal now would let SQLite believe that there is no file.
            Ok(()) if replica && opener.writes() => open.fail(Errno::ESTALE),
            Ok(()) if opener.truncates() => {
                let database = same.clone();
                same.wal_truncated(
                    0,
                    Box::new(move |cut| match cut {
                        Ok(()) => open.finish(Some(database), true),
                        Err(error) => open.fail_db(Doing::Truncate, &error),
                    }),
                );
            }
            Ok(()) => open.finish(Some(same), true),
        }));
    });
}

/// Creates the backing file where it is missing, so that who attaches finds it, then goes on.
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

/// Why `-wal` or `-shm` must stay, `None` where it may be removed: SQLite removes them when the last connection
/// closes, which no application is while the daemon takes part.
pub(super) fn keeps(state: &State, name: &DbName) -> Option<&'static str> {
    [FileKind::Wal, FileKind::Shm]
        .into_iter()
        .any(|kind| state.inodes.is_open(&Target::File(name.clone(), kind)))
        .then_some("the database is in use; close it everywhere first")
}
