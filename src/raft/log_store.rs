//! openraft's log storage over the segment log.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};

use super::codec;
use super::segment_log::{LogError, LogOptions, LogReader, Record, SegmentLog};
use super::types::{Entry, LogId, TypeConfig, Vote, position};

/// Bytes of entries handed out at once; openraft's own limits count entries (trap 8).
const READ_BYTES_MAX: usize = 4 << 20;

/// The log as openraft writes it.
///
/// With one voter each append is written and synced where it is made: proposals that arrive meanwhile share the
/// next one, and no other thread has to wake up, which costs more than the sync's own time between CPUs. With more
/// voters a writer thread does it, so that replication does not wait for the local disk. The order of records is
/// the same either way: with the thread running, everything goes through its queue.
pub struct LogStore {
    log: Arc<Mutex<SegmentLog>>,
    reader: StoreReader,
    shared: Arc<StoreShared>,
    queue: Option<mpsc::Sender<Job>>,
}

/// What the handles of one store share.
#[derive(Debug, Default)]
pub struct StoreShared {
    threaded: AtomicBool,
    syncs: AtomicU64,
    vote: Mutex<Option<Bytes>>,
    committed: Mutex<Option<Bytes>>,
    purged: Mutex<Option<LogId>>,
}

impl StoreShared {
    /// Uses the writer thread from now on, or not.
    pub fn set_threaded(&self, threaded: bool) {
        self.threaded.store(threaded, Ordering::SeqCst);
    }

    /// Syncs of the log so far.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// The last entry given up.
    pub fn purged(&self) -> Option<LogId> {
        *lock(&self.purged)
    }
}

/// Reads entries for openraft.
#[derive(Clone)]
pub struct StoreReader {
    reader: LogReader,
    shared: Arc<StoreShared>,
}

enum Job {
    Write(Vec<Record>, IOFlushed<TypeConfig>),
    Barrier(mpsc::Sender<()>),
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
        let (log, recovered) = SegmentLog::open(options)?;
        let purged = recovered.purged.and_then(|(_, id)| codec::decode_log_id(&id).ok());
        let shared = Arc::new(StoreShared {
            vote: Mutex::new(recovered.vote),
            committed: Mutex::new(recovered.committed),
            purged: Mutex::new(purged),
            ..StoreShared::default()
        });
        let reader = StoreReader { reader: log.reader(), shared: shared.clone() };
        Ok(Self { log: Arc::new(Mutex::new(log)), reader, shared, queue: None })
    }

    /// What can be asked of the store while openraft owns it.
    pub fn shared(&self) -> Arc<StoreShared> {
        self.shared.clone()
    }

    /// Reads entries as bytes.
    pub fn entries(&self) -> LogReader {
        self.reader.reader.clone()
    }

    /// See [`SegmentLog::starved`].
    pub fn starved(&self) -> impl Fn() -> Option<String> + Send + Sync + use<> {
        lock(&self.log).starved()
    }

    /// Frees the segments of purged entries; to be called off openraft's task.
    pub fn recycler(&self) -> impl Fn() -> Result<(), LogError> + Send + Sync + 'static {
        let log = self.log.clone();
        move || lock(&log).recycle()
    }

    /// The queue of the writer thread, started on first use.
    fn queue(&mut self) -> io::Result<mpsc::Sender<Job>> {
        if let Some(queue) = &self.queue {
            return Ok(queue.clone());
        }
        let (sender, receiver) = mpsc::channel();
        let (log, shared) = (self.log.clone(), self.shared.clone());
        std::thread::Builder::new()
            .name("skein-log".into())
            .spawn(move || run_writer(&receiver, &log, &shared))?;
        self.queue = Some(sender.clone());
        Ok(sender)
    }

    /// Waits until the writer thread has done what it was given.
    fn drain(&self) {
        if let Some(queue) = &self.queue {
            let (sender, receiver) = mpsc::channel();
            if queue.send(Job::Barrier(sender)).is_ok() {
                // An error means that the thread has ended, and so has nothing left to do.
                let _ = receiver.recv();
            }
        }
    }

    /// Writes and syncs in this place, after everything queued.
    fn write_now(&self, record: Record) -> io::Result<()> {
        self.drain();
        let mut log = lock(&self.log);
        log.write(&[record])?;
        log.sync()?;
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn run_writer(jobs: &mpsc::Receiver<Job>, log: &Mutex<SegmentLog>, shared: &StoreShared) {
    while let Ok(first) = jobs.recv() {
        let (mut records, mut callbacks, mut barriers) = (Vec::new(), Vec::new(), Vec::new());
        for job in std::iter::once(first).chain(jobs.try_iter()) {
            match job {
                Job::Write(more, callback) => {
                    records.extend(more);
                    callbacks.push(callback);
                }
                Job::Barrier(sender) => barriers.push(sender),
            }
        }
        if !callbacks.is_empty() {
            let result = {
                let mut log = lock(log);
                log.write(&records).and_then(|()| log.sync())
            };
            shared.syncs.fetch_add(1, Ordering::Relaxed);
            for callback in callbacks {
                callback.io_completed(result.clone().map_err(io::Error::from));
            }
        }
        for barrier in barriers {
            // Who waits no longer needs no word.
            let _ = barrier.send(());
        }
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = StoreReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        self.drain();
        let last_purged_log_id = self.shared.purged();
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
        self.write_now(Record::Vote(bytes.clone()))?;
        *lock(&self.shared.vote) = Some(bytes);
        Ok(())
    }

    /// Written with the next sync: losing it costs a longer redo at start, nothing else.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(committed) = committed else { return Ok(()) };
        *lock(&self.shared.committed) = Some(codec::encode_log_id(committed));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        lock(&self.shared.committed).as_deref().map(codec::decode_log_id).transpose()
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
        if let Some(committed) = lock(&self.shared.committed).clone() {
            records.push(Record::Committed(committed));
        }
        if self.shared.threaded.load(Ordering::SeqCst) {
            // Readable on return (contract of append): written here, synced there. The lock keeps the order.
            let queue = self.queue()?;
            lock(&self.log).write(&records)?;
            let ended = |_| io::Error::other("the log's writer thread has ended");
            return queue.send(Job::Write(Vec::new(), callback)).map_err(ended);
        }
        self.drain();
        let result = {
            let mut log = lock(&self.log);
            log.write(&records).and_then(|()| log.sync())
        };
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(()) => {
                callback.io_completed(Ok(()));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.write_now(Record::Truncated { after: last.map_or(0, |id| position(id.index)) })
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.write_now(Record::Purged { upto: position(upto.index), log_id: codec::encode_log_id(upto) })?;
        *lock(&self.shared.purged) = Some(upto);
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
        lock(&self.shared.vote).as_deref().map(codec::decode_vote).transpose()
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
