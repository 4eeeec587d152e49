//! Which files of a backup make up a database at one point.

use super::layout::SNAPSHOT;
use crate::types::{Txid, TxidRange};

/// A file as far as planning needs to know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlanFile {
    /// Its level.
    pub level: u8,
    /// The transactions in it.
    pub range: TxidRange,
}

/// Why no plan leads to a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoPlan {
    /// There is nothing to begin with at or before it.
    TooEarly,
    /// The backup can be followed up to here, and there is no way on to what was asked for.
    EndsAt(Txid),
}

/// The files that lead to `target`, or as far as they go where that is `None`; in the order they are applied in.
///
/// Begins with the newest snapshot at or before the target, else with a file that begins with the first transaction, and
/// then takes the file that reaches furthest each time. A snapshot with a gap behind it is given up for an older one.
/// Source: Litestream, `CalcRestorePlan`, which knows one snapshot only.
///
/// # Errors
/// Where no files lead there.
pub fn plan(files: &[PlanFile], target: Option<Txid>) -> Result<Vec<PlanFile>, NoPlan> {
    let reaches = |file: &&PlanFile| target.is_none_or(|target| file.range.max() <= target);
    let mut starts: Vec<&PlanFile> =
        files.iter().filter(|file| file.range.min() == Txid::FIRST).filter(reaches).collect();
    // The one that needs the fewest others; at the same transaction a snapshot.
    starts.sort_by_key(|file| (file.range.max(), file.level == SNAPSHOT));
    let mut best: Option<Vec<PlanFile>> = None;
    for start in starts.into_iter().rev() {
        let found = follow(files, *start, target);
        let end = end_of(&found);
        if end == target {
            return Ok(found);
        }
        if best.as_ref().is_none_or(|best| end_of(best) < end) {
            best = Some(found);
        }
    }
    match (best, target) {
        (None, _) => Err(NoPlan::TooEarly),
        (Some(best), None) => Ok(best),
        (Some(best), Some(_)) => Err(NoPlan::EndsAt(end_of(&best).unwrap_or(Txid::FIRST))),
    }
}

fn end_of(plan: &[PlanFile]) -> Option<Txid> {
    plan.last().map(|file| file.range.max())
}

/// The chain from `start` on, the file that reaches furthest at each step; of equals the lower level, which is younger.
fn follow(files: &[PlanFile], start: PlanFile, target: Option<Txid>) -> Vec<PlanFile> {
    let mut chain = vec![start];
    loop {
        let at = end_of(&chain).unwrap_or(Txid::FIRST);
        let continues = |file: &&PlanFile| {
            file.level != SNAPSHOT
                && file.range.min().get() <= at.get() + 1
                && file.range.max() > at
                && target.is_none_or(|target| file.range.max() <= target)
        };
        let next = files.iter().filter(continues).max_by_key(|file| (file.range.max(), u8::MAX - file.level));
        match next {
            Some(next) => chain.push(*next),
            None => return chain,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(level: u8, min: u64, max: u64) -> PlanFile {
        let range = TxidRange::new(Txid::new(min).unwrap(), Txid::new(max).unwrap()).unwrap();
        PlanFile { level, range }
    }

    fn at(txid: u64) -> Option<Txid> {
        Txid::new(txid)
    }

    fn shown(plan: Result<Vec<PlanFile>, NoPlan>) -> Vec<(u8, u64, u64)> {
        plan.unwrap().iter().map(|f| (f.level, f.range.min().get(), f.range.max().get())).collect()
    }

    #[test]
    fn the_plan_begins_with_the_newest_snapshot_and_takes_the_longest_steps() {
        let files = [
            file(9, 1, 3),
            file(9, 1, 10),
            file(0, 4, 4),
            file(2, 4, 10),
            file(0, 11, 11),
            file(0, 12, 14),
            file(2, 11, 14),
        ];
        assert_eq!(shown(plan(&files, None)), [(9, 1, 10), (2, 11, 14)]);
        assert_eq!(shown(plan(&files, at(11))), [(9, 1, 10), (0, 11, 11)]);
        assert_eq!(shown(plan(&files, at(4))), [(9, 1, 3), (0, 4, 4)]);
        assert_eq!(shown(plan(&files, at(10))), [(9, 1, 10)]);
    }

    #[test]
    fn what_lies_inside_a_file_or_behind_a_gap_is_refused_with_the_last_point_before() {
        let files = [file(9, 1, 3), file(0, 4, 9), file(0, 12, 12)];
        assert_eq!(plan(&files, at(6)), Err(NoPlan::EndsAt(Txid::new(3).unwrap())));
        assert_eq!(plan(&files, at(12)), Err(NoPlan::EndsAt(Txid::new(9).unwrap())));
        assert_eq!(plan(&files, at(2)), Err(NoPlan::TooEarly));
        assert_eq!(shown(plan(&files, None)), [(9, 1, 3), (0, 4, 9)]);
        assert_eq!(plan(&[], None), Err(NoPlan::TooEarly));
    }

    #[test]
    fn an_older_snapshot_leads_on_where_the_newest_one_has_a_gap_behind_it() {
        let files = [file(9, 1, 5), file(0, 6, 6), file(0, 7, 7), file(9, 1, 6)];
        assert_eq!(shown(plan(&files, None)), [(9, 1, 6), (0, 7, 7)]);
        // The chain without snapshot is a plan too.
        let files = [file(0, 1, 1), file(0, 2, 4), file(9, 1, 3)];
        assert_eq!(shown(plan(&files, at(4))), [(9, 1, 3), (0, 2, 4)]);
        assert_eq!(shown(plan(&files[..2], None)), [(0, 1, 1), (0, 2, 4)]);
    }

    #[test]
    fn overlaps_are_harmless() {
        let files = [file(9, 1, 2), file(0, 2, 5), file(0, 4, 7), file(0, 8, 8)];
        assert_eq!(shown(plan(&files, None)), [(9, 1, 2), (0, 2, 5), (0, 4, 7), (0, 8, 8)]);
    }
}
