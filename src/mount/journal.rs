//! `-journal`: its end is the commit of a rollback-mode transaction.

use std::sync::Arc;

use fuser::{Errno, ReplyEmpty};

use super::errno::{Doing, of_db, refuse};
use super::names::Target;
use super::open::{OpenReply, PendingOpen};
use super::state::State;
use crate::db::{Done, FileKind};
use crate::types::DbName;

/// Opens or creates the rollback journal.
pub(super) fn open(open: PendingOpen, name: &DbName) {
    let writes = open.opener.writes();
    if open.opener.own {
        return super::wal::prepare(open, |open| open.finish(None, true));
    }
    if open.opener.is_foreign() {
        return open.refuse(Errno::EPERM, super::wal::COPIED);
    }
    if !open.state.store.may_commit() && writes {
        return if matches!(open.reply, OpenReply::Create(_)) || open.state.tree.has_hot_journal(name) {
            // SQLite: "attempt to write a readonly database".
            open.refuse(Errno::EACCES, "this node is not primary; .primary names the host that is")
        } else {
            // A journal without content, kept by journal_mode PERSIST or TRUNCATE. It is hidden here, see
            // `State::hides`; the kernel looks again and then tries to create it.
            open.fail(Errno::ESTALE)
        };
    }
    let database = match open.database(name) {
        Ok(database) => database,
        Err(errno) => return open.fail(errno),
    };
    let passthrough = database.journal_may_be_passed_through();
    if !writes {
        // SQLite looks into a journal that is there before every read transaction.
        return open.finish(Some(database), passthrough);
    }
    if open.creates() {
        if let Err(error) = database.journal_created() {
            return open.fail_db(Doing::Create, &error);
        }
        return open.finish(Some(database), passthrough);
    }
    let same = database.clone();
    let opened: Done = Box::new(move |ended| match ended {
        Ok(()) => open.finish(Some(same), passthrough),
        Err(error) => open.fail_db(Doing::Open, &error),
    });
    // The transaction before this one, where nothing else has told of its end.
    database.journal_synced(opened);
}

/// Ends a transaction by removing its journal.
pub(super) fn unlink(state: &Arc<State>, name: DbName, reply: ReplyEmpty) {
    let target = Target::File(name.clone(), FileKind::Journal);
    let path = target.path();
    if !state.store.may_commit() && state.tree.has_hot_journal(&name) {
        let why = "this node is not primary, and the journal is needed to roll back";
        return reply.error(refuse(&path, Doing::Unlink, Errno::EROFS, why));
    }
    let database = match state.database(&name) {
        Ok(database) => database,
        Err(errno) => return reply.error(errno),
    };
    let after = state.clone();
    database.journal_unlinked(Box::new(move |ended| match ended {
        Ok(()) => {
            after.inodes.detach(&target);
            reply.ok();
        }
        Err(error) => reply.error(of_db(&path, Doing::Unlink, &error)),
    }));
}
