//! Raft's messages as they travel. Bytes from a peer are checked here, and nowhere else.

use openraft::impls::leader_id_std::LeaderId;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tonic::Status;

use crate::raft::codec;
use crate::raft::types::{CommittedLeaderId, LogId, TypeConfig, Vote};

/// Generated from `proto/raft.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod proto {
    tonic::include_proto!("skein.raft.v1");
}

pub(super) use proto::*;

fn invalid(what: &str) -> Status {
    Status::invalid_argument(format!("raft message: {what}"))
}

pub(super) fn log_id(id: LogId) -> proto::LogId {
    proto::LogId { term: id.leader_id.term, index: id.index }
}

pub(super) fn log_id_from(id: proto::LogId) -> LogId {
    LogId { leader_id: CommittedLeaderId::new(id.term), index: id.index }
}

pub(super) fn vote(vote: &Vote) -> BallotVote {
    BallotVote { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
}

pub(super) fn vote_from(vote: Option<BallotVote>) -> Result<Vote, Status> {
    let vote = vote.ok_or_else(|| invalid("no vote"))?;
    let leader_id = LeaderId { term: vote.term, voted_for: vote.node };
    Ok(Vote { leader_id, committed: vote.committed })
}

/// # Errors
/// Where members cannot be put into JSON.
pub(super) fn append(request: &AppendEntriesRequest<TypeConfig>) -> std::io::Result<AppendRequest> {
    Ok(AppendRequest {
        vote: Some(vote(&request.vote)),
        previous: request.prev_log_id.map(log_id),
        entries: request.entries.iter().map(codec::encode_entry).collect::<Result<_, _>>()?,
        committed: request.leader_commit.map(log_id),
    })
}

pub(super) fn append_from(request: AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
    let prev_log_id = request.previous.map(log_id_from);
    let entries = request.entries.into_iter().map(codec::decode_entry).collect::<Result<Vec<_>, _>>();
    let entries = entries.map_err(|error| invalid(&error.to_string()))?;
    // The number of an entry that follows none overflows for one who says that it is the last there can be.
    let follows = |previous: Option<u64>, index| match previous {
        None => index == 0,
        Some(previous) => previous.checked_add(1) == Some(index),
    };
    let mut previous = prev_log_id.map(|id| id.index);
    if !entries.iter().all(|entry| follows(previous.replace(entry.log_id.index), entry.log_id.index)) {
        return Err(invalid("entries are not consecutive"));
    }
    Ok(AppendEntriesRequest {
        vote: vote_from(request.vote)?,
        prev_log_id,
        entries,
        leader_commit: request.committed.map(log_id_from),
    })
}

pub(super) fn appended(result: &StreamAppendResult<TypeConfig>) -> AppendResponse {
    use append_response::Result as Answer;
    let result = match result {
        Ok(Some(matched)) => Answer::Matched(log_id(*matched)),
        Ok(None) => Answer::Nothing(true),
        Err(StreamAppendError::Conflict(at)) => Answer::Conflict(log_id(*at)),
        Err(StreamAppendError::HigherVote(higher)) => Answer::Higher(vote(higher)),
    };
    AppendResponse { result: Some(result) }
}

pub(super) fn appended_from(response: AppendResponse) -> Result<StreamAppendResult<TypeConfig>, Status> {
    use append_response::Result as Answer;
    Ok(match response.result.ok_or_else(|| invalid("no result"))? {
        Answer::Matched(matched) => Ok(Some(log_id_from(matched))),
        Answer::Nothing(_) => Ok(None),
        Answer::Conflict(at) => Err(StreamAppendError::Conflict(log_id_from(at))),
        Answer::Higher(higher) => Err(StreamAppendError::HigherVote(vote_from(Some(higher))?)),
    })
}

pub(super) fn ballot(request: &VoteRequest<TypeConfig>, pre_vote: bool) -> proto::VoteRequest {
    proto::VoteRequest {
        vote: Some(vote(&request.vote)),
        last: request.last_log_id.map(log_id),
        leadership_transfer: request.leadership_transfer,
        pre_vote,
    }
}

pub(super) fn ballot_from(request: proto::VoteRequest) -> Result<VoteRequest<TypeConfig>, Status> {
    Ok(VoteRequest {
        vote: vote_from(request.vote)?,
        last_log_id: request.last.map(log_id_from),
        leadership_transfer: request.leadership_transfer,
    })
}

pub(super) fn voted(response: &VoteResponse<TypeConfig>) -> proto::VoteResponse {
    proto::VoteResponse {
        vote: Some(vote(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.map(log_id),
    }
}

pub(super) fn voted_from(response: proto::VoteResponse) -> Result<VoteResponse<TypeConfig>, Status> {
    Ok(VoteResponse {
        vote: vote_from(response.vote)?,
        vote_granted: response.granted,
        last_log_id: response.last.map(log_id_from),
    })
}

pub(super) fn transfer(request: &TransferLeaderRequest<TypeConfig>) -> TransferRequest {
    TransferRequest {
        from: Some(vote(request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().copied().map(log_id),
    }
}

pub(super) fn transfer_from(request: TransferRequest) -> Result<TransferLeaderRequest<TypeConfig>, Status> {
    let from = vote_from(request.from)?;
    Ok(TransferLeaderRequest::new(from, request.to, request.last.map(log_id_from)))
}

pub(super) fn transferred(response: &TransferLeaderResponse<TypeConfig>) -> TransferResponse {
    use transfer_response::Refusal;
    let refusal = match response {
        Ok(()) => None,
        Err(TransferLeaderError::VoteChanged { actual, .. }) => Some(Refusal::VoteChanged(vote(actual))),
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            let (expected, actual) = (expected.map(log_id), actual.map(log_id));
            Some(Refusal::NotFlushed(NotFlushed { expected, actual }))
        }
    };
    TransferResponse { refusal }
}

pub(super) fn transferred_from(
    response: TransferResponse,
    expected: Vote,
) -> Result<TransferLeaderResponse<TypeConfig>, Status> {
    use transfer_response::Refusal;
    Ok(match response.refusal {
        None => Ok(()),
        Some(Refusal::VoteChanged(actual)) => {
            Err(TransferLeaderError::VoteChanged { expected, actual: vote_from(Some(actual))? })
        }
        Some(Refusal::NotFlushed(NotFlushed { expected, actual })) => {
            let (expected, actual) = (expected.map(log_id_from), actual.map(log_id_from));
            Err(TransferLeaderError::LogNotFlushed { expected, actual })
        }
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use openraft::entry::EntryPayload;

    use super::*;
    use crate::raft::types::{Entry, Payload};

    fn id(term: u64, index: u64) -> LogId {
        LogId { leader_id: CommittedLeaderId::new(term), index }
    }

    fn a_vote(committed: bool) -> Vote {
        Vote { leader_id: LeaderId { term: 4, voted_for: 7 }, committed }
    }

    #[test]
    fn appends_survive_the_wire_and_gaps_are_refused() {
        let entry = |index| Entry {
            log_id: id(3, index),
            payload: EntryPayload::Normal(Payload(Bytes::from_static(b"change"))),
        };
        for (prev_log_id, entries) in
            [(None, vec![entry(0), entry(1)]), (Some(id(2, 8)), vec![entry(9)]), (Some(id(2, 8)), vec![])]
        {
            let request = AppendEntriesRequest {
                vote: a_vote(true),
                prev_log_id,
                entries,
                leader_commit: Some(id(1, 5)),
            };
            let back = append_from(append(&request).unwrap()).unwrap();
            assert_eq!(format!("{back:?}"), format!("{request:?}"));
        }
        let gap = AppendEntriesRequest::<TypeConfig> {
            vote: a_vote(true),
            prev_log_id: Some(id(2, 8)),
            entries: vec![entry(10)],
            leader_commit: None,
        };
        assert!(append_from(append(&gap).unwrap()).is_err());
        assert!(append_from(AppendRequest::default()).is_err(), "a request without a vote");
        let cut = AppendRequest { entries: vec![Bytes::from_static(b"x")], ..append(&gap).unwrap() };
        assert!(append_from(cut).is_err());
    }

    #[test]
    fn answers_survive_the_wire() {
        for result in [
            Ok(None),
            Ok(Some(id(1, 2))),
            Err(StreamAppendError::Conflict(id(3, 4))),
            Err(StreamAppendError::HigherVote(a_vote(false))),
        ] {
            assert_eq!(appended_from(appended(&result)).unwrap(), result);
        }
        assert!(appended_from(AppendResponse::default()).is_err());
        let response = VoteResponse { vote: a_vote(true), vote_granted: true, last_log_id: Some(id(9, 9)) };
        assert_eq!(voted_from(voted(&response)).unwrap(), response);
        let request =
            VoteRequest { vote: a_vote(false), last_log_id: Some(id(1, 1)), leadership_transfer: true };
        assert_eq!(ballot_from(ballot(&request, false)).unwrap(), request);
    }

    #[test]
    fn transfers_survive_the_wire() {
        let request = TransferLeaderRequest::new(a_vote(true), 9, Some(id(2, 2)));
        assert_eq!(transfer_from(transfer(&request)).unwrap(), request);
        let expected = a_vote(true);
        for response in [
            Ok(()),
            Err(TransferLeaderError::VoteChanged { expected, actual: a_vote(false) }),
            Err(TransferLeaderError::LogNotFlushed { expected: Some(id(1, 1)), actual: None }),
        ] {
            assert_eq!(transferred_from(transferred(&response), expected).unwrap(), response);
        }
    }
}
