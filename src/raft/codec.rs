//! Log records of Raft, versioned by us: openraft's own serialisation is not a stable format.
//!
//! Big-endian. Log id: 8 term, 8 index. Vote, version 1: 1 version | 8 term | 8 node | 1 committed.
//! Entry, version 1: 1 version | log id | 1 kind (0 blank, 1 change, 2 members) | the change's bytes, or the
//! members as JSON `{"configs": [[node, ...], ...], "nodes": {node: {"name", "addr", "http"}}}`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::{Buf, BufMut, Bytes};
use openraft::entry::EntryPayload;
use openraft::impls::leader_id_std::LeaderId;
use openraft::{Membership, StoredMembership};
use serde::{Deserialize, Serialize};

use super::types::{CommittedLeaderId, Entry, LogId, Members, Payload, Peer, Vote};
use crate::io::blobs::BlobKey;
use crate::store::Change;

const VERSION: u8 = 1;
/// Bytes of a log id.
pub const LOG_ID_BYTES: usize = 16;
/// Bytes of an entry before its payload.
const ENTRY_HEADER_BYTES: usize = 1 + LOG_ID_BYTES + 1;

#[derive(Serialize, Deserialize)]
struct MembersJson {
    configs: Vec<BTreeSet<u64>>,
    nodes: BTreeMap<u64, Peer>,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("log record: {what}"))
}

fn put_log_id(out: &mut Vec<u8>, id: LogId) {
    out.put_u64(id.leader_id.term);
    out.put_u64(id.index);
}

fn get_log_id(input: &mut impl Buf) -> LogId {
    let (term, index) = (input.get_u64(), input.get_u64());
    LogId { leader_id: CommittedLeaderId::new(term), index }
}

/// The bytes of a log id.
pub fn encode_log_id(id: LogId) -> Bytes {
    let mut out = Vec::with_capacity(LOG_ID_BYTES);
    put_log_id(&mut out, id);
    out.into()
}

/// Reads a log id.
///
/// # Errors
/// Where there are not 16 bytes.
pub fn decode_log_id(mut bytes: &[u8]) -> io::Result<LogId> {
    if bytes.len() != LOG_ID_BYTES {
        return Err(bad("a log id has 16 bytes"));
    }
    Ok(get_log_id(&mut bytes))
}

/// The bytes of a vote.
pub fn encode_vote(vote: &Vote) -> Bytes {
    let mut out = vec![VERSION];
    out.put_u64(vote.leader_id.term);
    out.put_u64(vote.leader_id.voted_for);
    out.put_u8(u8::from(vote.committed));
    out.into()
}

/// Reads a vote.
///
/// # Errors
/// Where the bytes are of another version or length.
pub fn decode_vote(mut bytes: &[u8]) -> io::Result<Vote> {
    if bytes.len() != 18 || bytes.get_u8() != VERSION {
        return Err(bad("a vote of an unknown version"));
    }
    let (term, voted_for) = (bytes.get_u64(), bytes.get_u64());
    Ok(Vote { leader_id: LeaderId { term, voted_for }, committed: bytes.get_u8() != 0 })
}

/// The bytes of an entry.
///
/// # Errors
/// Where members cannot be put into JSON.
pub fn encode_entry(entry: &Entry) -> io::Result<Bytes> {
    let payload: &[u8] = match &entry.payload {
        EntryPayload::Normal(Payload(bytes)) => bytes,
        EntryPayload::Blank | EntryPayload::Membership(_) => &[],
    };
    let mut out = Vec::with_capacity(ENTRY_HEADER_BYTES + payload.len());
    out.put_u8(VERSION);
    put_log_id(&mut out, entry.log_id);
    match &entry.payload {
        EntryPayload::Blank => out.put_u8(0),
        EntryPayload::Normal(_) => {
            out.put_u8(1);
            out.put_slice(payload);
        }
        EntryPayload::Membership(membership) => {
            out.put_u8(2);
            out.put_slice(&members_json(membership)?);
        }
    }
    Ok(out.into())
}

/// Reads an entry; a change's bytes are shared, not copied.
///
/// # Errors
/// Where the bytes are cut short or of an unknown version.
pub fn decode_entry(mut bytes: Bytes) -> io::Result<Entry> {
    if bytes.len() < ENTRY_HEADER_BYTES || bytes.get_u8() != VERSION {
        return Err(bad("an entry of an unknown version"));
    }
    let log_id = get_log_id(&mut bytes);
    let payload = match bytes.get_u8() {
        0 => EntryPayload::Blank,
        1 => EntryPayload::Normal(Payload(bytes)),
        2 => EntryPayload::Membership(members_from(&bytes)?),
        _ => return Err(bad("an entry of an unknown kind")),
    };
    Ok(Entry { log_id, payload })
}

/// The change in an entry's bytes, empty where it has none.
///
/// # Errors
/// Those of [`decode_entry`].
pub fn change_of(bytes: Bytes) -> io::Result<Bytes> {
    match decode_entry(bytes)?.payload {
        EntryPayload::Normal(Payload(change)) => Ok(change),
        EntryPayload::Blank | EntryPayload::Membership(_) => Ok(Bytes::new()),
    }
}

/// The blobs that an entry's bytes name; none where they cannot be read, which is said where the entry is applied.
pub fn blobs_of(bytes: &Bytes) -> Vec<BlobKey> {
    let change = change_of(bytes.clone()).ok().filter(|change| !change.is_empty());
    let change = change.and_then(|change| Change::decode(change).ok());
    change.map_or_else(Vec::new, |change| change.blobs().map(|blob| (blob.digest, blob.size_bytes)).collect())
}

fn members_json(membership: &Membership<u64, Peer>) -> io::Result<Vec<u8>> {
    let nodes = membership.nodes().map(|(id, peer)| (*id, peer.clone())).collect();
    let json = MembersJson { configs: membership.get_joint_config().clone(), nodes };
    serde_json::to_vec(&json).map_err(io::Error::other)
}

fn members_from(bytes: &[u8]) -> io::Result<Membership<u64, Peer>> {
    let json: MembersJson = serde_json::from_slice(bytes).map_err(|_| bad("members that are no JSON"))?;
    Membership::new(json.configs, json.nodes).map_err(|error| bad(&error.to_string()))
}

/// The bytes of members with the entry that made them so: log id (zeros for none), then JSON.
///
/// # Errors
/// Where members cannot be put into JSON.
pub fn encode_members(members: &Members) -> io::Result<Vec<u8>> {
    let mut out = vec![VERSION, u8::from(members.log_id().is_some())];
    let none = LogId { leader_id: CommittedLeaderId::new(0), index: 0 };
    put_log_id(&mut out, members.log_id().unwrap_or(none));
    out.extend_from_slice(&members_json(members.membership())?);
    Ok(out)
}

/// Reads members with the entry that made them so.
///
/// # Errors
/// Where the bytes are cut short or of an unknown version.
pub fn decode_members(mut bytes: &[u8]) -> io::Result<Members> {
    if bytes.len() < 2 + LOG_ID_BYTES || bytes.get_u8() != VERSION {
        return Err(bad("members of an unknown version"));
    }
    let some = bytes.get_u8() != 0;
    let log_id = get_log_id(&mut bytes);
    Ok(StoredMembership::new(some.then_some(log_id), members_from(bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId { leader_id: CommittedLeaderId::new(term), index }
    }

    #[test]
    fn records_round_trip_and_cuts_are_refused() {
        let peer = Peer { name: "a".into(), addr: "h:1".into(), http: "http://h".into(), votes: false };
        let members = Membership::new(vec![BTreeSet::from([7])], BTreeMap::from([(7, peer)])).unwrap();
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Payload(Bytes::from_static(b"change"))),
            EntryPayload::Membership(members.clone()),
        ] {
            let entry = Entry { log_id: id(3, 9), payload };
            let bytes = encode_entry(&entry).unwrap();
            assert_eq!(format!("{:?}", decode_entry(bytes.clone()).unwrap()), format!("{entry:?}"));
            assert!(decode_entry(bytes.slice(..ENTRY_HEADER_BYTES - 1)).is_err());
        }
        let vote = Vote { leader_id: LeaderId { term: 4, voted_for: 7 }, committed: true };
        assert_eq!(decode_vote(&encode_vote(&vote)).unwrap(), vote);
        let stored = StoredMembership::new(Some(id(1, 1)), members);
        assert_eq!(decode_members(&encode_members(&stored).unwrap()).unwrap(), stored);
        assert_eq!(decode_log_id(&encode_log_id(id(5, 6))).unwrap(), id(5, 6));
    }
}
