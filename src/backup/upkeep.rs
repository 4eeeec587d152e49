//! What is to be done with the files of a database in the bucket: which are merged, and which may go.

use std::time::Duration;

use super::ArchiveFile;
use super::layout::{MERGED, MERGED_LONG, SNAPSHOT, UPLOADED};
use crate::types::{Timestamp, Txid};

/// Files of level 0 are merged into one of level 2 once a window of this length is over, aligned to the clock,
const MERGE_EVERY: Duration = Duration::from_secs(300);
/// or as soon as there are so many: a restore fetches each of them.
const MERGE_COUNT: usize = 100;
/// Files of level 2 are merged into one of level 3 once a window of this length is over,
const MERGE_LONG_EVERY: Duration = Duration::from_secs(3600);
/// or as soon as there are so many.
const MERGE_LONG_COUNT: usize = 60;
/// Files of level 0 are kept for so long after their time, so that no restore or reader under way loses one.
pub(super) const UPLOADED_KEPT: Duration = Duration::from_secs(3600);

/// Files to be merged into one.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Merge {
    /// The level of the result.
    pub level: u8,
    /// The inputs, in order, each beginning where the one before it ends.
    pub inputs: Vec<ArchiveFile>,
}

/// The next merge that is due, if one is.
pub(super) fn merge_due(files: &[ArchiveFile], now: Timestamp) -> Option<Merge> {
    let of = |from, level, every: Duration, count| {
        let inputs = unmerged(files, from, level);
        let last = inputs.last()?;
        let more = files.iter().any(|file| file.level == from && file.range.min() > last.range.max());
        let window = |time: Timestamp| time.ms().div_euclid(every.as_millis() as i64);
        let over = last.time.is_some_and(|time| window(time) < window(now));
        // A run that has ended at a gap gets no more files.
        (over || inputs.len() >= count || more).then_some(Merge { level, inputs })
    };
    of(UPLOADED, MERGED, MERGE_EVERY, MERGE_COUNT)
        .or_else(|| of(MERGED, MERGED_LONG, MERGE_LONG_EVERY, MERGE_LONG_COUNT))
}

/// The first run of files of level `from` that no file of level `to` has.
fn unmerged(files: &[ArchiveFile], from: u8, to: u8) -> Vec<ArchiveFile> {
    let done = files.iter().filter(|file| file.level == to).map(|file| file.range.max()).max();
    let mut open: Vec<&ArchiveFile> = files
        .iter()
        .filter(|file| file.level == from && done.is_none_or(|done| file.range.min() > done))
        .collect();
    open.sort_by_key(|file| file.range.min());
    let mut run: Vec<ArchiveFile> = Vec::new();
    for file in open {
        let follows = run.last().is_none_or(|last| last.range.max().get() + 1 == file.range.min().get());
        if !follows {
            break;
        }
        run.push(file.clone());
    }
    run
}

/// What may go, and when more may.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Retirement {
    /// The files that may go now.
    pub files: Vec<ArchiveFile>,
    /// When to look again; `None` while nothing that is there will ever go by itself.
    pub next: Option<Timestamp>,
}

/// The files that no restore to a point of the last `retention` needs.
///
/// Kept are: the newest snapshot that is older than `retention` and everything behind it; of level 0 what was not merged
/// yet, and what is younger than [`UPLOADED_KEPT`]; always the newest file of level 0.
pub(super) fn retire(files: &[ArchiveFile], retention: Duration, now: Timestamp) -> Retirement {
    let before = |span: Duration| Timestamp::from_ms(now.ms().saturating_sub(span.as_millis() as i64));
    let time = |file: &ArchiveFile| file.time.unwrap_or(now);
    let old_snapshots = files.iter().filter(|file| file.level == SNAPSHOT && time(file) <= before(retention));
    let base: Option<Txid> = old_snapshots.map(|file| file.range.max()).max();
    let newest = files.iter().filter(|file| file.level == UPLOADED).map(|file| file.range.max()).max();
    let merged = |file: &ArchiveFile| {
        let has = |other: &&ArchiveFile| {
            matches!(other.level, MERGED | MERGED_LONG)
                && other.range.min() <= file.range.min()
                && other.range.max() >= file.range.max()
        };
        files.iter().any(|other| has(&other))
    };
    let mut found = Retirement::default();
    let mut later = |at: i64| {
        let at = Timestamp::from_ms(at);
        found.next = Some(found.next.map_or(at, |next| next.min(at)));
    };
    let mut gone = Vec::new();
    for file in files {
        let behind_base = base.is_some_and(|base| match file.level {
            SNAPSHOT => file.range.max() < base,
            _ => file.range.max() <= base,
        });
        let kept_newest = file.level == UPLOADED && Some(file.range.max()) == newest;
        let short = file.level == UPLOADED && merged(file);
        let keep_for = if short { UPLOADED_KEPT } else { retention };
        let old = time(file) <= before(keep_for);
        if kept_newest {
            continue;
        }
        if old && (behind_base || short) {
            gone.push(file.clone());
        } else if !old {
            later(time(file).ms().saturating_add(keep_for.as_millis() as i64));
        }
    }
    found.files = gone;
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TxidRange;

    const MINUTE: i64 = 60_000;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn file(level: u8, min: u64, max: u64, time_ms: i64) -> ArchiveFile {
        let range = TxidRange::new(Txid::new(min).unwrap(), Txid::new(max).unwrap()).unwrap();
        ArchiveFile { level, range, size_bytes: 1, time: Some(Timestamp::from_ms(time_ms)), pos: None }
    }

    fn due(files: &[ArchiveFile], now: i64) -> Option<(u8, u64, u64)> {
        let merge = merge_due(files, Timestamp::from_ms(now))?;
        let (first, last) = (merge.inputs.first()?, merge.inputs.last()?);
        Some((merge.level, first.range.min().get(), last.range.max().get()))
    }

    #[test]
    fn level_0_goes_to_level_2_when_its_window_is_over_and_level_2_to_level_3() {
        let mut files = vec![file(0, 2, 3, MINUTE), file(0, 4, 4, 2 * MINUTE)];
        assert_eq!(due(&files, 3 * MINUTE), None);
        assert_eq!(due(&files, 5 * MINUTE), Some((2, 2, 4)));
        files.push(file(2, 2, 4, 2 * MINUTE));
        assert_eq!(due(&files, 6 * MINUTE), None);
        assert_eq!(due(&files, HOUR), Some((3, 2, 4)));
        files.push(file(3, 2, 4, 2 * MINUTE));
        files.push(file(0, 5, 5, HOUR + MINUTE));
        assert_eq!(due(&files, HOUR + 2 * MINUTE), None);
        assert_eq!(due(&files, HOUR + 5 * MINUTE), Some((2, 5, 5)));
    }

    #[test]
    fn many_files_are_merged_early_and_a_gap_ends_a_merge() {
        let files: Vec<_> = (0..MERGE_COUNT as u64).map(|n| file(0, n + 2, n + 2, 0)).collect();
        assert_eq!(due(&files, 1), Some((2, 2, MERGE_COUNT as u64 + 1)));
        assert_eq!(due(&files[1..], 1), None);
        let files = [file(0, 2, 2, 0), file(0, 3, 3, 0), file(0, 9, 9, 1)];
        assert_eq!(due(&files, 2), Some((2, 2, 3)));
        let files = [file(2, 2, 3, 0), file(0, 9, 9, 1)];
        assert_eq!(due(&files, 2), None);
    }

    fn retired(files: &[ArchiveFile], now: i64) -> Vec<(u8, u64, u64)> {
        let found = retire(files, DAY, Timestamp::from_ms(now));
        found.files.iter().map(|f| (f.level, f.range.min().get(), f.range.max().get())).collect()
    }

    #[test]
    fn what_a_restore_within_the_retention_needs_is_kept() {
        let files = [
            file(9, 1, 1, 0),
            file(2, 2, 5, HOUR),
            file(9, 1, 5, 24 * HOUR),
            file(2, 6, 9, 25 * HOUR),
            file(9, 1, 9, 48 * HOUR),
            file(0, 6, 9, 25 * HOUR),
            file(0, 10, 10, 48 * HOUR),
        ];
        // The only snapshot that is old enough is the first.
        assert_eq!(retired(&files, 47 * HOUR), [(0, 6, 9)]);
        assert_eq!(retired(&files, 48 * HOUR), [(9, 1, 1), (2, 2, 5), (0, 6, 9)]);
        assert_eq!(retired(&files, 72 * HOUR), [(9, 1, 1), (2, 2, 5), (9, 1, 5), (2, 6, 9), (0, 6, 9)]);
        let left = [file(9, 1, 9, 48 * HOUR), file(0, 10, 10, 48 * HOUR)];
        assert_eq!(retired(&left, 1000 * HOUR), []);
        assert_eq!(retire(&left, DAY, Timestamp::from_ms(1000 * HOUR)).next, None);
    }

    #[test]
    fn level_0_is_kept_until_it_is_merged_and_an_hour_old() {
        let files = [file(0, 2, 2, 0), file(0, 3, 3, 0), file(2, 2, 2, 0)];
        assert_eq!(retired(&files, HOUR - 1), []);
        let next = retire(&files, DAY, Timestamp::from_ms(HOUR - 1)).next;
        assert_eq!(next, Some(Timestamp::from_ms(HOUR)));
        assert_eq!(retired(&files, HOUR), [(0, 2, 2)]);
        assert_eq!(retired(&files[..2], 5 * HOUR), [], "not merged");
    }
}
