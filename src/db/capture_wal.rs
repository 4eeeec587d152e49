//! Capture of a WAL database: at fsync by the chain of frames, otherwise by what the wal-index has published.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::attach::{Captured, WalAttachment};
use super::batch::{Batch, Frame};
use super::commit::{InFlight, Source};
use super::database::{Database, State};
use super::page_checksums::WalPoint;
use super::view::StateLock;
use super::wal_chain::{Chain, ReadFrames, Run};
use super::{DbError, Done, FileKind, capture_time};
use crate::io::{fault, log_rate_limit, read_or_zero};
use crate::sqlite::wal::{
    FRAME_HEADER_SIZE, FrameChecksum, FrameHeader, WAL_HEADER_SIZE, WalHeader, frame_offset,
};
use crate::sqlite::wal_index::{HeaderRead, IndexHeader};
use crate::types::{Access, PageCount, PageSize, Pgno};

/// What a look at the WAL found.
pub(super) enum Found {
    /// Nothing that is not captured.
    Nothing,
    /// Frames behind the captured ones are not published; their writer may be about to.
    Unpublished,
    /// A change set, in in_flight now.
    Captured,
    /// Another change set is in in_flight.
    Busy,
    /// Nothing: its writers sync, and are captured there.
    Synced,
}

impl Database {
    /// `fsync(-wal)`: captures what is new and answers once it is quorum-durable.
    pub fn wal_synced(self: &Arc<Self>, done: Done) {
        match self.lock_at_once() {
            Some(state) if state.open.is_wal() => self.capture_synced(state, Some(done)),
            Some(state) => self.skip_capture(state, Some(done)),
            None => self.off_thread(done, |database, done| database.capture_wal(Some(done))),
        }
    }

    /// A write to `-wal` that reaches the daemon (no passthrough).
    ///
    /// The answer is `NotPrimary` where this node may not write, or `Io`. Waits for the lock.
    pub fn wal_write(self: &Arc<Self>, offset: u64, data: &[u8], done: Done) {
        match self.has_exclusive_client() {
            true => self.exclusive_wal_write(offset, data, done),
            false => done(self.write_wal(offset, data)),
        }
    }

    fn write_wal(&self, offset: u64, data: &[u8]) -> Result<(), DbError> {
        if !self.may_commit() {
            return Err(DbError::NotPrimary(self.name().clone()));
        }
        let fail = |source| self.io_error("writing the WAL", source);
        self.shared.limits.check_space().map_err(fail)?;
        fault::point("wal_app_write").map_err(fail)?;
        self.open_backing(FileKind::Wal)?.write_all_at(data, offset).map_err(fail)
    }

    /// `-wal` is truncated: by a TRUNCATE checkpoint, or to journal_size_limit when it begins anew. Either has all
    /// frames in the database file already, and those only get there captured.
    pub fn wal_truncated(self: &Arc<Self>, size: u64, done: Done) {
        if self.has_exclusive_client() {
            return done(self.exclusive_wal_truncated(size));
        }
        let fail = |source| self.io_error("truncating the WAL", source);
        done(self.open_backing(FileKind::Wal).and_then(|file| file.set_len(size).map_err(fail)));
    }

    /// Captures everything valid behind the captured part; answers when it is durable. Waits for the lock.
    pub(super) fn capture_wal(self: &Arc<Self>, done: Option<Done>) {
        let state = self.lock();
        if state.open.is_wal() {
            self.capture_synced(state, done);
        } else {
            self.skip_capture(state, done);
        }
    }

    /// Answers where the daemon takes no part in the log: there is nothing to capture, unless somebody has written it all
    /// the same, or the node has let go of what applications still have open.
    fn skip_capture(&self, state: StateLock<'_>, done: Option<Done>) {
        let left_behind = state.open.is_left_behind();
        drop(state);
        let answer = if left_behind {
            Err(self.unavailable("the node is ending"))
        } else if self.log_has_frames() {
            Err(self.invalid(
                "its -wal was written by a program that takes no part in the wal-index, so nothing of it is replicated; use skein db import",
            ))
        } else {
            Ok(())
        };
        done.into_iter().for_each(|done| done(answer.as_ref().map_err(DbError::duplicate).copied()));
    }

    fn log_has_frames(&self) -> bool {
        let mut head = [0; WAL_HEADER_SIZE + FRAME_HEADER_SIZE];
        File::open(self.files().path(FileKind::Wal))
            .and_then(|log| log.read_exact_at(&mut head, 0))
            .is_ok_and(|()| WalHeader::parse(&head).is_ok())
    }

    /// Captures what applications have committed here by now; answers once it is quorum-durable, and has a TXID. Waits
    /// for the lock.
    pub fn capture_committed(self: &Arc<Self>, done: Done) {
        let state = self.lock();
        if !state.open.is_wal() || self.access() != Access::Write {
            drop(state);
            return done(Ok(()));
        }
        self.capture_with(state, Some(done), |database, state| {
            let wal = state.open.wal().expect("just checked");
            match wal.index.header() {
                HeaderRead::Valid(_) => database.published_run(state),
                // Somebody publishes right now, perhaps on top of what is asked for.
                _ => database.chain(state),
            }
        });
    }

    pub(super) fn capture_synced(self: &Arc<Self>, state: StateLock<'_>, done: Option<Done>) {
        self.capture_with(state, done, Self::chain);
    }

    fn capture_with(
        self: &Arc<Self>,
        mut state: StateLock<'_>,
        done: Option<Done>,
        look: impl FnOnce(&Self, &mut State) -> Result<Option<Run>, DbError>,
    ) {
        if state.outlasting {
            drop(state);
            return done.into_iter().for_each(|done| done(Err(self.outlasting())));
        }
        if state.in_flight.is_some() || state.exclusive {
            // One change set of a database at a time: whoever comes now is captured when it has landed.
            state.queued.extend(done);
            return;
        }
        match self.capture_rewritten(&mut state) {
            Ok(None) => {}
            Ok(Some(change)) => {
                state.queued.extend(done);
                drop(state);
                return self.propose(change);
            }
            Err(error) => {
                drop(state);
                return done.into_iter().for_each(|done| done(Err(error.duplicate())));
            }
        }
        capture_time::begin();
        let run = match self.look_behind(&mut state, look) {
            Ok(run) => run,
            Err(error) => {
                drop(state);
                return done.into_iter().for_each(|done| done(Err(error.duplicate())));
            }
        };
        let Some(run) = run else {
            drop(state);
            return done.into_iter().for_each(|done| done(Ok(())));
        };
        self.take_off(state, run, done);
    }

    /// What is behind the captured part, for somebody who waits for it.
    fn look_behind(
        self: &Arc<Self>,
        state: &mut State,
        look: impl FnOnce(&Self, &mut State) -> Result<Option<Run>, DbError>,
    ) -> Result<Option<Run>, DbError> {
        match self.prepare(state) {
            // A checkpoint where nothing was written since: it moves only what is history.
            Err(DbError::NotPrimary(_)) if self.is_all_captured(state)? => Ok(None),
            prepared => prepared.and_then(|()| look(self, state)),
        }
    }

    /// Whether no commit is in the log behind the captured part; on a node that may not write.
    fn is_all_captured(&self, state: &State) -> Result<bool, DbError> {
        let fail = |source| self.io_error("reading the WAL", source);
        let Some(wal) = state.open.wal() else { return Ok(true) };
        let Some(header) = wal.wal_header() else { return Ok(true) };
        let mut scan = Chain::new(wal, header, header.page_size);
        while scan.step(&wal.backing_wal).map_err(fail)? {}
        Ok(scan.finish().is_none())
    }

    /// Captures what the wal-index has published; called by the watcher of logs.
    pub(super) fn capture_tail(self: &Arc<Self>) -> Found {
        let Some(mut state) = self.try_lock() else { return Found::Busy };
        let held_back = self.hold_back(&mut state);
        if state.in_flight.is_some() || state.exclusive {
            return Found::Busy;
        }
        if self.access() != Access::Write || !state.open.is_wal() {
            return Found::Nothing;
        }
        self.publish_for_dead_writer(&mut state);
        if let Some(Err(error)) = state.open.wal_mut().map(WalAttachment::pass_dms_on) {
            tracing::warn!(db = %self.name(), %error, "cannot let go of a lock of the wal-index");
        }
        if let Ok(Some(change)) = self.capture_rewritten(&mut state) {
            drop(state);
            self.propose(change);
            return Found::Captured;
        }
        capture_time::begin();
        match self.prepare(&mut state).and_then(|()| self.published_run(&mut state)) {
            Ok(Some(run)) => {
                self.take_off(state, run, None);
                Found::Captured
            }
            // Whoever waits is let go on by a later look.
            Ok(None) | Err(_) if held_back => Found::Synced,
            Ok(None) => state.open.wal_mut().map_or(Found::Nothing, |wal| {
                if std::mem::take(&mut wal.synced) {
                    Found::Synced
                } else if wal.has_unpublished() {
                    Found::Unpublished
                } else {
                    Found::Nothing
                }
            }),
            Err(error) => {
                if let Some(suppressed) = log_rate_limit::due((self.name(), error.to_string())) {
                    tracing::warn!(db = %self.name(), %error, suppressed, "cannot capture");
                }
                Found::Nothing
            }
        }
    }

    /// Encodes a run and proposes it.
    fn take_off(self: &Arc<Self>, mut state: StateLock<'_>, run: Run, done: Option<Done>) {
        // What is published is a transaction already.
        let space = if run.published { Ok(()) } else { self.shared.limits.check_space() };
        let space = space.and_then(|()| self.reserve_checksums(&mut state, run.pages));
        match space.and_then(|()| self.encode_run(&mut state, &run)) {
            Ok(batch) => {
                let wal = state.open.wal().expect("a run comes from an attachment");
                let end = Captured {
                    salt: wal.captured.salt,
                    frame: run.last,
                    checksum: run.end_checksum,
                    change: run.change,
                    unpublished: (!run.published).then_some((wal.captured.frame + 1, run.first_checksum)),
                };
                if let Some(wal) = state.open.wal_mut() {
                    wal.rewritable.captured(run.frames.keys());
                }
                let change = batch.change.clone();
                let source = Source::Wal { end, published: run.published };
                state.in_flight = Some(InFlight { batch, waiters: done.into_iter().collect(), source });
                drop(state);
                capture_time::end();
                self.propose(change);
            }
            Err(source) => {
                let error = self.io_error("capturing a transaction", source);
                if !run.published
                    && let Some(wal) = state.open.wal_mut()
                    && let Err(error) = wal.invalidate_frame(run.last, run.page_size)
                {
                    state.service.fail(format!("a commit that failed cannot be taken back: {error}"));
                }
                drop(state);
                if let Some(suppressed) = log_rate_limit::due(error.to_string()) {
                    tracing::warn!(%error, suppressed, "a transaction was not captured");
                }
                done.into_iter().for_each(|done| done(Err(error.duplicate())));
            }
        }
    }

    fn encode_run(&self, state: &mut State, run: &Run) -> io::Result<Batch> {
        let wal = state.open.wal().ok_or_else(|| io::Error::other("not attached"))?;
        fault::point("capture_encode")?;
        let before = WalPoint { salt: wal.captured.salt, frame: wal.captured.frame };
        let frame = Frame {
            commits: run.commits,
            wal: Some((before, run.last)),
            ..Frame::on(self.name(), state, run.page_size, run.pages)
        };
        let lock_page = Pgno::lock_page(run.page_size);
        let mut pages: BTreeSet<Pgno> = run
            .frames
            .keys()
            .copied()
            .filter(|pgno| run.pages.contains(*pgno) && *pgno != lock_page)
            .collect();
        let growth = frame.untouched_growth(&pages);
        let stale =
            if growth.is_empty() { BTreeMap::new() } else { wal_frames_of(state.open.wal_mut(), &growth)? };
        pages.extend(growth);
        let wal = state.open.wal().ok_or_else(|| io::Error::other("not attached"))?;
        frame.encode(&self.shared, &state.checksums, pages.into_iter(), |pgno, page| {
            match run.frames.get(&pgno).or_else(|| stale.get(&pgno)) {
                Some(frame) => match run.read.page(*frame) {
                    Some(read) => {
                        page.copy_from_slice(read);
                        Ok(())
                    }
                    None => wal.read_frame(*frame, page),
                },
                None => read_or_zero(&wal.backing_database, pgno.offset(run.page_size), page),
            }
        })
    }

    /// Notices a WAL that begins anew, and frames that somebody overran, before anything is captured.
    fn prepare(self: &Arc<Self>, state: &mut State) -> Result<(), DbError> {
        if let Some(why) = state.service.failure() {
            return Err(self.corrupt(why));
        }
        if !self.may_commit() {
            return Err(DbError::NotPrimary(self.name().clone()));
        }
        if state.undecided.is_some() {
            return Err(self.unavailable("the fate of an earlier transaction is unknown"));
        }
        let wal = state.open.wal_mut().expect("callers have checked");
        if let Some(header) = wal.wal_header()
            && header.salt != wal.captured.salt
        {
            wal.captured = Captured {
                salt: header.salt,
                frame: 0,
                checksum: header.checksum,
                change: wal.captured.change,
                unpublished: None,
            };
        }
        match wal.mend_invalidated().and_then(|()| wal.is_overrun()) {
            Ok(false) => Ok(()),
            Ok(true) => self.overrun(state),
            Err(source) => Err(self.io_error("reading the WAL", source)),
        }
    }

    /// The frames whose checksums continue the captured part, up to the last commit among them.
    fn chain(&self, state: &mut State) -> Result<Option<Run>, DbError> {
        let page_size = state.page_size;
        let wal = state.open.wal_mut().expect("callers have checked");
        let fail = |source| self.io_error("reading the WAL", source);
        let Some(header) = wal.wal_header() else { return Ok(None) };
        let page_size = if state.pages == PageCount::ZERO { header.page_size } else { page_size };
        if header.page_size != page_size {
            return Err(
                self.corrupt(format!("its WAL has pages of {} bytes, not {page_size}", header.page_size))
            );
        }
        fault::point("capture_read").map_err(fail)?;
        let mut scan = Chain::new(wal, header, page_size);
        while scan.step(&wal.backing_wal).map_err(fail)? {}
        let Some(mut run) = scan.finish() else {
            if wal.writer_lost_its_commit().map_err(fail)? {
                return Err(
                    self.unavailable("the transaction was taken back when somebody else's sync of it failed")
                );
            }
            return Ok(None);
        };
        wal.invalidated = None;
        if let HeaderRead::Valid(published) = wal.index.header() {
            run.published = published.salt == header.salt && published.max_frame >= run.last;
            run.change = if run.published {
                published.change
            } else {
                published.change.wrapping_add(run.commits as u32)
            };
        }
        Ok(Some(run))
    }

    /// The frames the wal-index has published behind the captured part.
    fn published_run(&self, state: &mut State) -> Result<Option<Run>, DbError> {
        let wal = state.open.wal_mut().expect("callers have checked");
        let HeaderRead::Valid(header) = wal.index.header() else { return Ok(None) };
        if header.salt != wal.captured.salt || header.max_frame <= wal.captured.frame {
            return Ok(None);
        }
        self.run_of_index(wal, &header).map_err(|source| self.io_error("reading the wal-index", source))
    }

    fn run_of_index(&self, wal: &mut WalAttachment, header: &IndexHeader) -> io::Result<Option<Run>> {
        fault::point("capture_index")?;
        let first = wal.captured.frame + 1;
        let mut frames = BTreeMap::new();
        for frame in first..=header.max_frame {
            let pgno = wal.index.page_of(frame)?;
            frames.insert(
                pgno.ok_or_else(|| io::Error::other(format!("frame {frame} has no page in the wal-index")))?,
                frame,
            );
        }
        let count = u64::from(header.max_frame - wal.captured.frame);
        let commits = u64::from(header.change.wrapping_sub(wal.captured.change)).clamp(1, count);
        Ok(Some(Run {
            last: header.max_frame,
            end_checksum: header.frame_checksum,
            first_checksum: FrameChecksum(0, 0),
            change: header.change,
            commits,
            pages: header.pages,
            page_size: header.page_size,
            frames,
            read: ReadFrames::default(),
            published: true,
        }))
    }
}

impl WalAttachment {
    /// Reads the page of a frame.
    pub fn read_frame(&self, frame: u32, page: &mut [u8]) -> io::Result<()> {
        let page_size = PageSize::new(page.len() as u32).map_err(io::Error::other)?;
        self.backing_wal.read_exact_at(page, frame_offset(frame, page_size) + FRAME_HEADER_SIZE as u64)
    }

    /// The checksum a frame carries now.
    pub fn checksum_of(&self, frame: u32, page_size: PageSize) -> io::Result<Option<FrameChecksum>> {
        Ok(self.frame_header(frame, page_size)?.map(|header| header.checksum))
    }

    /// The header of a frame of the captured incarnation of the log.
    pub fn frame_header(&self, frame: u32, page_size: PageSize) -> io::Result<Option<FrameHeader>> {
        let mut raw = [0; FRAME_HEADER_SIZE];
        match self.backing_wal.read_exact_at(&mut raw, frame_offset(frame, page_size)) {
            Ok(()) => Ok(FrameHeader::parse(&raw).filter(|header| header.salt == self.captured.salt)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the log goes on behind what is captured and published.
    fn has_unpublished(&self) -> bool {
        if self.captured.unpublished.is_some() {
            return true;
        }
        let HeaderRead::Valid(header) = self.index.header() else { return false };
        matches!(
            self.checksum_of(header.max_frame.max(self.captured.frame) + 1, header.page_size),
            Ok(Some(_))
        )
    }
}

/// The last published frame of each of `pages`, older than the run: what a checkpoint would copy.
fn wal_frames_of(wal: Option<&mut WalAttachment>, pages: &[Pgno]) -> io::Result<BTreeMap<Pgno, u32>> {
    let Some(wal) = wal else { return Ok(BTreeMap::new()) };
    let wanted: BTreeSet<Pgno> = pages.iter().copied().collect();
    let HeaderRead::Valid(header) = wal.index.header() else { return Ok(BTreeMap::new()) };
    let mut found = BTreeMap::new();
    for frame in 1..=header.max_frame.min(wal.captured.frame) {
        if let Some(pgno) = wal.index.page_of(frame)?
            && wanted.contains(&pgno)
        {
            found.insert(pgno, frame);
        }
    }
    Ok(found)
}
