//! `-shm`: shared memory of all connections, also of readers on a replica, which keep their read marks in it.

use fuser::Errno;

use super::caller::process_of;
use super::errno::Doing;
use super::open::PendingOpen;
use super::wal::{COPIED, create_or_finish};
use crate::types::DbName;

/// Opens or creates the wal-index.
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
    database.log_opened_by(process_of(open.opener.thread));
    let same = database.clone();
    database.shm_opened(Box::new(move |attached| match attached {
        Err(error) => open.fail_db(Doing::Open, &error),
        Ok(()) => open.finish(Some(same), true),
    }));
}
