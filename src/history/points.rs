//! Which points there are.

use super::generation::Generation;
use super::keeper::Keeper;
use super::point::Parts;
use super::segment::{SetAt, Transaction, read_index, read_sets};
use super::{HistoryError, PointId};
use crate::types::{DbName, PointInTime, Timestamp, Txid};

/// What is known of a database's past here.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Transactions {
    /// Transactions, the newest first.
    pub transactions: Vec<Transaction>,
    /// Whether there are older ones than these.
    pub more: bool,
    /// The oldest point; `None` where there is none.
    pub oldest: Option<Known>,
    /// Where it is not known what the database was, the newest first.
    pub gaps: Vec<Gap>,
}

/// A point that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// Its transaction.
    pub txid: Txid,
    /// When the database was like that.
    pub time: Timestamp,
}

/// A time of which nothing is known, or in which there was no database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gap {
    /// Since when.
    pub from: Timestamp,
    /// Until when; `None` where it lasts.
    pub to: Option<Timestamp>,
    /// Why.
    pub why: String,
}

/// A generation, and the transaction in it that is meant; `None` for what it begins with.
pub(super) struct Found<'a> {
    pub generation: &'a Generation,
    pub at: Option<Txid>,
}

impl Found<'_> {
    /// What the point is made of.
    pub fn parts(&self) -> Parts {
        let Generation { dir, meta, segments, pin, .. } = self.generation;
        let before = |segment: &&super::segment::Segment| Some(segment.range.min()) <= self.at;
        Parts {
            dir: dir.clone(),
            page_size: meta.page_size,
            base: meta.base,
            segments: segments.iter().take_while(before).cloned().collect(),
            pin: pin.clone(),
        }
    }
}

impl Generation {
    /// The number of the transaction that its points begin with, where it has any.
    fn first_point(&self) -> Option<Txid> {
        let first = Txid::new(self.meta.first);
        first.or_else(|| self.segments.first().map(|first| first.range.min()))
    }

    /// The last transaction at or before a time; `None` in `Some` for none.
    fn txid_at(&self, time: Timestamp) -> Result<Option<Txid>, HistoryError> {
        let mut found = (self.meta.base.time <= time).then_some(self.meta.base.pos.txid).flatten();
        for segment in &self.segments {
            if segment.last_time <= time {
                found = Some(segment.range.max());
                continue;
            }
            if segment.first_time <= time && segment.single.is_some() {
                let (_, sets) = read_sets(&segment.single_path(&self.dir))?;
                let before = sets.iter().take_while(|set| set.header.timestamp_ms <= time.ms());
                found = before.last().map(|set| set.header.range.max()).or(found);
            }
            break;
        }
        Ok(found)
    }

    /// Its transactions, oldest first.
    fn transactions(&self, number: usize) -> Result<Vec<Transaction>, HistoryError> {
        let Some(segment) = self.segments.get(number) else { return Ok(Vec::new()) };
        if segment.single.is_none() {
            let set = read_index(&segment.merged_path(&self.dir))?;
            return Ok(vec![Transaction { time: segment.last_time, ..set.transaction() }]);
        }
        let (_, sets) = read_sets(&segment.single_path(&self.dir))?;
        Ok(sets.iter().map(SetAt::transaction).collect())
    }
}

impl Keeper {
    /// The names that have a history, of databases that were dropped as well.
    pub fn names(&self) -> impl Iterator<Item = &DbName> {
        self.databases
            .iter()
            .filter(|(_, all)| all.iter().any(|one| one.first_point().is_some()))
            .map(|(db, _)| db)
    }

    fn of(&self, db: &DbName) -> Result<&[Generation], HistoryError> {
        match self.databases.get(db) {
            Some(generations) if !generations.is_empty() => Ok(generations),
            _ => Err(HistoryError::NotFound(format!("there is no local history of {db}"))),
        }
    }

    /// The point that is meant.
    ///
    /// # Errors
    /// `NotFound` where it is not known what the database was; the text says what is.
    pub fn find(&self, db: &DbName, at: PointInTime, now: Timestamp) -> Result<Found<'_>, HistoryError> {
        let generations = self.of(db)?;
        let found = match at.absolute(now) {
            PointInTime::Txid(txid) => {
                let has = |one: &&Generation| one.first_point() <= Some(txid) && Some(txid) <= one.tip().txid;
                let generation = generations.iter().rev().find(has);
                generation
                    .filter(|one| one.first_point().is_some())
                    .map(|generation| Found { generation, at: Some(txid) })
            }
            PointInTime::Time(time) if time > now => {
                return Err(HistoryError::NotFound(format!("{time} is in the future")));
            }
            PointInTime::Time(time) => self.find_time(db, generations, time)?,
            PointInTime::Ago(_) => None,
        };
        found.ok_or_else(|| {
            let known = self.span(generations);
            HistoryError::NotFound(format!("the local history of {db} {known}; {at} is not in it"))
        })
    }

    fn find_time<'a>(
        &self,
        db: &DbName,
        generations: &'a [Generation],
        time: Timestamp,
    ) -> Result<Option<Found<'a>>, HistoryError> {
        for generation in generations.iter().rev() {
            let Some(at) = generation.txid_at(time)? else { continue };
            if let Some(end) = generation.meta.ended.as_ref().filter(|end| end.time <= time) {
                let why = if end.why.is_empty() { "it was dropped or renamed" } else { &end.why };
                let (last, end) = (generation.tip(), end.time);
                return Err(HistoryError::NotFound(format!(
                    "it is not known what {db} was at {time}: {why} at {end}; the last point before that is {:016x}",
                    last.txid_or_zero()
                )));
            }
            return Ok(Some(Found { generation, at: Some(at) }));
        }
        Ok(None)
    }

    /// From where to where points go, in words.
    fn span(&self, generations: &[Generation]) -> String {
        let oldest = generations.iter().find_map(known_first);
        let newest = generations.iter().rev().find_map(|one| Some((one.tip().txid?, one.tip_time())));
        match (oldest, newest) {
            (Some(oldest), Some((txid, time))) => {
                format!("goes from {} ({}) to {txid} ({time})", oldest.txid, oldest.time)
            }
            _ => "has no point".to_owned(),
        }
    }

    /// The newest transactions of a database, at most `limit`.
    ///
    /// # Errors
    /// `NotFound` where nothing is known of it; where a file cannot be read.
    pub fn list(&self, db: &DbName, limit: usize) -> Result<Transactions, HistoryError> {
        let generations = self.of(db)?;
        let mut listed =
            Transactions { oldest: generations.iter().find_map(known_first), ..Default::default() };
        let mut next: Option<Timestamp> = None;
        'all: for generation in generations.iter().rev() {
            if let Some(end) = &generation.meta.ended {
                let why = if end.why.is_empty() { "dropped or renamed".to_owned() } else { end.why.clone() };
                listed.gaps.push(Gap { from: end.time, to: next, why });
            }
            for number in (0..generation.segments.len()).rev() {
                for transaction in generation.transactions(number)?.into_iter().rev() {
                    if listed.transactions.len() == limit {
                        listed.more = true;
                        break 'all;
                    }
                    listed.transactions.push(transaction);
                }
            }
            next = Some(generation.meta.base.time);
        }
        Ok(listed)
    }

    /// The same point by its name.
    ///
    /// # Errors
    /// `NotFound` where it is not kept any more.
    pub fn named(&self, point: &PointId) -> Result<Found<'_>, HistoryError> {
        let generation = self.of(&point.db)?.iter().find(|one| one.index() == point.generation);
        let generation = generation.filter(|one| one.first_point() <= Some(point.txid));
        let found = generation.map(|generation| Found { generation, at: Some(point.txid) });
        found.ok_or_else(|| {
            HistoryError::NotFound(format!("transaction {} of {} is not kept any more", point.txid, point.db))
        })
    }

    /// The newest points of a database, at most `limit`: one for each transaction that is kept.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub fn ids(&self, db: &DbName, limit: usize) -> Result<Vec<PointId>, HistoryError> {
        let (mut found, generations) = (Vec::new(), self.of(db)?);
        for generation in generations.iter().rev() {
            let (page_size, index) = (generation.meta.page_size, generation.index());
            let id = |txid, commit: crate::types::PageCount, time| PointId {
                db: db.clone(),
                generation: index,
                txid,
                size_bytes: commit.bytes(page_size),
                time,
            };
            for number in (0..generation.segments.len()).rev() {
                for one in generation.transactions(number)?.into_iter().rev() {
                    found.push(id(one.range.max(), one.commit, one.time));
                    if found.len() == limit {
                        return Ok(found);
                    }
                }
            }
            let base = generation.meta.base;
            if let Some(txid) = base.pos.txid.filter(|txid| generation.meta.first == txid.get()) {
                found.push(id(txid, base.pages, base.time));
                if found.len() == limit {
                    return Ok(found);
                }
            }
        }
        Ok(found)
    }
}

fn known_first(generation: &Generation) -> Option<Known> {
    let time = match Txid::new(generation.meta.first) {
        Some(_) => generation.meta.base.time,
        None => generation.segments.first()?.first_time,
    };
    Some(Known { txid: generation.first_point()?, time })
}
