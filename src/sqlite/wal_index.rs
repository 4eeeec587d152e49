//! The wal-index: the shared memory (`-shm`) through which all connections of a WAL database agree.
//!
//! Layout (native byte order), blocks of 32768 bytes:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 48 | header: version, unused, change counter, isInit u8, bigEndCksum u8, page size u16 (1 = 65536), mxFrame, nPage, frame checksum 2 x u32, salts 8 raw bytes, header checksum 2 x u32 |
//! | 48 | 48 | second copy, written first and read last |
//! | 96 | 4 | nBackfill |
//! | 100 | 20 | read marks 0 to 4 |
//! | 120 | 8 | lock bytes, never read or written |
//! | 128 | 4 | nBackfillAttempted |
//! | 136 | | page numbers of frames 1 to 4062 (later blocks: 4096 from offset 0) |
//! | 16384 | 16384 | hash table of 8192 u16 slots |
//!
//! Source: <https://www.sqlite.org/walformat.html>, section 2; `wal.c`.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use nix::sys::mman::{MapFlags, ProtFlags, mlock, mmap, munmap};

use super::wal::{FrameChecksum, Salt};
use crate::types::{PageCount, PageSize, Pgno};

/// Bytes of one block of the wal-index.
pub const BLOCK_BYTES: usize = 32768;
/// A read mark that stands for no frame.
pub const READ_MARK_UNUSED: u32 = 0xffff_ffff;
/// Read slots of a wal-index.
pub const READ_SLOTS: usize = 5;

const VERSION: u32 = 3_007_000;
/// A version of which every SQLite says that it cannot open the log.
const VERSION_REFUSED: u32 = 0;
const HEADER_WORDS: usize = 12;
const BACKFILL_WORD: usize = 24;
const READ_MARK_WORD: usize = 25;
const BACKFILL_ATTEMPTED_WORD: usize = 32;
const FIRST_PGNO_WORD: usize = 34;
const FRAMES_IN_FIRST_BLOCK: u32 = 4062;
const FRAMES_IN_BLOCK: u32 = 4096;
const HASH_SLOTS: usize = 8192;
const HASH_OFFSET: usize = 16384;

/// A consistent copy of the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexHeader {
    /// Counts transactions since the index was built.
    pub change: u32,
    /// Whether frame checksums are computed big-endian.
    pub big_endian_checksum: bool,
    /// Page size in bytes.
    pub page_size: PageSize,
    /// The last published frame; 0 where the log is empty.
    pub max_frame: u32,
    /// Size of the database in pages after that frame.
    pub pages: PageCount,
    /// Checksum of that frame.
    pub frame_checksum: FrameChecksum,
    /// Salts of the log.
    pub salt: Salt,
}

/// What is in the wal-index's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderRead {
    /// A header, the same in both copies.
    Valid(IndexHeader),
    /// Never initialised: the log must be recovered.
    Empty,
    /// A writer is at it, or it is damaged: try again, or recover.
    Torn,
}

/// How the shared memory is reached.
///
/// A mapping of a file that is cached by FUSE is written back to this process when it is unmapped, which a process that
/// is being killed can no longer answer: it would never end. There, reads and writes go through the page cache that the
/// applications map, word by word.
enum Block {
    Mapped(NonNull<u32>),
    File(u64),
}

// SAFETY: a mapped block is shared memory that is only accessed through atomics, so any thread may use it.
unsafe impl Send for Block {}

impl Block {
    fn map(shm: &File, block: usize) -> io::Result<Self> {
        let length = NonZeroUsize::new(BLOCK_BYTES).expect("a block has bytes");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let offset = (block * BLOCK_BYTES) as i64;
        // SAFETY: a new shared mapping at an address the kernel chooses aliases nothing of ours; the caller has
        // checked that the file covers the block, and nobody truncates it, see `WalIndex`.
        let address = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, shm, offset) }?;
        // SAFETY: the range was just mapped. Locking keeps page faults off the commit path; failing is harmless.
        let _ = unsafe { mlock(address, BLOCK_BYTES) };
        Ok(Self::Mapped(address.cast()))
    }

    fn load(&self, shm: &File, index: usize) -> u32 {
        assert!(index < BLOCK_BYTES / 4, "word inside the block");
        match self {
            // SAFETY: inside the mapping by the assertion, aligned because mappings are page-aligned, and shared
            // memory that other processes change may only be seen as atomics.
            Self::Mapped(start) => {
                unsafe { AtomicU32::from_ptr(start.as_ptr().add(index)) }.load(Ordering::SeqCst)
            }
            Self::File(start) => {
                let mut bytes = [0; 4];
                // What cannot be read is zero, which is no valid header, page or slot.
                let _ = shm.read_exact_at(&mut bytes, start + 4 * index as u64);
                u32::from_ne_bytes(bytes)
            }
        }
    }

    fn store(&self, shm: &File, index: usize, value: u32) {
        assert!(index < BLOCK_BYTES / 4, "word inside the block");
        match self {
            // SAFETY: as in `load`.
            Self::Mapped(start) => {
                unsafe { AtomicU32::from_ptr(start.as_ptr().add(index)) }.store(value, Ordering::SeqCst);
            }
            Self::File(start) => written(shm.write_all_at(&value.to_ne_bytes(), start + 4 * index as u64)),
        }
    }

    /// Stores neighbouring words; in one call where a call is what it takes.
    fn store_all(&self, shm: &File, first: usize, words: &[u32]) {
        match self {
            Self::Mapped(_) => {
                words.iter().enumerate().for_each(|(i, word)| self.store(shm, first + i, *word));
            }
            Self::File(start) => {
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                written(shm.write_all_at(&bytes, start + 4 * first as u64));
            }
        }
    }

    fn load_slot(&self, shm: &File, index: usize) -> u16 {
        assert!(index < HASH_SLOTS, "slot inside the hash table");
        match self {
            // SAFETY: as in `load`: 16384 + 2 * 8191 lies inside the block and is even.
            Self::Mapped(start) => {
                unsafe { AtomicU16::from_ptr(start.as_ptr().cast::<u16>().add(HASH_OFFSET / 2 + index)) }
                    .load(Ordering::SeqCst)
            }
            Self::File(start) => {
                let mut bytes = [0; 2];
                // As in `load`.
                let _ = shm.read_exact_at(&mut bytes, start + (HASH_OFFSET + 2 * index) as u64);
                u16::from_ne_bytes(bytes)
            }
        }
    }

    fn store_slot(&self, shm: &File, index: usize, value: u16) {
        assert!(index < HASH_SLOTS, "slot inside the hash table");
        match self {
            // SAFETY: as in `load_slot`.
            Self::Mapped(start) => {
                unsafe { AtomicU16::from_ptr(start.as_ptr().cast::<u16>().add(HASH_OFFSET / 2 + index)) }
                    .store(value, Ordering::SeqCst);
            }
            Self::File(start) => {
                written(shm.write_all_at(&value.to_ne_bytes(), start + (HASH_OFFSET + 2 * index) as u64));
            }
        }
    }
}

/// The page cache of the file is memory: a failed write means that the mount is going down.
fn written(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "cannot write the wal-index");
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Self::Mapped(start) = self {
            // SAFETY: exactly the range `map` got, and no reference into it outlives `self`.
            let _ = unsafe { munmap(start.cast(), BLOCK_BYTES) };
        }
    }
}

/// The mapped wal-index of one database.
///
/// The file is opened through the mount, so that its pages are the applications' pages. Nobody truncates it under the
/// mapping: the owner holds the DMS lock, or answers the request to truncate it with [`WalIndex::clear`].
pub struct WalIndex {
    shm: File,
    backing: File,
    blocks: Vec<Block>,
    mapped: bool,
}

impl WalIndex {
    /// Maps the first block, extending the file where it is shorter.
    ///
    /// `shm` is the file seen through the mount, `backing` the same file in the data directory (for its size);
    /// `mapped` says that the file is passed through, so that mapping it maps the backing file.
    ///
    /// # Errors
    /// Where the file cannot be extended or mapped.
    pub fn map(shm: File, backing: File, mapped: bool) -> io::Result<Self> {
        let mut index = Self { shm, backing, blocks: Vec::new(), mapped };
        index.ensure_block(0)?;
        Ok(index)
    }

    /// Whether the file is mapped, so that it must not get shorter.
    pub fn is_mapped(&self) -> bool {
        self.mapped
    }

    /// Empties both headers and what checkpoints and readers left: whoever opens the log next builds the index anew.
    pub fn clear(&self) {
        self.first().store_all(&self.shm, 0, &[0; FIRST_PGNO_WORD]);
    }

    /// The mapped file as seen through the mount, for locks.
    pub fn shm(&self) -> &File {
        &self.shm
    }

    fn ensure_block(&mut self, block: usize) -> io::Result<()> {
        while self.blocks.len() <= block {
            let next = self.blocks.len();
            let end = ((next + 1) * BLOCK_BYTES) as u64;
            if self.backing.metadata()?.len() < end {
                // One byte per memory page, so that the file has blocks and a full disk fails here, not as SIGBUS.
                for page in 0..BLOCK_BYTES / 4096 {
                    let offset = (next * BLOCK_BYTES + page * 4096 + 4095) as u64;
                    if self.backing.metadata()?.len() <= offset {
                        self.shm.write_at(&[0], offset)?;
                    }
                }
            }
            self.blocks.push(if self.mapped {
                Block::map(&self.shm, next)?
            } else {
                Block::File((next * BLOCK_BYTES) as u64)
            });
        }
        Ok(())
    }

    fn first(&self) -> &Block {
        &self.blocks[0]
    }

    /// Reads both header copies; takes only what is the same in both and has a right checksum.
    pub fn header(&self) -> HeaderRead {
        let copy = |start: usize| -> [u32; HEADER_WORDS] {
            std::array::from_fn(|i| self.first().load(&self.shm, start + i))
        };
        let one = copy(0);
        fence(Ordering::SeqCst);
        let two = copy(HEADER_WORDS);
        if one != two {
            return HeaderRead::Torn;
        }
        let bytes = words_to_bytes(&one);
        if bytes[12] == 0 {
            return HeaderRead::Empty;
        }
        if header_checksum(&one) != [one[10], one[11]] {
            return HeaderRead::Torn;
        }
        let raw_size = u32::from(u16::from_ne_bytes([bytes[14], bytes[15]]));
        let page_size = match PageSize::new(if raw_size == 1 { 65536 } else { raw_size }) {
            Ok(page_size) => page_size,
            // SQLite recovers an empty log without learning a page size.
            Err(_) if one[4] == 0 => PageSize::DEFAULT,
            Err(_) => return HeaderRead::Torn,
        };
        HeaderRead::Valid(IndexHeader {
            change: one[2],
            big_endian_checksum: bytes[13] != 0,
            page_size,
            max_frame: one[4],
            pages: PageCount::new(one[5]),
            frame_checksum: FrameChecksum(one[6], one[7]),
            salt: Salt(u32::from_be_bytes(one[8].to_ne_bytes()), u32::from_be_bytes(one[9].to_ne_bytes())),
        })
    }

    /// Publishes a header: from here on readers see its last frame. Only while holding the write lock.
    pub fn publish(&self, header: &IndexHeader) {
        self.publish_version(header, VERSION);
    }

    fn publish_version(&self, header: &IndexHeader, version: u32) {
        let size = if header.page_size.get() == 65536 { 1 } else { header.page_size.get() as u16 };
        let mut words = [0u32; HEADER_WORDS];
        words[0] = version;
        words[2] = header.change;
        let size_bytes = size.to_ne_bytes();
        words[3] =
            u32::from_ne_bytes([1, u8::from(header.big_endian_checksum), size_bytes[0], size_bytes[1]]);
        words[4] = header.max_frame;
        words[5] = header.pages.get();
        words[6] = header.frame_checksum.0;
        words[7] = header.frame_checksum.1;
        words[8] = u32::from_ne_bytes(header.salt.0.to_be_bytes());
        words[9] = u32::from_ne_bytes(header.salt.1.to_be_bytes());
        [words[10], words[11]] = header_checksum(&words);
        for (start, order) in [(HEADER_WORDS, Ordering::SeqCst), (0, Ordering::SeqCst)] {
            fence(order);
            self.first().store_all(&self.shm, start, &words);
            fence(order);
        }
    }

    /// Gives the header a version that SQLite does not know: whoever begins a transaction then fails with
    /// SQLITE_CANTOPEN, also a connection that heeds no lock of the wal-index. What else the header says stays.
    pub fn refuse_readers(&self) {
        self.set_version(VERSION, VERSION_REFUSED);
    }

    /// Takes back [`refuse_readers`](Self::refuse_readers).
    pub fn admit_readers(&self) {
        self.set_version(VERSION_REFUSED, VERSION);
    }

    fn set_version(&self, from: u32, to: u32) {
        if self.first().load(&self.shm, 0) == from
            && let HeaderRead::Valid(header) = self.header()
        {
            self.publish_version(&header, to);
        }
    }

    /// Frames already copied into the database file.
    pub fn backfilled(&self) -> u32 {
        self.first().load(&self.shm, BACKFILL_WORD)
    }

    /// Notes that frames up to `frame` are in the database file. Only while holding the checkpoint lock.
    pub fn set_backfilled(&self, frame: u32) {
        self.first().store(&self.shm, BACKFILL_WORD, frame);
    }

    /// Notes that a checkpoint up to `frame` begins.
    pub fn set_backfill_attempted(&self, frame: u32) {
        self.first().store(&self.shm, BACKFILL_ATTEMPTED_WORD, frame);
    }

    /// The frame up to which readers on `slot` see the log.
    pub fn read_mark(&self, slot: usize) -> u32 {
        assert!(slot < READ_SLOTS, "a wal-index has five read slots");
        self.first().load(&self.shm, READ_MARK_WORD + slot)
    }

    /// Sets a read mark. Only while holding the slot's lock exclusively.
    pub fn set_read_mark(&self, slot: usize, frame: u32) {
        assert!(slot < READ_SLOTS, "a wal-index has five read slots");
        self.first().store(&self.shm, READ_MARK_WORD + slot, frame);
    }

    /// Resets backfill state and read marks for a log that begins anew.
    pub fn reset_checkpoint_info(&self) {
        self.set_backfilled(0);
        self.set_backfill_attempted(0);
        self.set_read_mark(0, 0);
        self.set_read_mark(1, 0);
        (2..READ_SLOTS).for_each(|slot| self.set_read_mark(slot, READ_MARK_UNUSED));
    }

    /// The page that a published frame holds, or `None` where the index has none.
    ///
    /// # Errors
    /// Where the index cannot be mapped that far.
    pub fn page_of(&mut self, frame: u32) -> io::Result<Option<Pgno>> {
        let (block, slot) = place(frame);
        self.ensure_block(block)?;
        Ok(Pgno::new(self.blocks[block].load(&self.shm, pgno_word(block, slot))))
    }

    /// Enters a frame, so that readers find it once a header beyond it is published. Only while holding the
    /// write lock, in ascending order.
    ///
    /// # Errors
    /// Where the index cannot grow, or its hash table is damaged.
    pub fn enter(&mut self, frame: u32, pgno: Pgno, published: u32) -> io::Result<()> {
        let (block_number, slot) = place(frame);
        self.ensure_block(block_number)?;
        let block = &self.blocks[block_number];
        if slot == 0 {
            let first = pgno_word(block_number, 0);
            block.store_all(&self.shm, first, &vec![0; BLOCK_BYTES / 4 - first]);
        } else if block.load(&self.shm, pgno_word(block_number, slot)) != 0 {
            self.forget_after(published);
        }
        let block = &self.blocks[block_number];
        let mut key = hash(pgno);
        for _ in 0..HASH_SLOTS {
            if block.load_slot(&self.shm, key) == 0 {
                block.store(&self.shm, pgno_word(block_number, slot), pgno.get());
                block.store_slot(&self.shm, key, slot as u16 + 1);
                return Ok(());
            }
            key = (key + 1) % HASH_SLOTS;
        }
        Err(io::Error::other("wal-index hash table is full: it is damaged"))
    }

    /// Removes what a writer left behind the published frames in the block of the last of them.
    fn forget_after(&self, published: u32) {
        if published == 0 {
            return;
        }
        let (block_number, last) = place(published);
        let Some(block) = self.blocks.get(block_number) else { return };
        for key in 0..HASH_SLOTS {
            if usize::from(block.load_slot(&self.shm, key)) > last + 1 {
                block.store_slot(&self.shm, key, 0);
            }
        }
        let first = pgno_word(block_number, last + 1);
        block.store_all(&self.shm, first, &vec![0; HASH_OFFSET / 4 - first]);
    }
}

impl std::fmt::Debug for WalIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WalIndex").field("header", &self.header()).finish_non_exhaustive()
    }
}

fn words_to_bytes(words: &[u32; HEADER_WORDS]) -> [u8; HEADER_WORDS * 4] {
    let mut bytes = [0; HEADER_WORDS * 4];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// SQLite's checksum over the first 40 bytes, in native byte order.
fn header_checksum(words: &[u32; HEADER_WORDS]) -> [u32; 2] {
    let (mut one, mut two) = (0u32, 0u32);
    for pair in words[..10].chunks_exact(2) {
        one = one.wrapping_add(pair[0]).wrapping_add(two);
        two = two.wrapping_add(pair[1]).wrapping_add(one);
    }
    [one, two]
}

fn hash(pgno: Pgno) -> usize {
    (pgno.get().wrapping_mul(383) as usize) & (HASH_SLOTS - 1)
}

/// Block of a frame, and its place there from 0.
fn place(frame: u32) -> (usize, usize) {
    assert!(frame > 0, "frames count from 1");
    if frame <= FRAMES_IN_FIRST_BLOCK {
        (0, frame as usize - 1)
    } else {
        let beyond = frame - FRAMES_IN_FIRST_BLOCK - 1;
        (1 + (beyond / FRAMES_IN_BLOCK) as usize, (beyond % FRAMES_IN_BLOCK) as usize)
    }
}

fn pgno_word(block: usize, slot: usize) -> usize {
    if block == 0 { FIRST_PGNO_WORD + slot } else { slot }
}
