//! `-shm`: shared memory of all connections, also of readers on a replica, which keep their read marks in it.

use super::errno::Doing;
use super::open::PendingOpen;
use super::wal::prepare;
use crate::types::DbName;

/// Opens or creates the wal-index.
pub(super) fn open(open: PendingOpen, name: &DbName) {
    if open.opener.own {
        return prepare(open, |open| open.finish(None, true));
    }
    let database = match open.state.database(name) {
        Ok(database) => database,
        Err(errno) => return open.fail(errno),
    };
    prepare(open, move |open| {
        let same = database.clone();
        database.wal_opened(Box::new(move |attached| match attached {
            Err(error) => open.fail_db(Doing::Open, &error),
            Ok(()) => open.finish(Some(same), true),
        }));
    });
}
