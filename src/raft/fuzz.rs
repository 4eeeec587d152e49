//! Targets for [`crate::fuzz`].

use bytes::Bytes;

use super::codec;
use super::segment_log::{LogOptions, Record, SegmentLog, replayed};
pub use super::transport::fuzz::{message, messages};
use crate::store::{Change, ChangeKind, Origin};
use crate::types::{DbName, NodeId};

const SEGMENT: u64 = 16 * 1024;

/// A segment of the log, as a start reads it.
pub fn segment(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join(name()), data).expect("room for it");
    let _ = replayed(dir.path(), codec::blobs_of);
}

/// The file of the first segment.
fn name() -> String {
    let dir = tempfile::tempdir().expect("a directory");
    drop(written(dir.path()));
    let first = std::fs::read_dir(dir.path()).expect("it is there").flatten().map(|entry| entry.file_name());
    let name = first.filter(|name| !name.to_string_lossy().starts_with("spare")).min().expect("a segment");
    name.to_string_lossy().into_owned()
}

fn written(dir: &std::path::Path) -> SegmentLog {
    let options = LogOptions { dir: dir.to_path_buf(), segment_bytes: SEGMENT, names: codec::blobs_of };
    let (mut log, _) = SegmentLog::open(options).expect("a new log");
    let entries = entries()
        .into_iter()
        .zip(1..)
        .map(|(payload, index)| Record::Entry { index, payload: payload.into() });
    log.write(&entries.collect::<Vec<_>>()).expect("room for it");
    log.write(&[Record::Vote(Bytes::from_static(b"v"))]).expect("room for it");
    log.sync().expect("a disk");
    log
}

/// Valid segments.
pub fn segments() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().expect("a directory");
    drop(written(dir.path()));
    vec![std::fs::read(dir.path().join(name())).expect("the segment")]
}

/// What the log and the stream carry: entries, changes, members, votes.
pub fn entry(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let _ = codec::decode_entry(bytes.clone());
    let _ = codec::blobs_of(&bytes);
    let _ = codec::change_of(bytes.clone()).map(Change::decode);
    let _ = Change::decode(bytes);
    let _ = codec::decode_members(data);
    let _ = (codec::decode_vote(data), codec::decode_log_id(data));
}

/// Valid entries.
pub fn entries() -> Vec<Vec<u8>> {
    super::transport::fuzz::entries(changes())
}

fn changes() -> Vec<Bytes> {
    let db = |name: &str| DbName::new(name).expect("a valid name");
    let sets = crate::ltx::fuzz::change_sets()
        .into_iter()
        .map(|bytes| crate::ltx::ChangeSet::decode(&mut Bytes::from(bytes)).expect("a valid change set"));
    let kinds = [
        ChangeKind::Commit(sets.collect()),
        ChangeKind::Drop(db("a.db")),
        ChangeKind::Rename { from: db("a.db"), to: db("dir/b.db") },
        ChangeKind::RenameDirectory { from: db("dir"), to: db("other"), databases: vec![db("dir/b.db")] },
    ];
    let origin = Origin { node: NodeId::new(1), run: 2, seq: 3 };
    kinds.into_iter().map(|kind| Change { origin, timestamp_ms: 1, kind }.encode()).collect()
}
