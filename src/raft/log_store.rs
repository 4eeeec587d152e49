//! openraft's log storage over the segment log.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::watch;

use super::codec;
use super::segment_log::{LogError, LogOptions, LogReader, Record, SegmentLog};
use super::types::{Entry, LogId, TypeConfig, Vote, position};
use crate::telemetry::metrics::LOG_SYNC_SECONDS;
use crate::telemetry::traces;

/// Bytes of entries handed out at once; openraft's own limits count entries (trap 8).
const READ_BYTES_MAX: usize = 4 << 20;
/// See [`Writer::sync_later`].
const ROUNDS_BEFORE_SYNC: usize = 2;
/// Syncs whose time is remembered for traces.
const SYNCS_REMEMBERED: usize = 256;

/// The log as openraft writes it.
///
/// With one voter each append is written and synced where it is made: proposals that arrive meanwhile share the
/// next one. With more voters the sync is put off until Raft's thread has nothing else to do: by then the entries are
/// on their way to the others, whose disks work at the same time, and everything appended in between shares the sync.
/// Either way no other thread has to wake up, which between CPUs takes as long as the sync itself.
///
/// The price: a disk that stalls keeps the node from answering. A leader whose disk stalls for longer than an election
/// timeout is replaced, which is what its applications want.
pub struct LogStore {
    reader: StoreReader,
    writer: Writer,
}

/// The writing half, shared with syncs that were put off.
#[derive(Clone)]
struct Writer {
    log: Arc<Mutex<SegmentLog>>,
    shared: Arc<StoreShared>,
    unsynced: Arc<Mutex<Vec<IOFlushed<TypeConfig>>>>,
    #[cfg(test)]
    dir: std::path::PathBuf,
}

/// What the handles of one store share.
#[derive(Debug)]
pub struct StoreShared {
    puts_off: AtomicBool,
    syncs: AtomicU64,
    vote: Mutex<Option<Bytes>>,
    committed: Mutex<Option<Bytes>>,
    purged: Mutex<Option<LogId>>,
    /// The last entry on disk; `None` where a sync failed.
    flushed: watch::Sender<Option<u64>>,
    /// The last syncs, where traces want to know: the last entry of each, and when it was on disk.
    recent: Mutex<VecDeque<(u64, Instant)>>,
}

impl StoreShared {
    /// Puts syncs off from now on, or not.
    pub fn set_puts_off(&self, puts_off: bool) {
        self.puts_off.store(puts_off, Ordering::SeqCst);
    }

    /// Whether each append is synced where it is made: this node is the only voter.
    pub fn syncs_at_once(&self) -> bool {
        !self.puts_off.load(Ordering::SeqCst)
    }

    /// Syncs of the log so far.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// The last entry given up.
    pub fn purged(&self) -> Option<LogId> {
        *lock(&self.purged)
    }

    /// The last vote written.
    ///
    /// # Errors
    /// Where its bytes are damaged.
    pub fn vote(&self) -> io::Result<Option<Vote>> {
        lock(&self.vote).as_deref().map(codec::decode_vote).transpose()
    }

    /// For tests that apply what they never log.
    #[cfg(test)]
    pub fn assume_flushed(&self) {
        self.flushed.send_replace(Some(u64::MAX));
    }

    /// When the entry at `position` was on this node's disk; `None` where nobody traces, or that is long ago.
    pub fn flushed_at(&self, position: u64) -> Option<Instant> {
        if !traces::wanted() {
            return None;
        }
        lock(&self.recent).iter().find(|(last, _)| *last >= position).map(|(_, at)| *at)
    }

    fn note_sync(&self, last: u64, begun: Instant) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        metrics::histogram!(LOG_SYNC_SECONDS).record((now - begun).as_secs_f64());
        if traces::wanted() {
            let mut recent = lock(&self.recent);
            recent.push_back((last, now));
            if recent.len() > SYNCS_REMEMBERED {
                recent.pop_front();
            }
        }
    }

    /// Waits until the entry at `position` is on this node's disk: an entry may be committed by the disks of others
    /// (trap 5), and a database file that is ahead of its own log could not be redone.
    ///
    /// # Errors
    /// Where the disk failed.
    pub async fn wait_flushed(&self, position: u64) -> io::Result<()> {
        let mut flushed = self.flushed.subscribe();
        let reached = flushed.wait_for(|at| at.is_none_or(|at| at >= position)).await;
        match reached.map(|at| at.is_some()) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(io::Error::other("the log cannot be written")),
        }
    }
}

/// Reads entries for openraft.
#[derive(Clone)]
pub struct StoreReader {
    reader: LogReader,
    shared: Arc<StoreShared>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl LogStore {
    /// Opens the log.
    ///
    /// # Errors
    /// Those of [`SegmentLog::open`].
    pub fn open(options: LogOptions) -> Result<Self, LogError> {
        #[cfg(test)]
        let dir = options.dir.clone();
        let (log, recovered) = SegmentLog::open(options)?;
        let purged = recovered.purged.and_then(|(_, id)| codec::decode_log_id(&id).ok());
        let reader = log.reader();
        let shared = Arc::new(StoreShared {
            puts_off: AtomicBool::new(false),
            syncs: AtomicU64::new(0),
            vote: Mutex::new(recovered.vote),
            committed: Mutex::new(recovered.committed),
            purged: Mutex::new(purged),
            flushed: watch::Sender::new(Some(reader.last_index())),
            recent: Mutex::default(),
        });
        let reader = StoreReader { reader, shared: shared.clone() };
        let writer = Writer {
            log: Arc::new(Mutex::new(log)),
            shared,
            unsynced: Arc::default(),
            #[cfg(test)]
            dir,
        };
        Ok(Self { reader, writer })
    }

    /// What can be asked of the store while openraft owns it.
    pub fn shared(&self) -> Arc<StoreShared> {
        self.writer.shared.clone()
    }

    /// Reads entries as bytes.
    pub fn entries(&self) -> LogReader {
        self.reader.reader.clone()
    }

    /// See [`SegmentLog::starved`].
    pub fn starved(&self) -> impl Fn() -> Option<String> + Send + Sync + use<> {
        lock(&self.writer.log).starved()
    }

    /// Frees the segments of purged entries; to be called off openraft's task.
    pub fn recycler(&self) -> impl Fn() -> Result<(), LogError> + Send + Sync + 'static {
        let log = self.writer.log.clone();
        move || lock(&log).recycle()
    }
}

impl Writer {
    /// Writes and syncs in this place, with everything whose sync was put off.
    fn write_now(&self, records: &[Record]) -> io::Result<()> {
        lock(&self.log).write(records)?;
        self.sync()
    }

    /// Syncs everything written so far, and tells those who wait for it.
    fn sync(&self) -> io::Result<()> {
        let waiting = std::mem::take(&mut *lock(&self.unsynced));
        let begun = Instant::now();
        let result = {
            let mut log = lock(&self.log);
            log.sync().map(|()| log.reader().last_index())
        };
        self.shared.note_sync(result.as_ref().copied().unwrap_or_default(), begun);
        self.shared.flushed.send_replace(result.as_ref().ok().copied());
        let result = result.map(drop);
        for callback in waiting {
            callback.io_completed(result.clone().map_err(io::Error::from));
        }
        result.map_err(io::Error::from)
    }

    /// Syncs after what is ready to run now, twice: the first round hands entries to connections, the second one
    /// writes them to sockets.
    async fn sync_later(self) {
        for _ in 0..ROUNDS_BEFORE_SYNC {
            tokio::task::yield_now().await;
        }
        #[cfg(test)]
        crate::io::power::work(&self.dir).await;
        if !lock(&self.unsynced).is_empty()
            && let Err(error) = self.sync()
        {
            tracing::error!(%error, "cannot sync the log");
        }
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = StoreReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let last_purged_log_id = self.writer.shared.purged();
        let last = self.reader.reader.last_index();
        let first = self.reader.reader.first_index();
        let last_log_id = if last < first {
            last_purged_log_id
        } else {
            let entries = self.reader.reader.read(last, last + 1, 1)?;
            entries
                .into_iter()
                .next()
                .map(|(_, bytes)| codec::decode_entry(bytes))
                .transpose()?
                .map(|entry| entry.log_id)
        };
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> StoreReader {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let bytes = codec::encode_vote(vote);
        self.writer.write_now(&[Record::Vote(bytes.clone())])?;
        *lock(&self.writer.shared.vote) = Some(bytes);
        Ok(())
    }

    /// Written with the next sync: losing it costs a longer redo at start, nothing else.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(committed) = committed else { return Ok(()) };
        *lock(&self.writer.shared.committed) = Some(codec::encode_log_id(committed));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        lock(&self.writer.shared.committed).as_deref().map(codec::decode_log_id).transpose()
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        for entry in entries {
            records.push(Record::Entry {
                index: position(entry.log_id.index),
                payload: codec::encode_entry(&entry)?,
            });
        }
        if let Some(committed) = lock(&self.writer.shared.committed).clone() {
            records.push(Record::Committed(committed));
        }
        // Readable on return (contract of append), on disk when the callback hears of it.
        lock(&self.writer.log).write(&records)?;
        let first = {
            let mut unsynced = lock(&self.writer.unsynced);
            unsynced.push(callback);
            unsynced.len() == 1
        };
        if !self.writer.shared.puts_off.load(Ordering::SeqCst) {
            return self.writer.sync();
        }
        if first {
            tokio::spawn(self.writer.clone().sync_later());
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.writer.write_now(&[Record::Truncated { after: last.map_or(0, |id| position(id.index)) }])
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let log_id = codec::encode_log_id(upto);
        self.writer.write_now(&[Record::Purged { upto: position(upto.index), log_id }])?;
        *lock(&self.writer.shared.purged) = Some(upto);
        Ok(())
    }
}

impl StoreReader {
    fn read(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let entries = self.reader.read(from, to, bytes_max)?;
        entries.into_iter().map(|(_, bytes)| codec::decode_entry(bytes)).collect()
    }
}

impl RaftLogReader<TypeConfig> for StoreReader {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range, &self.reader);
        // Must not stop early: callers take a short answer for the end of the log.
        if from >= to { Ok(Vec::new()) } else { self.read(from, to, usize::MAX) }
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(position(start), position(end), READ_BYTES_MAX)
    }

    /// Entries to be applied, read a few megabytes at a time: the default loads the whole range (trap 8).
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl futures::Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range, &self.reader);
        let reader = self.clone();
        let chunks = futures::stream::unfold(from, move |next| {
            let reader = reader.clone();
            async move {
                if next >= to {
                    return None;
                }
                match reader.read(next, to, READ_BYTES_MAX) {
                    Ok(entries) if entries.is_empty() => None,
                    Ok(entries) => {
                        let after = next + entries.len() as u64;
                        Some((entries.into_iter().map(Ok).collect(), after))
                    }
                    Err(error) => Some((vec![Err(error)], to)),
                }
            }
        });
        Box::pin(futures::StreamExt::flat_map(chunks, |chunk: Vec<io::Result<Entry>>| {
            futures::stream::iter(chunk)
        }))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.shared.vote()
    }
}

/// The range as positions `from..to`, cut to what the log has.
fn bounds(range: &impl RangeBounds<u64>, reader: &LogReader) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start + 1,
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (position(from).max(reader.first_index()), to.saturating_add(1).min(reader.last_index() + 1))
}
