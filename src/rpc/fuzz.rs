//! Targets for [`crate::fuzz`]: what nodes say to one another.

use bytes::Bytes;
use prost::Message;

use super::compress::{Compressor, Decompressor};
use super::convert::{self, FrameReader};
use super::{cluster, founding, wire};
use crate::types::{PageSize, Pgno};

const PAGE: usize = 512;

fn page_size() -> PageSize {
    PageSize::new(PAGE as u32).expect("a valid size")
}

/// A message of each kind; the first byte says which.
pub fn message(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 8 {
        0 => drop(wire::Identity::decode(data).map(convert::identity_from_wire)),
        1 => drop(wire::Hello::decode(data).map(convert::hello_from_wire)),
        2 => frames(data),
        3 => {
            let Ok(list) = wire::DatabaseList::decode(data) else { return };
            list.databases.into_iter().for_each(|db| drop(convert::listed_from_wire(db)));
            list.names.into_iter().for_each(|name| drop(convert::name_from_wire(name)));
        }
        4 => drop(wire::SnapshotRequest::decode(data)),
        5 => drop(wire::FetchBlobRequest::decode(data)),
        7 => founding::fuzz(data),
        _ => cluster::fuzz::message(data),
    }
}

/// A stream of frames, each with its length before it.
fn frames(data: &[u8]) {
    let (mut data, mut reader) = (data, FrameReader::default());
    let mut unpack = Decompressor::new().expect("memory for it");
    while let Ok(frame) = wire::FollowFrame::decode_length_delimited(&mut data) {
        let Ok(frame) = unpack.unwrap(frame) else { return };
        if reader.read(frame).is_err() {
            return;
        }
    }
}

/// A stream of a database's pages: the header, then pages, each message with its length before it.
pub fn snapshot(data: &[u8]) {
    use wire::snapshot_frame::Kind;
    let (mut data, mut size) = (data, page_size());
    while let Ok(frame) = wire::SnapshotFrame::decode_length_delimited(&mut data) {
        match frame.kind {
            Some(Kind::Header(header)) => match convert::header_from_wire(&header) {
                Ok(header) => size = header.page_size,
                Err(_) => return,
            },
            Some(Kind::Pages(batch)) => {
                for page in batch.pages {
                    if let Ok((_, bytes)) = convert::page_from_wire(page, size) {
                        assert_eq!(bytes.len(), size.len());
                    }
                }
            }
            Some(Kind::End(_)) | None => {}
        }
    }
}

/// Valid messages.
pub fn messages() -> Vec<Vec<u8>> {
    let cluster_id = || "0123456789abcdef0123456789abcdef".to_owned();
    let identity = wire::Identity {
        cluster_id: cluster_id(),
        node_id: 7,
        node_name: "n1".into(),
        role: "voter".into(),
        http: "http://10.0.0.1:2".into(),
        ..Default::default()
    };
    let hello = wire::Hello {
        cluster_id: cluster_id(),
        node_name: "r1".into(),
        from_index: 7,
        globs: vec!["**".into(), "dir/*.db".into()],
        addr: "10.0.0.4:1".into(),
        ..Default::default()
    };
    let entry = |index, more| wire::Entry { index, change: Bytes::from(vec![index as u8; 300]), more };
    let heartbeat =
        wire::Heartbeat { voters: vec!["10.0.0.1:1".into()], path: vec![1, 2], ..Default::default() };
    let whole = wire::FollowFrame { entries: vec![entry(1, false), entry(2, true)], ..Default::default() };
    let last = wire::FollowFrame {
        entries: vec![entry(2, false)],
        heartbeat: Some(heartbeat),
        applied_index: 2,
        ..Default::default()
    };
    let wrapped = Compressor::new().and_then(|mut pack| pack.wrap(&whole)).expect("memory for it");
    let list = wire::DatabaseList {
        applied_index: 3,
        databases: vec![wire::DatabaseEntry {
            name: "app.db".into(),
            txid: 1,
            checksum: 1 << 63,
            size_bytes: 8192,
        }],
        names: vec![wire::NameEntry { path: "dir/app.db".into(), mode: 0o644, ..Default::default() }],
        has_names: true,
    };
    let mut all = vec![
        [&[0], &identity.encode_to_vec()[..]].concat(),
        [&[1], &hello.encode_to_vec()[..]].concat(),
        [&[2], &whole.encode_length_delimited_to_vec()[..], &last.encode_length_delimited_to_vec()].concat(),
        [&[2], &wrapped.encode_length_delimited_to_vec()[..], &last.encode_length_delimited_to_vec()]
            .concat(),
        [&[3], &list.encode_to_vec()[..]].concat(),
    ];
    all.extend(cluster::fuzz::messages().into_iter().map(|message| [&[6], &message[..]].concat()));
    all.push([&[7], &founding::fuzz_sample()[..]].concat());
    all
}

/// Valid snapshots.
pub fn snapshots() -> Vec<Vec<u8>> {
    use wire::snapshot_frame::Kind;
    let header =
        wire::SnapshotHeader { txid: 1, checksum: 1 << 63, index: 1, page_size: PAGE as u32, commit: 2 };
    let page = |number, zstd| {
        let pgno = Pgno::new(number).expect("not 0");
        convert::page_to_wire(pgno, Bytes::from(vec![number as u8; PAGE]), zstd)
    };
    let pages = wire::Pages { pages: vec![page(1, false), page(2, true)] };
    let kinds = [Kind::Header(header), Kind::Pages(pages), Kind::End(wire::SnapshotEnd { pages_sent: 2 })];
    let frames = kinds.map(|kind| wire::SnapshotFrame { kind: Some(kind) }.encode_length_delimited_to_vec());
    vec![frames.concat()]
}
