//! A walk along the frames of a WAL whose checksums follow one another, and what it finds: a run of frames to capture.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use super::attach::WalAttachment;
use crate::io::read_up_to;
use crate::sqlite::wal::{FRAME_HEADER_SIZE, FrameChecksum, FrameHeader, WalHeader, frame_offset};
use crate::types::{PageCount, PageSize, Pgno};

/// A run of frames to capture.
pub(super) struct Run {
    /// Its last frame.
    pub last: u32,
    /// The checksum of that, from which the next frame's continues.
    pub end_checksum: FrameChecksum,
    /// The checksum of its first frame.
    pub first_checksum: FrameChecksum,
    /// The change counter of the wal-index with it.
    pub change: u32,
    /// How many transactions it is.
    pub commits: u64,
    /// Size of the database after it.
    pub pages: PageCount,
    /// Of the database.
    pub page_size: PageSize,
    /// Page to its last frame in the run.
    pub frames: BTreeMap<Pgno, u32>,
    /// Frames as they were read when their checksums were looked at.
    pub read: ReadFrames,
    /// Whether readers see it already.
    pub published: bool,
}

/// Consecutive frames in memory.
#[derive(Default)]
pub(super) struct ReadFrames {
    first: u32,
    frame_bytes: usize,
    bytes: Vec<u8>,
}

impl ReadFrames {
    /// The page of a frame, where it is among these.
    pub fn page(&self, frame: u32) -> Option<&[u8]> {
        let at = (frame.checked_sub(self.first)? as usize).checked_mul(self.frame_bytes)?;
        self.bytes.get(at + FRAME_HEADER_SIZE..at + self.frame_bytes)
    }
}

/// Bytes of the WAL read at once.
const READ_BYTES: usize = 256 * 1024;

/// A walk along frames whose checksums hold.
pub(super) struct Chain {
    header: WalHeader,
    page_size: PageSize,
    next: u32,
    checksum: FrameChecksum,
    first_checksum: Option<FrameChecksum>,
    pending: Vec<(Pgno, u32)>,
    frames: BTreeMap<Pgno, u32>,
    commit: Option<(u32, FrameChecksum, PageCount)>,
    commits: u64,
    buffer: Vec<u8>,
    /// The frame the buffer begins with.
    first_read: u32,
}

impl Chain {
    /// A walk that begins behind the captured part of a log with this header.
    pub fn new(wal: &WalAttachment, header: WalHeader, page_size: PageSize) -> Self {
        let captured = if header.salt == wal.captured.salt { wal.captured.frame } else { 0 };
        Self {
            header,
            page_size,
            next: captured + 1,
            checksum: if captured == 0 { header.checksum } else { wal.captured.checksum },
            first_checksum: None,
            pending: Vec::new(),
            frames: BTreeMap::new(),
            commit: None,
            commits: 0,
            buffer: Vec::new(),
            first_read: 0,
        }
    }

    /// Reads and walks one buffer; `false` at the end of the chain.
    pub fn step(&mut self, wal: &File) -> io::Result<bool> {
        let frame_bytes = FRAME_HEADER_SIZE + self.page_size.len();
        // A commit is a few frames: begin with a short read and grow.
        let want = (self.buffer.len() * 4).clamp(frame_bytes * 4, READ_BYTES.max(frame_bytes * 4));
        let count = want / frame_bytes;
        self.buffer.resize(count * frame_bytes, 0);
        self.first_read = self.next;
        let got = read_up_to(wal, &mut self.buffer, frame_offset(self.next, self.page_size))?;
        for bytes in self.buffer[..got].chunks_exact(frame_bytes) {
            let (raw, page) = bytes.split_at(FRAME_HEADER_SIZE);
            let raw: &[u8; FRAME_HEADER_SIZE] = raw.try_into().expect("split at the header's size");
            let Some(frame) = FrameHeader::parse(raw) else { return Ok(false) };
            if !frame.follows(&self.header, self.checksum, raw, page) {
                return Ok(false);
            }
            self.checksum = frame.checksum;
            self.first_checksum.get_or_insert(frame.checksum);
            self.pending.push((frame.pgno, self.next));
            if frame.commit != PageCount::ZERO {
                self.frames.extend(self.pending.drain(..));
                self.commit = Some((self.next, frame.checksum, frame.commit));
                self.commits += 1;
            }
            self.next += 1;
        }
        Ok(got == self.buffer.len())
    }

    /// The frames up to the last commit among them; `None` where there was no commit.
    pub fn finish(self) -> Option<Run> {
        let (last, end_checksum, pages) = self.commit?;
        Some(Run {
            last,
            end_checksum,
            first_checksum: self.first_checksum?,
            change: 0,
            commits: self.commits,
            pages,
            page_size: self.page_size,
            frames: self.frames,
            read: ReadFrames {
                first: self.first_read,
                frame_bytes: FRAME_HEADER_SIZE + self.page_size.len(),
                bytes: self.buffer,
            },
            published: false,
        })
    }
}
