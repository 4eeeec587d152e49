//! `<db>-lock`, as programs written for LiteFS use it: they open it for reading and writing, and lock byte 72 (the HALT
//! lock).
//!
//! Locks are the kernel's, and the daemon never hears of them. It does hear of an open, so that is what takes the write lease, and
//! the lock that follows keeps applications of this node from one another. The last close gives the lease back, as does the
//! death of the application, whose files the kernel closes.
//!
//! Source: litefs-go, litefs.go, `WithHalt`.

use fuser::Errno;

use super::handle::Kind;
use super::open::PendingOpen;
use crate::store::HoldError;
use crate::types::DbName;

/// Opens the file; for writing once this node is primary.
pub(super) fn open(pending: PendingOpen, db: &DbName) {
    if !pending.opener.writes() {
        return pending.finish_without_file(Kind::Lock { _hold: None });
    }
    let Some(holds) = pending.state.store.holds().cloned() else {
        return pending.refuse(Errno::EAGAIN, "the node is starting");
    };
    let db = db.clone();
    // It waits for the other nodes.
    pending.state.workers.clone().run(move || match holds.hold(&db) {
        Ok(hold) => pending.finish_without_file(Kind::Lock { _hold: Some(hold) }),
        Err(HoldError::Never(why)) => pending.refuse(Errno::EROFS, why),
        Err(HoldError::Late(why)) => pending.refuse(Errno::ETIMEDOUT, why),
    });
}
