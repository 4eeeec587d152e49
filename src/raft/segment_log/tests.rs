use bytes::Bytes;

use super::*;

fn open(dir: &std::path::Path) -> (SegmentLog, Recovered) {
    SegmentLog::open(LogOptions { dir: dir.to_path_buf(), segment_bytes: 64 * 1024, names: |_| Vec::new() })
        .unwrap()
}

fn entry(index: u64, text: &str) -> Record {
    Record::Entry { index, payload: Bytes::copy_from_slice(text.as_bytes()) }
}

fn all(log: &SegmentLog) -> Vec<(u64, String)> {
    let reader = log.reader();
    let entries = reader.read(reader.first_index(), u64::MAX, usize::MAX).unwrap();
    entries.into_iter().map(|(index, bytes)| (index, String::from_utf8(bytes.to_vec()).unwrap())).collect()
}

#[test]
fn what_was_written_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, recovered) = open(dir.path());
    assert_eq!(recovered, Recovered::default());
    log.write(&[entry(1, "one"), entry(2, "two"), Record::Vote(Bytes::from_static(b"v"))]).unwrap();
    log.write(&[Record::Truncated { after: 1 }, entry(2, "zwei"), entry(3, "drei")]).unwrap();
    log.sync().unwrap();
    let before = all(&log);
    assert_eq!(before, [(1, "one".into()), (2, "zwei".into()), (3, "drei".into())]);
    drop(log);
    let (log, recovered) = open(dir.path());
    assert_eq!(all(&log), before);
    assert_eq!(recovered.vote, Some(Bytes::from_static(b"v")));
}

#[test]
fn entries_are_the_same_from_memory_and_from_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path());
    let text = "x".repeat(50_000);
    // More than stays in memory.
    let count = 120;
    for index in 1..=count {
        log.write(&[entry(index, &format!("{index} {text}"))]).unwrap();
    }
    let expect = |index: u64| format!("{index} {text}");
    assert!(all(&log).into_iter().eq((1..=count).map(|index| (index, expect(index)))));
    // What is replaced is gone from memory, too.
    log.write(&[Record::Truncated { after: count - 3 }, entry(count - 2, "new")]).unwrap();
    log.write(&[Record::Purged { upto: count - 4, log_id: Bytes::from_static(b"id") }]).unwrap();
    let left = [(count - 3, expect(count - 3)), (count - 2, "new".into())];
    assert_eq!(all(&log), left);
    // A log that begins anew behind a gap.
    log.write(&[Record::Purged { upto: count + 10, log_id: Bytes::from_static(b"id") }]).unwrap();
    log.write(&[entry(count + 11, "behind")]).unwrap();
    assert_eq!(all(&log), [(count + 11, "behind".into())]);
    log.sync().unwrap();
    drop(log);
    let (log, _) = open(dir.path());
    assert_eq!(all(&log), [(count + 11, "behind".into())]);
}

#[test]
fn segments_roll_purge_and_are_recycled_without_replaying_stale_records() {
    let dir = tempfile::tempdir().unwrap();
    let text = "x".repeat(10_000);
    let mut index = 0;
    for round in 0..5 {
        let (mut log, recovered) = open(dir.path());
        if round > 0 {
            assert_eq!(recovered.vote, Some(Bytes::from(format!("vote {}", round - 1))));
            assert_eq!(log.reader().last_index(), index, "round {round}");
        }
        log.write(&[Record::Vote(Bytes::from(format!("vote {round}")))]).unwrap();
        for _ in 0..40 {
            index += 1;
            log.write(&[entry(index, &format!("{index} {text}"))]).unwrap();
        }
        log.write(&[Record::Purged { upto: index - 10, log_id: Bytes::from_static(b"id") }]).unwrap();
        log.recycle().unwrap();
        assert_eq!(log.reader().first_index(), index - 9);
        assert!(all(&log).iter().all(|(at, payload)| payload.starts_with(&format!("{at} "))));
        let files = std::fs::read_dir(dir.path()).unwrap().count();
        assert!(files <= 8, "{files} files: purged segments go");
    }
}

#[test]
fn an_entry_that_took_the_place_of_a_recycled_one_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path());
    let text = "x".repeat(20_000);
    // Three a segment: the fourth begins the second one, in which the fork is decided.
    for index in 1..=4 {
        log.write(&[entry(index, &text)]).unwrap();
    }
    log.write(&[Record::Truncated { after: 2 }, entry(3, "three"), entry(4, "four")]).unwrap();
    log.write(&[Record::Purged { upto: 2, log_id: Bytes::from_static(b"id") }]).unwrap();
    log.recycle().unwrap();
    let before = all(&log);
    assert_eq!(before, [(3, "three".into()), (4, "four".into())]);
    drop(log);
    let (log, recovered) = open(dir.path());
    assert_eq!(recovered.purged.map(|(upto, _)| upto), Some(2));
    assert_eq!(all(&log), before);
}

#[test]
fn records_larger_than_a_segment_get_one_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path());
    let large = "y".repeat(300_000);
    log.write(&[entry(1, "small"), entry(2, &large), entry(3, "small again")]).unwrap();
    log.sync().unwrap();
    drop(log);
    let (log, _) = open(dir.path());
    assert_eq!(all(&log)[1].1, large);
    assert_eq!(log.reader().last_index(), 3);
}

/// The newest segment with records, and its content.
fn newest(dir: &std::path::Path) -> (std::path::PathBuf, Vec<u8>) {
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with("segment-"));
    paths.sort();
    let path = paths.pop().unwrap();
    let content = std::fs::read(&path).unwrap();
    (path, content)
}

#[test]
fn a_torn_tail_costs_only_what_was_not_synced() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path());
    log.write(&[entry(1, "synced")]).unwrap();
    log.sync().unwrap();
    log.write(&[entry(2, "torn"), entry(3, "behind")]).unwrap();
    drop(log);
    let (path, content) = newest(dir.path());
    let at = content.windows(4).position(|window| window == b"torn").unwrap();
    let mut torn = content.clone();
    torn[at] ^= 1;
    std::fs::write(&path, &torn).unwrap();
    let (log, _) = open(dir.path());
    assert_eq!(all(&log), [(1, "synced".into())]);
}

#[test]
fn damage_to_synced_records_is_an_error_that_says_where_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path());
    for index in 1..=5 {
        log.write(&[entry(index, "payload of an entry")]).unwrap();
        log.sync().unwrap();
    }
    drop(log);
    let (path, content) = newest(dir.path());
    let end = 4096 + 4 * (32 + 19);
    for at in (4096..end).step_by(7) {
        let mut damaged = content.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        let error = SegmentLog::open(LogOptions {
            dir: dir.path().into(),
            segment_bytes: 64 * 1024,
            names: |_| Vec::new(),
        })
        .unwrap_err();
        assert!(matches!(error, LogError::Corrupt { .. }), "byte {at}: {error}");
        assert!(error.to_string().contains("damaged at byte"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), damaged, "nothing is changed");
    }
    std::fs::write(&path, &content).unwrap();
    assert_eq!(all(&open(dir.path()).0).len(), 5);
}

#[test]
fn missing_foreign_and_newer_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let text = "z".repeat(30_000);
    let (mut log, _) = open(dir.path());
    (1..=6).for_each(|index| log.write(&[entry(index, &text)]).unwrap());
    log.sync().unwrap();
    drop(log);
    let options = LogOptions { dir: dir.path().into(), segment_bytes: 64 * 1024, names: |_| Vec::new() };
    let second = dir.path().join("segment-0000000000000002");
    let away = dir.path().join("../away-segment");
    std::fs::rename(&second, &away).unwrap();
    assert!(SegmentLog::open(options.clone()).unwrap_err().to_string().contains("segment is missing"));
    std::fs::rename(&away, &second).unwrap();
    std::fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    assert!(
        SegmentLog::open(options.clone())
            .unwrap_err()
            .to_string()
            .contains("notes.txt is not a file of the log")
    );
    std::fs::remove_file(dir.path().join("notes.txt")).unwrap();
    let mut newer = std::fs::read(&second).unwrap();
    newer[8] = 2;
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64GoIso, &newer[..24]);
    newer[24..32].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&second, newer).unwrap();
    assert!(SegmentLog::open(options).unwrap_err().to_string().contains("format version 2"));
}

#[test]
fn bytes_above_an_entry_are_counted_also_behind_what_was_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path());
    let sizes = |log: &SegmentLog| (0..=6).map(|index| log.reader().bytes_above(index)).collect::<Vec<_>>();
    log.write(&(1..=5).map(|index| entry(index, &"x".repeat(index as usize * 8))).collect::<Vec<_>>())
        .unwrap();
    let all = sizes(&log);
    assert!(all.is_sorted_by(|a, b| a >= b) && all[0] > all[1] && all[4] > 0);
    assert_eq!(all[5..], [0, 0]);
    log.write(&[Record::Purged { upto: 2, log_id: Bytes::new() }, Record::Truncated { after: 4 }]).unwrap();
    let left = sizes(&log);
    assert_eq!(left[2] - left[3], all[2] - all[3]);
    assert_eq!((left[0], left[1], left[4]), (left[2], left[2], 0));
    log.write(&[entry(5, "again")]).unwrap();
    assert_eq!(sizes(&log)[5], 0);
    assert!(sizes(&log)[4] > 0);
}

#[test]
fn blobs_that_entries_name_count_as_what_they_take_and_are_known_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let names = |payload: &Bytes| match payload.strip_prefix(b"blob ") {
        Some(digest) => vec![(u64::from(digest[0]), 1_000_000)],
        None => Vec::new(),
    };
    let options = LogOptions { dir: dir.path().into(), segment_bytes: 64 * 1024, names };
    let (mut log, _) = SegmentLog::open(options.clone()).unwrap();
    log.write(&[entry(1, "blob a"), entry(2, "small"), entry(3, "blob b"), entry(4, "blob c")]).unwrap();
    log.write(&[Record::Truncated { after: 3 }, entry(4, "small")]).unwrap();
    let check = |log: &SegmentLog| {
        let reader = log.reader();
        assert!((2_000_000..2_001_000).contains(&reader.bytes_above(0)), "{}", reader.bytes_above(0));
        assert!((1_000_000..1_001_000).contains(&reader.bytes_above(1)), "{}", reader.bytes_above(1));
        assert!(reader.bytes_above(3) < 1000);
        assert_eq!(reader.blobs_up_to(2), [(97, 1_000_000)].into());
        assert_eq!(reader.blobs(), [(97, 1_000_000), (98, 1_000_000)].into());
    };
    check(&log);
    drop(log);
    let (mut log, _) = SegmentLog::open(options.clone()).unwrap();
    check(&log);
    log.write(&[Record::Purged { upto: 1, log_id: Bytes::from_static(b"id") }]).unwrap();
    assert_eq!(log.reader().blobs(), [(98, 1_000_000)].into());
    drop(log);
    assert_eq!(SegmentLog::open(options).unwrap().0.reader().blobs(), [(98, 1_000_000)].into());
}

#[test]
fn the_last_segment_of_a_run_keeps_no_space_it_does_not_use() {
    let dir = tempfile::tempdir().unwrap();
    for start in 1..=6 {
        let (mut log, _) = open(dir.path());
        log.write(&[entry(start, "an entry")]).unwrap();
        log.sync().unwrap();
        assert_eq!(all(&log).len() as u64, start);
    }
    let sizes = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
    let taken: u64 = sizes.sum();
    assert!(taken < 64 * 1024 + 6 * 8192, "{taken}");
}
