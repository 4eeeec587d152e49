//! Targets for [`crate::fuzz`]: what other voters say.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::Membership;
use openraft::entry::EntryPayload;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use prost::Message;

use super::wire;
use crate::raft::codec;
use crate::raft::types::{Entry, LogId, Payload, Peer, TypeConfig, Vote};

/// A message of each kind; the first byte says which.
pub fn message(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 8 {
        0 => drop(wire::AppendRequest::decode(data).map(wire::append_from)),
        1 => drop(wire::AppendResponse::decode(data).map(wire::appended_from)),
        2 => drop(wire::proto::VoteRequest::decode(data).map(wire::ballot_from)),
        3 => drop(wire::proto::VoteResponse::decode(data).map(wire::voted_from)),
        4 => drop(wire::TransferRequest::decode(data).map(wire::transfer_from)),
        5 => drop(
            wire::TransferResponse::decode(data).map(|response| wire::transferred_from(response, vote())),
        ),
        6 => drop(wire::SnapshotRequest::decode(data).map(|request| codec::decode_members(&request.members))),
        _ => drop(wire::BlobPiece::decode(data)),
    }
}

/// Valid messages.
pub fn messages() -> Vec<Vec<u8>> {
    let entries = entries(vec![Bytes::from_static(b"change")]);
    let entries = entries.into_iter().map(|bytes| codec::decode_entry(bytes.into()).expect("a valid entry"));
    let append = AppendEntriesRequest::<TypeConfig> {
        vote: vote(),
        prev_log_id: None,
        entries: entries.take(1).collect(),
        leader_commit: Some(log_id(0)),
    };
    let append = wire::append(&append).expect("members are text");
    // Whoever sends it says that nothing can follow.
    let last = wire::proto::LogId { term: 2, index: u64::MAX };
    let at_the_end = wire::AppendRequest { previous: Some(last), ..append.clone() };
    let ballot =
        VoteRequest::<TypeConfig> { vote: vote(), last_log_id: Some(log_id(3)), leadership_transfer: false };
    let transfer = TransferLeaderRequest::<TypeConfig>::new(vote(), 2, Some(log_id(3)));
    let conflict = Err(openraft::raft::StreamAppendError::Conflict(log_id(3)));
    let granted = openraft::raft::VoteResponse::<TypeConfig> {
        vote: vote(),
        vote_granted: true,
        last_log_id: Some(log_id(3)),
    };
    vec![
        with_kind(0, &append),
        with_kind(0, &at_the_end),
        with_kind(1, &wire::appended(&conflict)),
        with_kind(1, &wire::appended(&Ok(Some(log_id(7))))),
        with_kind(2, &wire::ballot(&ballot, true)),
        with_kind(3, &wire::voted(&granted)),
        with_kind(4, &wire::transfer(&transfer)),
        with_kind(5, &wire::transferred(&Ok(()))),
    ]
}

/// Valid entries: these changes, a blank one, and one of members.
pub fn entries(changes: Vec<Bytes>) -> Vec<Vec<u8>> {
    let peer = |number: u64| Peer {
        name: format!("n{number}"),
        addr: format!("10.0.0.{number}:1"),
        http: String::new(),
        votes: true,
    };
    let nodes: BTreeMap<u64, Peer> = (1..=3).map(|number| (number, peer(number))).collect();
    let members = Membership::new(vec![BTreeSet::from([1, 2, 3])], nodes).expect("every voter is a node");
    let payloads = [EntryPayload::Blank, EntryPayload::Membership(members)];
    let changes = changes.into_iter().map(|bytes| EntryPayload::Normal(Payload(bytes)));
    let numbered = payloads.into_iter().chain(changes).zip(0..);
    let encode = |(payload, index)| codec::encode_entry(&Entry { log_id: log_id(index), payload });
    numbered.map(|numbered| encode(numbered).expect("members are text").to_vec()).collect()
}

fn with_kind(kind: u8, message: &impl Message) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes
}

fn log_id(index: u64) -> LogId {
    wire::log_id_from(wire::proto::LogId { term: 2, index })
}

fn vote() -> Vote {
    wire::vote_from(Some(wire::BallotVote { term: 2, node: 1, committed: true })).expect("it is there")
}
