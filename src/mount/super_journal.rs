//! Super-journals: the removal of one is the commit of a transaction over several rollback-mode databases.

use std::sync::Arc;

use fuser::{Errno, ReplyEmpty};

use super::errno::{Doing, of_db, of_io};
use super::names::Target;
use super::open::PendingOpen;
use super::state::State;
use crate::types::Access;

/// Opens or creates a super-journal, a plain file.
pub(super) fn open(open: PendingOpen) {
    if open.creates() && open.state.store.access() != Access::Write && !open.opener.own {
        return open.refuse(Errno::EACCES, "this node is not primary; .primary names the host that is");
    }
    if let Some(path) = open.state.tree.backing(&open.target) {
        open.state.store.super_journal_made(&path);
    }
    open_temporary(open);
}

/// Opens or creates a plain file of this node alone, which SQLite uses for a sort or a VACUUM, on a replica too.
pub(super) fn open_temporary(open: PendingOpen) {
    if open.creates()
        && let Err(errno) = open.create_backing()
    {
        return open.fail(errno);
    }
    if open.opener.truncates()
        && let Some(path) = open.state.tree.backing(&open.target)
        && let Err(error) = std::fs::File::options().write(true).truncate(true).open(path)
    {
        let errno = of_io(&open.target.path(), Doing::Truncate, &error);
        return open.fail(errno);
    }
    open.finish(None, false);
}

/// Commits the transactions it binds together, then removes it.
pub(super) fn unlink(state: &Arc<State>, target: Target, reply: ReplyEmpty) {
    let Some(backing) = state.tree.backing(&target) else { return reply.error(Errno::EPERM) };
    let after = state.clone();
    state.workers.clone().run(move || {
        let store = after.store.clone();
        store.super_journal_unlinked(
            &backing,
            Box::new(move |ended| match ended {
                Ok(()) => {
                    after.inodes.detach(&target);
                    reply.ok();
                }
                Err(error) => reply.error(of_db(&target.path(), Doing::Unlink, &error)),
            }),
        );
    });
}
