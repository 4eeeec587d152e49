//! Targets for [`crate::fuzz`].

use bytes::{Bytes, BytesMut};

use super::{
    BlobRef, Body, ChangeSet, Compression, Encoder, Header, compact, page_checksum, parse_file_name, verify,
};
use crate::types::{Checksum, DbName, PageCount, PageSize, Pgno, Txid, TxidRange};

const PAGE: usize = 512;

/// An LTX file, alone and as what is compacted with a valid one.
pub fn file(data: &[u8]) {
    let _ = verify(data);
    let first = encoded(1, 1);
    let _ = compact(vec![&first[..], data], std::io::sink(), Compression::Lz4);
    if let Ok(name) = std::str::from_utf8(data) {
        let _ = parse_file_name(name);
    }
}

/// Valid files.
pub fn files() -> Vec<Vec<u8>> {
    vec![encoded(1, 1), encoded(2, 3), b"0000000000000001-0000000000000002.ltx".to_vec()]
}

/// A change set as it stands in an entry of the log.
pub fn change_set(data: &[u8]) {
    let mut input = Bytes::copy_from_slice(data);
    if let Ok(set) = ChangeSet::decode(&mut input) {
        let mut again = BytesMut::new();
        set.encode(&mut again);
        let read = ChangeSet::decode(&mut again.freeze());
        assert!(read.is_ok_and(|read| read == set), "what was read is written as it was");
    }
}

/// Valid change sets.
pub fn change_sets() -> Vec<Vec<u8>> {
    let bodies = [
        Body::Inline(Bytes::from(encoded(2, 2))),
        Body::Blob(BlobRef { digest: 7 | 1 << 63, size_bytes: 1 << 30 }),
    ];
    let encode = |body| {
        let set = ChangeSet {
            db: DbName::new("dir/app.db").expect("a valid name"),
            range: TxidRange::single(Txid::FIRST),
            pre: Checksum::EMPTY,
            post: Checksum::new(5),
            page_size: PageSize::new(PAGE as u32).expect("a valid size"),
            commit: PageCount::new(3),
            body,
        };
        let mut out = BytesMut::new();
        set.encode(&mut out);
        out.to_vec()
    };
    bodies.into_iter().map(encode).collect()
}

fn encoded(min: u64, max: u64) -> Vec<u8> {
    let page_size = PageSize::new(PAGE as u32).expect("a valid size");
    let txid = |number| Txid::new(number).expect("not 0");
    let range = TxidRange::new(txid(min), txid(max)).expect("in order");
    let header = Header::new(page_size, PageCount::new(3), range, (min > 1).then_some(Checksum::new(min)));
    let mut encoder = Encoder::new(Vec::new(), header, Compression::Lz4).expect("a valid header");
    let mut post = Checksum::EMPTY;
    for pgno in (1..=3).filter_map(Pgno::new) {
        let page: Vec<u8> = (0..PAGE).map(|at| (at * pgno.get() as usize / 3) as u8).collect();
        post = post ^ page_checksum(pgno, &page);
        encoder.page(pgno, &page).expect("pages in order");
    }
    encoder.finish(Some(post)).expect("a whole file").writer
}
