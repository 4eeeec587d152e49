//! Transactions over several databases (ATTACH) under a super-journal: one entry, all or nothing.

use std::path::Path;
use std::sync::Arc;

use super::run_sink::RunSink;
use super::{ChangeKind, Store};
use crate::db::{CommitError, Database, DbError, Done, take_back};
use crate::types::DbName;

/// Bytes of change sets that ride in the entry of a group; what is beyond becomes blobs, whatever their size.
const GROUP_INLINE_BYTES_MAX: u64 = 2 << 20;

/// Captures the databases of the super-journal at `path`, proposes them as one entry, then removes the file.
///
/// The unlink of the super-journal is SQLite's commit point: afterwards the journals are leftovers.
pub(super) fn commit(store: &Arc<Store>, sink: &Arc<RunSink>, path: &Path, done: Done) {
    let label =
        path.file_name().map_or_else(|| "super-journal".into(), |name| name.to_string_lossy().into_owned());
    let db = DbName::new(&label).or_else(|_| DbName::new("super-journal")).expect("a fixed name is valid");
    let io_error = |what: &str, source| DbError::Io { db: db.clone(), what: what.to_owned(), source };
    let content = match std::fs::read(path) {
        Ok(content) => content,
        Err(source) => return done(Err(io_error("reading the super-journal", source))),
    };
    let mut members: Vec<Arc<Database>> = Vec::new();
    let mut sets = Vec::new();
    let name = path.file_name().unwrap_or_default();
    let mut room = GROUP_INLINE_BYTES_MAX;
    for database in store.all().into_iter().filter(|database| database.is_member_of(name, &content)) {
        match database.prepare_group(room) {
            Ok(Some(set)) => {
                room = room.saturating_sub(set.inline_bytes() as u64);
                members.push(database);
                sets.push(set);
            }
            Ok(None) => {}
            Err(error) => {
                let why = CommitError::Refused(error.to_string());
                members.iter().for_each(|member| member.landed(Err(why.clone())));
                members.push(database);
                return take_back(members, error, done);
            }
        }
    }
    let path = path.to_path_buf();
    if sets.is_empty() {
        return done(remove(&path).map_err(|source| io_error("removing the super-journal", source)));
    }
    sink.propose(
        ChangeKind::Commit(sets),
        Box::new(move |fate| {
            members.iter().for_each(|member| member.landed(fate.clone()));
            let what = "removing the super-journal".into();
            match fate {
                Ok(_) => done(remove(&path).map_err(|source| DbError::Io { db, what, source })),
                Err(error) => take_back(members, DbError::Unavailable { db, why: error.to_string() }, done),
            }
        }),
    );
}

fn remove(path: &Path) -> std::io::Result<()> {
    crate::io::fault::point("super_journal_remove")?;
    std::fs::remove_file(path)
}
