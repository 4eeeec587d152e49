//! What is kept, and for how long.

use std::time::Duration;

use super::generation::Generation;
use super::keeper::Keeper;
use super::{HistoryError, directory};
use crate::types::{DbName, Timestamp};

impl Keeper {
    /// Puts what is older than it has to be into the bases, and gives up more while all of it takes too much.
    pub fn tidy(&mut self, now: Timestamp) {
        let keep_ms = i64::try_from(self.options.keep.as_millis()).unwrap_or(i64::MAX);
        let oldest = Timestamp::from_ms(now.ms().saturating_sub(keep_ms));
        let names: Vec<DbName> = self.databases.keys().cloned().collect();
        for db in names {
            if let Err(error) = self.tidy_one(&db, now, oldest) {
                self.end(&db, now, error.to_string());
                self.needs_base.insert(db);
            }
        }
        self.shrink();
        self.give_room();
    }

    /// Gives up whole generations, those that have ended and are oldest first, while the disk has no room for what nobody has
    /// to have: commits need it more. Writes nothing.
    pub(super) fn give_room(&mut self) {
        while !self.may_write() {
            let all = self.databases.iter().flat_map(|(db, all)| all.iter().map(move |one| (db, one)));
            let next = all.filter(|(_, one)| !one.is_pinned()).min_by_key(|(_, one)| {
                let ended = one.meta.ended.as_ref().map(|end| end.time);
                // Of those that go on the largest.
                (ended.is_none(), ended, u64::MAX - one.bytes())
            });
            let Some((db, dir)) = next.map(|(db, one)| (db.clone(), one.dir.clone())) else { return };
            tracing::warn!(%db, "the disk is nearly full: a part of the local history is given up");
            if let Some(generations) = self.databases.get_mut(&db) {
                generations.retain(|one| one.dir != dir);
            }
            if let Err(error) = directory::remove(&self.root, &dir) {
                tracing::warn!(%error, "the local history takes room that commits need");
                return;
            }
        }
    }

    fn tidy_one(&mut self, db: &DbName, now: Timestamp, oldest: Timestamp) -> Result<(), HistoryError> {
        let Some(generations) = self.databases.get_mut(db) else { return Ok(()) };
        let mut at = 0;
        while at < generations.len() {
            let generation = &mut generations[at];
            let ended = generation.meta.ended.as_ref().map(|end| end.time);
            if ended.is_some_and(|ended| ended < oldest) && !generation.is_pinned() {
                let gone = generations.remove(at);
                directory::remove(&self.root, &gone.dir)?;
                continue;
            }
            if ended.is_none() {
                generation.close_if_old(now)?;
            }
            let expired = |generation: &Generation| {
                generation.segments.first().is_some_and(|first| first.merged && first.last_time < oldest)
            };
            while expired(generation) && !generation.is_pinned() {
                generation.fold()?;
            }
            at += 1;
        }
        if generations.is_empty() {
            self.databases.remove(db);
        }
        Ok(())
    }

    /// Gives up the oldest points while all files together take more than they may: at first those between others.
    fn shrink(&mut self) {
        // Each step gives something up, or nothing is left to give.
        while self.bytes() > self.options.bytes_max {
            let before = self.bytes();
            let oldest = self.oldest_closed();
            let done = match oldest {
                Some((db, number)) => self.give_up_points(&db, number),
                None => self.give_up_largest(),
            };
            if let Err(error) = done {
                tracing::warn!(%error, "the local history takes more than it may");
                return;
            }
            if self.bytes() >= before && self.oldest_closed().is_none() {
                return;
            }
        }
    }

    /// The closed segment with the oldest transactions of those that nobody reads: database and generation.
    fn oldest_closed(&self) -> Option<(DbName, usize)> {
        let mut oldest: Option<(Timestamp, DbName, usize)> = None;
        for (db, generations) in &self.databases {
            for (number, generation) in generations.iter().enumerate().filter(|(_, one)| !one.is_pinned()) {
                let Some(first) = generation.segments.first().filter(|first| first.merged) else { continue };
                if oldest.as_ref().is_none_or(|(time, ..)| first.last_time < *time) {
                    oldest = Some((first.last_time, db.clone(), number));
                }
            }
        }
        oldest.map(|(_, db, number)| (db, number))
    }

    /// Keeps the oldest transactions of a generation together, or none of them.
    fn give_up_points(&mut self, db: &DbName, number: usize) -> Result<(), HistoryError> {
        let Some(generation) = self.databases.get_mut(db).and_then(|all| all.get_mut(number)) else {
            return Ok(());
        };
        if generation.meta.ended.is_some() {
            let dir = generation.dir.clone();
            self.databases.get_mut(db).map(|all| all.remove(number));
            return directory::remove(&self.root, &dir);
        }
        match generation.segments.iter().position(|segment| segment.merged && segment.single.is_some()) {
            Some(at) => generation.drop_single(at),
            None => generation.fold(),
        }
    }

    /// Where bases alone are too much the largest goes, and with it the history of its database.
    fn give_up_largest(&mut self) -> Result<(), HistoryError> {
        let all = self.databases.iter().flat_map(|(db, all)| all.iter().map(move |one| (db, one)));
        let largest = all.filter(|(_, one)| !one.is_pinned()).max_by_key(|(_, one)| one.bytes());
        let Some((db, dir)) = largest.map(|(db, one)| (db.clone(), one.dir.clone())) else { return Ok(()) };
        tracing::warn!(%db, "no local history: the database takes more than history.bytes allows");
        if let Some(generations) = self.databases.get_mut(&db) {
            generations.retain(|one| one.dir != dir);
        }
        directory::remove(&self.root, &dir)
    }
}

/// How long a database that cannot have a base now waits until it is tried again.
pub(super) const AGAIN_AFTER: Duration = Duration::from_secs(60);
