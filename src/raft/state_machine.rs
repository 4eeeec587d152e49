//! Entries that are committed become steps of databases, in order.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use futures::{Stream, StreamExt};
use openraft::entry::EntryPayload;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta};
use openraft::{OptionalSend, StoredMembership};

use super::codec;
use super::log_store::StoreShared;
use super::pending::Pending;
use super::segment_log::LogReader;
use super::target::SharedTarget;
use super::types::{LogId, Members, Payload, Peer, TypeConfig, position};
use crate::io::durable;
use crate::store::{Change, ChangeKind};
use crate::types::LogIndex;

type Meta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
type Handle = openraft::type_config::alias::SnapshotOf<TypeConfig, ()>;

/// The state machine: databases, and the members as the log has them.
pub struct StateMachine {
    target: SharedTarget,
    pending: Arc<Pending>,
    last_applied: Option<LogId>,
    members: Members,
    members_file: PathBuf,
    store: Arc<StoreShared>,
    replay: Option<Replay>,
}

/// How far the log went when this node started: entries that may be in the databases already.
struct Replay {
    last: u64,
    term: u64,
}

impl StateMachine {
    /// The state machine as the target and the members file have it; entries behind the target's durable index are
    /// applied again.
    ///
    /// # Errors
    /// Where the members file is damaged, or the log lacks the entry the target stands at.
    pub(super) fn open(
        target: SharedTarget,
        pending: Arc<Pending>,
        entries: &LogReader,
        store: Arc<StoreShared>,
        members_file: PathBuf,
    ) -> io::Result<Self> {
        let members = match std::fs::read(&members_file) {
            Ok(bytes) => codec::decode_members(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => StoredMembership::default(),
            Err(error) => return Err(error),
        };
        let (mut members, fetched) = (members, read_fetched(&members_file)?);
        let stands = target.durable_index();
        let last_applied = match fetched {
            // It died after the fetch, and before its log gave up what the fetch had replaced.
            Some((id, of_then))
                if stands > LogIndex::new(entries.last_index()) && stands.get() == position(id.index) =>
            {
                members = of_then;
                Some(id)
            }
            _ => log_id_at(stands, entries, store.purged())?,
        };
        let last = last_of(entries)?.or(last_applied);
        let replay = last.map(|id| Replay { last: position(id.index), term: id.leader_id.term });
        let mut machine = Self { target, pending, last_applied, members, members_file, store, replay };
        match machine.last_applied {
            Some(at) => machine.note_replayed(at),
            // Nothing was ever logged here.
            None if machine.replay.is_none() => machine.target.end_replay(),
            None => {}
        }
        Ok(machine)
    }

    /// Whether this node, with number `id`, was the only voter when it last applied a change of the members.
    pub(super) fn is_alone(&self, id: u64) -> bool {
        self.members.membership().voter_ids().eq([id])
    }

    /// The other members, as of when this node last applied a change of them.
    pub(super) fn others(&self, id: u64) -> Vec<(u64, Peer)> {
        let members = self.members.membership().nodes().filter(|(other, _)| **other != id);
        members.map(|(other, peer)| (*other, peer.clone())).collect()
    }

    /// What the members are known to say of node `id`.
    pub(super) fn peer(&self, id: u64) -> Option<Peer> {
        self.members.membership().get_node(&id).cloned()
    }

    /// The change of an entry where it has to be applied; a commit proposed in this run is in its database already.
    fn change_of(&self, index: LogIndex, payload: Payload, decided: Instant) -> Option<Change> {
        match Change::decode(payload.0) {
            Ok(change) => match self.pending.take(&change.origin) {
                Some((done, times)) => {
                    done(Ok(index));
                    times.record(index, &change, self.store.flushed_at(index.get()), decided);
                    // A commit is in its database already; what moves or removes files takes its turn like anybody's.
                    let moves_files = matches!(
                        change.kind,
                        ChangeKind::Drop(_) | ChangeKind::Rename { .. } | ChangeKind::RenameDirectory { .. }
                    );
                    moves_files.then_some(change)
                }
                None => Some(change),
            },
            Err(error) => {
                // Skipped alike on every node that runs this version; the databases it concerns notice the gap.
                tracing::error!(%index, %error, "a log entry cannot be read");
                None
            }
        }
    }

    /// What the log held at the start is applied again, or was replaced by another leader's entries.
    fn note_replayed(&mut self, at: LogId) {
        let over = |replay: &Replay| position(at.index) >= replay.last || at.leader_id.term > replay.term;
        if self.replay.as_ref().is_some_and(over) {
            self.replay = None;
            self.target.end_replay();
        }
    }
}

/// Beside the members: the last log id and the members of what was last fetched by difference; 16 bytes, then as in the
/// members file.
fn fetched_file(members_file: &Path) -> PathBuf {
    members_file.with_file_name("fetched")
}

fn read_fetched(members_file: &Path) -> io::Result<Option<(LogId, Members)>> {
    let bytes = match std::fs::read(fetched_file(members_file)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let (id, members) = bytes.split_at(bytes.len().min(codec::LOG_ID_BYTES));
    Ok(Some((codec::decode_log_id(id)?, codec::decode_members(members)?)))
}

/// The log id of the newest entry.
fn last_of(entries: &LogReader) -> io::Result<Option<LogId>> {
    let last = entries.last_index();
    if last < entries.first_index() {
        return Ok(None);
    }
    let found = entries.read(last, last + 1, 1)?.into_iter().next();
    found.map(|(_, bytes)| Ok(codec::decode_entry(bytes)?.log_id)).transpose()
}

/// The log id of the entry a target stands at.
fn log_id_at(index: LogIndex, entries: &LogReader, purged: Option<LogId>) -> io::Result<Option<LogId>> {
    if index == LogIndex::ZERO {
        return Ok(None);
    }
    if let Some(purged) = purged
        && position(purged.index) >= index.get()
    {
        return Ok(Some(purged));
    }
    let found = entries.read(index.get(), index.get() + 1, 1)?;
    match found.into_iter().next() {
        Some((_, bytes)) => Ok(Some(codec::decode_entry(bytes)?.log_id)),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "the databases stand at log entry {index}, the log ends at {}; restore the log's files, or empty the data directory and join the cluster again",
                entries.last_index()
            ),
        )),
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = ();
    type SnapshotBuilder = ManifestBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Members)> {
        Ok((self.last_applied, self.members.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            let (index, term) = (LogIndex::new(position(entry.log_id.index)), entry.log_id.leader_id.term);
            let decided = Instant::now();
            self.store.wait_flushed(index.get()).await?;
            let mut change = None;
            match entry.payload {
                EntryPayload::Blank => {
                    self.pending.lost_before(term);
                    self.target.term_began(term);
                }
                EntryPayload::Normal(payload) => change = self.change_of(index, payload, decided),
                EntryPayload::Membership(membership) => {
                    self.members = StoredMembership::new(Some(entry.log_id), membership);
                    durable::write_atomic(&self.members_file, &codec::encode_members(&self.members)?)?;
                }
            }
            self.last_applied = Some(entry.log_id);
            self.target.entry(index, change);
            self.note_replayed(entry.log_id);
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> ManifestBuilder {
        ManifestBuilder { meta: self.meta() }
    }

    /// A snapshot is a handle without content, see [`ManifestBuilder`]: the databases fetch what differs.
    async fn install_snapshot(&mut self, meta: &Meta, (): ()) -> io::Result<()> {
        let Some(last) = meta.last_log_id else { return Ok(()) };
        // Whether they are among what is fetched cannot be told, and their writers are not to be waited for.
        self.pending.abandon("this node fell so far behind that the log cannot tell");
        let mut noted = codec::encode_log_id(last).to_vec();
        noted.extend_from_slice(&codec::encode_members(&meta.last_membership)?);
        durable::write_atomic(&fetched_file(&self.members_file), &noted)?;
        self.target.fetch(LogIndex::new(position(last.index))).await?;
        self.target.term_began(last.leader_id.term);
        self.members = meta.last_membership.clone();
        durable::write_atomic(&self.members_file, &codec::encode_members(&self.members)?)?;
        self.last_applied = meta.last_log_id;
        self.note_replayed(last);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Handle>> {
        // A handle, never a copy: openraft asks for one at start where the log is purged (trap 6).
        Ok(self.last_applied.map(|_| Snapshot { meta: self.meta(), snapshot: () }))
    }
}

impl StateMachine {
    fn meta(&self) -> Meta {
        SnapshotMeta { last_log_id: self.last_applied, last_membership: self.members.clone() }
    }
}

/// Makes the handle of a snapshot: how far the databases are, not their content, which travels by difference.
pub struct ManifestBuilder {
    meta: Meta,
}

impl RaftSnapshotBuilder<TypeConfig> for ManifestBuilder {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<Handle> {
        Ok(Snapshot { meta: self.meta.clone(), snapshot: () })
    }
}
