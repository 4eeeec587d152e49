//! `.history`: databases as they were, as files that nobody can write.
//!
//! ```text
//! .history/DB@TXID                    after a transaction
//! .history/DB@2026-11-28T10:00:00Z    with all that was committed by then
//! .history/DB@5m ago                  the same, counted from when the name is looked up
//! ```
//!
//! A name leads to the inode of its point, so that what the kernel caches of it is of one point only. Nothing is copied when
//! one is opened: pages are read as they are asked for. The header names a rollback mode: SQLite then needs neither a log
//! nor shared memory, which nobody could make here.

use std::collections::BTreeSet;
use std::sync::Arc;

use fuser::{Errno, Generation, ReplyData, ReplyEntry};

use super::attr::{self, NEVER};
use super::names::{HISTORY, Target, join};
use super::state::State;
use crate::history::{History, HistoryError, Point, PointId};
use crate::types::{DbName, PointInTime};

/// Points of a database that a listing shows, the newest ones.
const POINTS_LISTED_MAX: usize = 100;
/// Databases whose points a listing shows.
const DATABASES_LISTED_MAX: usize = 1000;
/// Where a database's header says how it is to be written and read. Source: SQLite file format, section 1.3.3.
const VERSIONS: [u64; 2] = [18, 19];
/// What it says of rollback modes.
const ROLLBACK: u8 = 1;

/// Whether a name in a directory is one of the history's.
pub(super) fn is_below(state: &State, parent: &Target, name: &str) -> bool {
    match parent {
        Target::History(_) => true,
        Target::Directory(path) => path.is_empty() && name == HISTORY && state.history.is_some(),
        _ => false,
    }
}

/// Looks a name up: the kernel asks again each time, because what it means may be another point then.
pub(super) fn lookup(state: &Arc<State>, parent: Target, name: String, reply: ReplyEntry) {
    let state = state.clone();
    state.workers.clone().run(move || {
        let found = find(&state, &parent, &name).map(|target| {
            let ino = state.inodes.looked_up(&target, None);
            state.past_attributes(ino, &target)
        });
        match found {
            Ok(attr) => reply.entry_with_ttls(&NEVER, &NEVER, &attr, Generation(0)),
            Err(Errno::ENOENT) => reply.entry(&NEVER, &attr::of_nothing(), Generation(0)),
            Err(errno) => reply.error(errno),
        }
    });
}

fn find(state: &State, parent: &Target, name: &str) -> Result<Target, Errno> {
    let history = state.history.as_ref().ok_or(Errno::ENOENT)?;
    let Target::History(directory) = parent else { return Ok(Target::History(String::new())) };
    if let Some((db, point)) = name.rsplit_once('@') {
        let db = DbName::new(&join(directory, db)).map_err(|_| Errno::ENOENT)?;
        let at: PointInTime = point.parse().map_err(|_| Errno::ENOENT)?;
        let point = history.point_id(&db, at).map_err(|error| failed(&join(directory, name), &error))?;
        return Ok(Target::Point(Box::new(point)));
    }
    let path = join(directory, name);
    let below = format!("{path}/");
    match history.names().iter().any(|db| db.as_str().starts_with(&below)) {
        true => Ok(Target::History(path)),
        false => Err(Errno::ENOENT),
    }
}

/// What a directory of the history shows: the newest points of each database.
pub(super) fn list(state: &State, directory: &str) -> Vec<(String, Target)> {
    let Some(history) = &state.history else { return Vec::new() };
    let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
    let (mut directories, mut listed, mut databases) = (BTreeSet::new(), Vec::new(), 0);
    for db in history.names() {
        let Some(rest) = db.as_str().strip_prefix(&prefix) else { continue };
        match rest.split_once('/') {
            Some((below, _)) => drop(directories.insert(below.to_owned())),
            None if databases < DATABASES_LISTED_MAX => {
                databases += 1;
                listed.extend(points(history, &db, rest));
            }
            None => {}
        }
    }
    let directories = directories.into_iter().map(|name| {
        let path = join(directory, &name);
        (name, Target::History(path))
    });
    directories.chain(listed).collect()
}

fn points(history: &History, db: &DbName, name: &str) -> Vec<(String, Target)> {
    match history.point_ids(db, POINTS_LISTED_MAX) {
        Ok(points) => points
            .into_iter()
            .map(|point| (format!("{name}@{}", point.txid), Target::Point(Box::new(point))))
            .collect(),
        Err(error) => {
            tracing::warn!(%db, %error, "the history of this database cannot be listed");
            Vec::new()
        }
    }
}

/// Opens a point.
///
/// # Errors
/// ESTALE where it is not kept any more: the kernel then looks the name up again.
pub(super) fn open(state: &State, point: &PointId) -> Result<Point, Errno> {
    let history = state.history.as_ref().ok_or(Errno::ESTALE)?;
    history.open(point).map_err(|error| match failed(point.db.as_str(), &error) {
        Errno::ENOENT => Errno::ESTALE,
        errno => errno,
    })
}

/// Reads from a point.
pub(super) fn read(point: &Point, path: &str, offset: u64, size: u32, reply: ReplyData) {
    let mut data = vec![0; size as usize];
    match point.read_at(offset, &mut data) {
        Ok(length) => {
            for at in VERSIONS {
                let byte = at.checked_sub(offset).and_then(|at| data[..length].get_mut(at as usize));
                if let Some(byte) = byte {
                    *byte = ROLLBACK;
                }
            }
            reply.data(&data[..length]);
        }
        Err(error) => reply.error(failed(path, &error)),
    }
}

fn failed(path: &str, error: &HistoryError) -> Errno {
    match error {
        HistoryError::NotFound(why) => {
            tracing::debug!(path, why, "no such point");
            Errno::ENOENT
        }
        error => {
            tracing::warn!(path, %error, "the history cannot be read");
            Errno::EIO
        }
    }
}
