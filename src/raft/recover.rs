//! A cluster of one voter from the log of a survivor, while the node does not run.
//!
//! The members of a Raft group are an entry of its log, and a group without a quorum cannot append one. So it is appended
//! here, by the operator's word that the others are gone: behind everything the log has, in a term above all it has seen.
//! At the next start the only voter commits the whole log, and with it what it could not know to be committed: a quorum may
//! have acknowledged that.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use openraft::{EntryPayload, Membership};

use super::codec;
use super::error::RaftError;
use super::options::RaftOptions;
use super::segment_log::{LogOptions, Record, SegmentLog};
use super::types::{CommittedLeaderId, Entry, LogId, Peer, Vote, position};
use crate::io::blobs::BlobStore;
use crate::store::Change;
use crate::types::{DbName, LogIndex, NodeId, NodeName};

/// What the log of a survivor has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Survivor {
    /// Its last entry.
    pub last: LogIndex,
    /// The term of that.
    pub term: u64,
    /// The last entry that is known to be committed.
    pub committed: LogIndex,
    /// The other members: names and HOST:PORT of their gRPC.
    pub others: Vec<(String, String)>,
    /// Whether the node was a voter by what the log says.
    pub voted: bool,
    /// Databases with a large change set that only the others have, and the entry that names it.
    pub incomplete: BTreeMap<DbName, LogIndex>,
}

/// The log of a node that does not run.
pub struct SurvivorLog {
    log: SegmentLog,
    node: u64,
    peer: Peer,
    last: Option<LogId>,
    voted: Option<Vote>,
    /// What was found.
    pub found: Survivor,
}

impl SurvivorLog {
    /// Opens the log in `dir` of the node `node`; entries behind `durable` are still to be applied. Nothing is changed.
    ///
    /// # Errors
    /// Where there is no log, or it is damaged.
    pub fn open(
        dir: &Path,
        (node, name): (NodeId, &NodeName),
        durable: LogIndex,
        blobs: &BlobStore,
    ) -> Result<Self, RaftError> {
        let unknown = RaftOptions::new(String::new(), node, name.clone(), dir.to_owned());
        if !super::start::segments_exist(dir) {
            return Err(RaftError::NoCluster(dir.to_owned()));
        }
        let options =
            LogOptions { dir: dir.to_owned(), segment_bytes: unknown.segment_bytes, names: codec::blobs_of };
        let (log, recovered) = SegmentLog::open(options)?;
        let committed = recovered.committed.as_deref().map(codec::decode_log_id).transpose()?;
        let purged = recovered.purged.as_ref().map(|(_, id)| codec::decode_log_id(id)).transpose()?;
        let voted = recovered.vote.as_deref().map(codec::decode_vote).transpose()?;
        let mut members = stored_members(&dir.join("membership"))?;
        let (mut last, mut incomplete) = (purged, BTreeMap::new());
        let reader = log.reader();
        let mut next = reader.first_index();
        loop {
            let entries = reader.read(next, reader.last_index() + 1, READ_BYTES_MAX)?;
            let Some((at, _)) = entries.last() else { break };
            next = at + 1;
            for (index, bytes) in entries {
                let index = LogIndex::new(index);
                if index > durable && codec::blobs_of(&bytes).iter().any(|key| !blobs.contains(*key)) {
                    let changed = Change::decode(codec::change_of(bytes.clone())?);
                    for set in changed.iter().flat_map(Change::change_sets).filter(|set| set.blob().is_some())
                    {
                        incomplete.entry(set.db.clone()).or_insert(index);
                    }
                }
                let entry = codec::decode_entry(bytes)?;
                last = Some(entry.log_id);
                if let EntryPayload::Membership(changed) = entry.payload {
                    members = Some(changed);
                }
            }
        }
        let members = members.unwrap_or_default();
        let id = node.get();
        let peer = members.get_node(&id).cloned();
        let peer = peer.unwrap_or_else(|| Peer { name: name.to_string(), votes: true, ..Peer::default() });
        let others = members.nodes().filter(|(other, _)| **other != id);
        let found = Survivor {
            last: LogIndex::new(last.map_or(0, |id| position(id.index))),
            term: last.map_or(0, |id| id.leader_id.term),
            committed: LogIndex::new(committed.map_or(0, |id| position(id.index))),
            others: others.map(|(_, peer)| (peer.name.clone(), peer.addr.clone())).collect(),
            voted: members.voter_ids().any(|voter| voter == id),
            incomplete,
        };
        Ok(Self { log, node: id, peer: Peer { votes: true, ..peer }, last, voted, found })
    }

    /// Makes this node the only member, durably.
    ///
    /// # Errors
    /// Where the log cannot be written.
    pub fn become_only_voter(mut self) -> Result<(), RaftError> {
        let seen = self.voted.map_or(0, |vote| vote.leader_id.term).max(self.found.term);
        let term = seen + 1;
        let members = Membership::new(
            vec![BTreeSet::from([self.node])],
            BTreeMap::from([(self.node, self.peer.clone())]),
        );
        let members = members.map_err(|error| RaftError::Raft(error.to_string()))?;
        let index = self.last.map_or(0, |last| last.index + 1);
        let leader_id = CommittedLeaderId::new(term);
        let entry =
            Entry { log_id: LogId::new(leader_id, index), payload: EntryPayload::Membership(members) };
        self.log.write(&[
            Record::Vote(codec::encode_vote(&Vote::new(term, self.node))),
            Record::Entry { index: position(index), payload: codec::encode_entry(&entry)? },
        ])?;
        Ok(self.log.sync()?)
    }
}

/// Bytes of entries looked at together.
const READ_BYTES_MAX: usize = 4 << 20;

/// The members as of the last change that was applied.
fn stored_members(file: &Path) -> io::Result<Option<Membership<u64, Peer>>> {
    match std::fs::read(file) {
        Ok(bytes) => Ok(Some(codec::decode_members(&bytes)?.membership().clone())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
