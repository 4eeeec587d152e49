use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::wire;
use crate::db::SnapshotHeader;
use crate::store::{NameEntry, NodeFacts, PrimaryInfo};
use crate::stream::{
    CHUNK_BYTES, ENTRY_BYTES_MAX, Frame, Globs, Heartbeat, Hello, ListedDatabase, PeerIdentity, PrimaryView,
    StreamError,
};
use crate::types::{
    Attributes, Checksum, DbName, LogIndex, MountPath, NodeId, PageCount, PageSize, Pgno, Pos, Txid,
};

/// A field of a peer's message that does not mean anything.
fn invalid(error: impl std::fmt::Display) -> StreamError {
    StreamError::Invalid(error.to_string())
}

/// Whether an address or name of a peer can be written into a file or a line of the log as it is.
pub(super) fn is_one_word(text: &str, bytes_max: usize) -> bool {
    text.len() <= bytes_max && !text.contains(|c: char| c.is_control() || c.is_whitespace())
}

pub(super) fn identity_to_wire(identity: &PeerIdentity) -> wire::Identity {
    wire::Identity {
        cluster_id: identity.cluster.to_string(),
        node_id: identity.node.get(),
        node_name: identity.name.to_string(),
        protocol_version: identity.protocol_version,
        role: identity.role.to_string(),
        http: identity.http.clone(),
        proxy: identity.proxy.clone(),
    }
}

pub(super) fn identity_from_wire(identity: wire::Identity) -> Result<PeerIdentity, StreamError> {
    if !is_one_word(&identity.http, 1000) {
        return Err(invalid("the URL of a node has more than 1000 bytes, or is none"));
    }
    Ok(PeerIdentity {
        cluster: identity.cluster_id.parse().map_err(invalid)?,
        node: NodeId::new(identity.node_id),
        name: identity.node_name.parse().map_err(invalid)?,
        protocol_version: identity.protocol_version,
        role: identity.role.parse().map_err(invalid)?,
        http: identity.http,
        proxy: identity.proxy,
    })
}

pub(super) fn facts_to_wire(facts: NodeFacts) -> wire::NodeFacts {
    let copying = facts.copying.map(|(bytes, total_bytes)| wire::CopyProgress { bytes, total_bytes });
    wire::NodeFacts {
        version: facts.version,
        uptime_s: facts.uptime.as_secs(),
        disk_free_bytes: facts.disk_free_bytes,
        passthrough: facts.passthrough,
        copying,
    }
}

pub(super) fn facts_from_wire(facts: wire::NodeFacts) -> Result<NodeFacts, StreamError> {
    if !is_one_word(&facts.version, 100) {
        return Err(invalid("the version of a node has more than 100 bytes, or is none"));
    }
    Ok(NodeFacts {
        version: facts.version,
        uptime: Duration::from_secs(facts.uptime_s),
        disk_free_bytes: facts.disk_free_bytes,
        passthrough: facts.passthrough,
        copying: facts.copying.map(|copying| (copying.bytes, copying.total_bytes)),
    })
}

pub(super) fn hello_to_wire(hello: Hello, zstd: bool) -> wire::FollowMessage {
    let hello = wire::Hello {
        cluster_id: hello.cluster.to_string(),
        protocol_version: hello.protocol_version,
        node_name: hello.name.to_string(),
        node_id: hello.node.get(),
        from_index: hello.from.get(),
        globs: hello.globs.patterns().to_vec(),
        zstd,
        addr: hello.addr,
    };
    wire::FollowMessage { kind: Some(wire::follow_message::Kind::Hello(hello)) }
}

pub(super) fn hello_from_wire(hello: wire::Hello) -> Result<(Hello, bool), StreamError> {
    if !is_one_word(&hello.addr, 300) {
        return Err(invalid("a follower's address has more than 300 bytes, or is none"));
    }
    let parsed = Hello {
        cluster: hello.cluster_id.parse().map_err(invalid)?,
        protocol_version: hello.protocol_version,
        node: NodeId::new(hello.node_id),
        name: hello.node_name.parse().map_err(invalid)?,
        addr: hello.addr,
        from: LogIndex::new(hello.from_index),
        globs: Globs::new(hello.globs).map_err(invalid)?,
    };
    Ok((parsed, hello.zstd))
}

pub(super) fn ack_to_wire(index: LogIndex) -> wire::FollowMessage {
    let ack = wire::Ack { applied_index: index.get() };
    wire::FollowMessage { kind: Some(wire::follow_message::Kind::Ack(ack)) }
}

/// The messages that carry a frame: one, or several where its entries are large.
pub(super) fn frame_to_wire(frame: Frame) -> Vec<wire::FollowFrame> {
    let applied_index = frame.applied.get();
    let empty = || wire::FollowFrame { applied_index, ..wire::FollowFrame::default() };
    let mut message = empty();
    message.heartbeat = frame.heartbeat.map(heartbeat_to_wire);
    let (mut messages, mut bytes) = (Vec::new(), 0);
    for (index, mut change) in frame.entries {
        loop {
            let piece = change.split_to(change.len().min(CHUNK_BYTES));
            if bytes > 0 && bytes + piece.len() > CHUNK_BYTES {
                messages.push(std::mem::replace(&mut message, empty()));
                bytes = 0;
            }
            bytes += piece.len();
            let more = !change.is_empty();
            message.entries.push(wire::Entry { index: index.get(), change: piece, more });
            if !more {
                break;
            }
        }
    }
    messages.push(message);
    messages
}

fn heartbeat_to_wire(heartbeat: Heartbeat) -> wire::Heartbeat {
    let Heartbeat { view, timestamp_ms } = heartbeat;
    let primary = view.primary.map(|p| wire::PrimaryInfo { name: p.name, addr: p.addr, http: p.http });
    let path = view.path.into_iter().map(NodeId::get).collect();
    wire::Heartbeat { primary, term: view.term, timestamp_ms, path, voters: view.voters }
}

fn heartbeat_from_wire(heartbeat: wire::Heartbeat) -> Result<Heartbeat, StreamError> {
    if heartbeat.path.len() > 64 {
        return Err(invalid("more than 64 nodes follow one another"));
    }
    let primary = heartbeat.primary.map(|p| PrimaryInfo { name: p.name, addr: p.addr, http: p.http });
    let words = |p: &PrimaryInfo| [&p.name, &p.addr, &p.http].into_iter().all(|text| is_one_word(text, 1000));
    if primary.as_ref().is_some_and(|primary| !words(primary)) {
        return Err(invalid("the primary's name or an address has more than 1000 bytes, or is none"));
    }
    if heartbeat.voters.len() > 16 || heartbeat.voters.iter().any(|addr| !is_one_word(addr, 300)) {
        return Err(invalid("more than 16 voters, or an address that has more than 300 bytes or is none"));
    }
    let path = heartbeat.path.into_iter().map(NodeId::new).collect();
    let view = PrimaryView { primary, term: heartbeat.term, path, voters: heartbeat.voters };
    Ok(Heartbeat { view, timestamp_ms: heartbeat.timestamp_ms })
}

/// Puts entries that come in several pieces together.
#[derive(Default)]
pub(super) struct FrameReader {
    partial: Option<(u64, BytesMut)>,
}

impl FrameReader {
    pub(super) fn read(&mut self, message: wire::FollowFrame) -> Result<Frame, StreamError> {
        let mut entries = Vec::with_capacity(message.entries.len());
        for entry in message.entries {
            let whole = match self.partial.take() {
                None if !entry.more => entry.change,
                partial => {
                    let (index, mut bytes) = partial.unwrap_or((entry.index, BytesMut::new()));
                    if index != entry.index || bytes.len() + entry.change.len() > ENTRY_BYTES_MAX {
                        return Err(invalid(format!("entry {index} is continued by another, or too long")));
                    }
                    bytes.extend_from_slice(&entry.change);
                    if entry.more {
                        self.partial = Some((index, bytes));
                        continue;
                    }
                    bytes.freeze()
                }
            };
            entries.push((LogIndex::new(entry.index), whole));
        }
        let heartbeat = message.heartbeat.map(heartbeat_from_wire).transpose()?;
        Ok(Frame { entries, applied: LogIndex::new(message.applied_index), heartbeat })
    }
}

pub(super) fn listed_to_wire(db: &ListedDatabase) -> wire::DatabaseEntry {
    wire::DatabaseEntry {
        name: db.name.to_string(),
        txid: db.pos.txid_or_zero(),
        checksum: db.pos.checksum.get(),
        size_bytes: db.size_bytes,
    }
}

pub(super) fn listed_from_wire(db: wire::DatabaseEntry) -> Result<ListedDatabase, StreamError> {
    let pos = Pos { txid: Txid::new(db.txid), checksum: Checksum::new(db.checksum) };
    Ok(ListedDatabase { name: DbName::new(&db.name).map_err(invalid)?, pos, size_bytes: db.size_bytes })
}

pub(super) fn name_to_wire((path, entry): &(MountPath, NameEntry)) -> wire::NameEntry {
    let (path, directory) = match path {
        MountPath::Root => (String::new(), true),
        MountPath::Directory(path) => (path.to_string(), true),
        MountPath::Database(name) => (name.to_string(), false),
    };
    let NameEntry { attributes: Attributes { uid, gid, mode }, changed_ms, index } = *entry;
    wire::NameEntry { path, directory, uid, gid, mode, changed_ms, index: index.get() }
}

pub(super) fn name_from_wire(name: wire::NameEntry) -> Result<(MountPath, NameEntry), StreamError> {
    let path = match (name.path.is_empty(), name.directory) {
        (true, true) => MountPath::Root,
        (_, true) => MountPath::Directory(DbName::new(&name.path).map_err(invalid)?),
        (_, false) => MountPath::Database(DbName::new(&name.path).map_err(invalid)?),
    };
    let attributes = Attributes::new(name.uid, name.gid, name.mode);
    Ok((path, NameEntry { attributes, changed_ms: name.changed_ms, index: LogIndex::new(name.index) }))
}

pub(super) fn header_to_wire(header: SnapshotHeader) -> wire::SnapshotHeader {
    wire::SnapshotHeader {
        txid: header.pos.txid_or_zero(),
        checksum: header.pos.checksum.get(),
        index: header.index.get(),
        page_size: header.page_size.get(),
        commit: header.commit.get(),
    }
}

pub(super) fn header_from_wire(header: &wire::SnapshotHeader) -> Result<SnapshotHeader, StreamError> {
    Ok(SnapshotHeader {
        pos: Pos { txid: Txid::new(header.txid), checksum: Checksum::new(header.checksum) },
        index: LogIndex::new(header.index),
        page_size: PageSize::new(header.page_size).map_err(invalid)?,
        commit: PageCount::new(header.commit),
    })
}

/// A page, compressed where that makes it smaller.
pub(super) fn page_to_wire(pgno: Pgno, data: Bytes, zstd: bool) -> wire::Page {
    if zstd
        && let Ok(packed) = zstd::bulk::compress(&data, 1)
        && packed.len() < data.len()
    {
        return wire::Page { pgno: pgno.get(), data: packed.into(), zstd: true };
    }
    wire::Page { pgno: pgno.get(), data, zstd: false }
}

pub(super) fn page_from_wire(page: wire::Page, page_size: PageSize) -> Result<(Pgno, Bytes), StreamError> {
    let pgno = Pgno::new(page.pgno).ok_or_else(|| invalid("page 0 does not exist"))?;
    let data = if page.zstd {
        let plain = zstd::bulk::decompress(&page.data, page_size.len());
        plain.map_err(|error| invalid(format!("page {pgno}: {error}")))?.into()
    } else {
        page.data
    };
    if data.len() != page_size.len() {
        return Err(invalid(format!("page {pgno} has {} bytes, not {page_size}", data.len())));
    }
    Ok((pgno, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_entries_are_cut_and_put_together_again() {
        let entry = |index: u64, bytes: usize| (LogIndex::new(index), Bytes::from(vec![index as u8; bytes]));
        let entries = vec![entry(1, 10), entry(2, 3 * CHUNK_BYTES + 5), entry(3, 0), entry(4, CHUNK_BYTES)];
        let frame = Frame { entries: entries.clone(), applied: LogIndex::new(9), heartbeat: None };
        let messages = frame_to_wire(frame);
        assert!(messages.len() >= 5, "{}", messages.len());
        let (mut reader, mut back) = (FrameReader::default(), Vec::new());
        for message in messages {
            let bytes: usize = message.entries.iter().map(|e| e.change.len()).sum();
            assert!(bytes <= CHUNK_BYTES, "{bytes}");
            back.extend(reader.read(message).unwrap().entries);
        }
        assert_eq!(back, entries);
    }

    #[test]
    fn facts_of_a_node_survive_the_wire_and_a_strange_version_is_refused() {
        let facts = NodeFacts {
            version: "1.2.3".into(),
            uptime: Duration::from_secs(7),
            disk_free_bytes: Some(0),
            passthrough: true,
            copying: Some((1, 2)),
        };
        assert_eq!(facts_from_wire(facts_to_wire(facts.clone())).unwrap(), facts);
        for version in ["1.0\nnode n9 is fine".to_owned(), "1".repeat(200)] {
            let strange = wire::NodeFacts { version, ..Default::default() };
            assert!(matches!(facts_from_wire(strange), Err(StreamError::Invalid(_))));
        }
    }

    #[test]
    fn an_entry_that_never_ends_or_changes_its_number_is_refused() {
        let piece = |index| wire::FollowFrame {
            entries: vec![wire::Entry { index, change: vec![0; CHUNK_BYTES].into(), more: true }],
            ..wire::FollowFrame::default()
        };
        let mut reader = FrameReader::default();
        assert!(reader.read(piece(1)).is_ok());
        assert!(reader.read(piece(2)).is_err());
        let mut reader = FrameReader::default();
        let ended = (0..1000).find(|_| reader.read(piece(1)).is_err());
        assert_eq!(ended, Some(ENTRY_BYTES_MAX / CHUNK_BYTES));
    }

    #[test]
    fn addresses_of_a_peer_are_words() {
        assert!(is_one_word("", 1) && is_one_word("[::1]:20203", 300));
        for text in ["a\nb:1", "a b:1", "\u{1b}[2J", "a\0:1", &"a".repeat(301)] {
            assert!(!is_one_word(text, 300), "{text:?}");
        }
    }

    #[test]
    fn names_sizes_and_pages_from_a_peer_are_checked() {
        let entry =
            |name: &str| wire::DatabaseEntry { name: name.into(), txid: 1, checksum: 1, size_bytes: 0 };
        assert!(listed_from_wire(entry("../etc")).is_err());
        assert!(listed_from_wire(entry("a/b")).is_ok());
        let header = wire::SnapshotHeader { page_size: 1000, ..wire::SnapshotHeader::default() };
        assert!(header_from_wire(&header).is_err());
        let page = |data: Vec<u8>, zstd| wire::Page { pgno: 1, data: data.into(), zstd };
        let size = PageSize::new(512).unwrap();
        assert!(page_from_wire(page(vec![0; 511], false), size).is_err());
        assert!(page_from_wire(page(vec![0; 511], true), size).is_err());
        let bomb = zstd::bulk::compress(&vec![0; 10 << 20], 1).unwrap();
        assert!(page_from_wire(page(bomb, true), size).is_err());
        let packed = page_to_wire(Pgno::FIRST, vec![5; 512].into(), true);
        assert!(packed.zstd);
        assert_eq!(page_from_wire(packed, size).unwrap().1, vec![5; 512]);
    }
}
