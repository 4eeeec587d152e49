//! Entries that are committed become steps of databases, in order.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::entry::EntryPayload;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta};
use openraft::{OptionalSend, StoredMembership};
use tokio::sync::watch;

use super::codec;
use super::pending::Pending;
use super::segment_log::LogReader;
use super::target::SharedTarget;
use super::types::{LogId, Members, Payload, TypeConfig, position};
use crate::io::durable;
use crate::store::Change;
use crate::types::LogIndex;

type Meta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
type Handle = openraft::type_config::alias::SnapshotOf<TypeConfig, ()>;

/// The state machine: databases, and the members as the log has them.
pub struct StateMachine {
    target: SharedTarget,
    pending: Arc<Pending>,
    applied: watch::Sender<LogIndex>,
    last_applied: Option<LogId>,
    members: Members,
    members_file: PathBuf,
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
        purged: Option<LogId>,
        members_file: PathBuf,
    ) -> io::Result<Self> {
        let members = match std::fs::read(&members_file) {
            Ok(bytes) => codec::decode_members(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => StoredMembership::default(),
            Err(error) => return Err(error),
        };
        let last_applied = log_id_at(target.durable_index(), entries, purged)?;
        let applied = watch::Sender::new(LogIndex::new(last_applied.map_or(0, |id| position(id.index))));
        Ok(Self { target, pending, applied, last_applied, members, members_file })
    }

    /// The newest entry applied, as it moves.
    pub(super) fn watch_applied(&self) -> watch::Receiver<LogIndex> {
        self.applied.subscribe()
    }

    fn apply_change(&self, index: LogIndex, payload: Payload) {
        let change = match Change::decode(payload.0) {
            Ok(change) => change,
            Err(error) => {
                // Skipped alike on every node that runs this version; the databases it concerns notice the gap.
                tracing::error!(%index, %error, "a log entry cannot be read");
                return;
            }
        };
        match self.pending.take(&change.origin) {
            Some(done) => done(Ok(index)),
            None => {
                if let Err(error) = self.target.apply(index, &change) {
                    tracing::error!(%index, %error, "a log entry cannot be applied");
                }
            }
        }
    }
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
            let index = LogIndex::new(position(entry.log_id.index));
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(payload) => self.apply_change(index, payload),
                EntryPayload::Membership(membership) => {
                    self.members = StoredMembership::new(Some(entry.log_id), membership);
                    durable::write_atomic(&self.members_file, &codec::encode_members(&self.members)?)?;
                }
            }
            self.last_applied = Some(entry.log_id);
            self.target.applied(index);
            self.applied.send_replace(index);
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> ManifestBuilder {
        ManifestBuilder { meta: self.meta() }
    }

    /// A snapshot is a handle without content, see [`ManifestBuilder`]: it can be installed once the databases have
    /// got there by themselves.
    async fn install_snapshot(&mut self, meta: &Meta, (): ()) -> io::Result<()> {
        let at = meta.last_log_id.map_or(0, |id| position(id.index));
        if self.target.has_fetched(LogIndex::new(at)) {
            self.members = meta.last_membership.clone();
            durable::write_atomic(&self.members_file, &codec::encode_members(&self.members)?)?;
            self.last_applied = meta.last_log_id;
            self.applied.send_replace(LogIndex::new(at));
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this node lacks the log before entry {at}; empty its data directory and join again"),
        ))
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
