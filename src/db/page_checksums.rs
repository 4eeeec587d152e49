//! Per-page checksums of a database, and the marker of what its file durably holds.
//!
//! File `pages`, little-endian, version 1:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 and 512 | 96 | two marker slots, written in turn: magic "SKEINPG1", version u32, page size u32, sequence u64, txid u64, database checksum u64, log index u64, pages u32, WAL frame u32, WAL salts 2 x u32, origin: captured here u32, reserved u32, 8 zero, CRC-64 of the bytes before |
//! | 1024 | 16 | log index that content written to the database file may reach (pending), its complement |
//! | 4096 | 8 each | checksum of page 1, 2, ... (0: the lock page) |
//!
//! Checksums are written only for changes that are in the log, so after a crash they are never ahead of it, and
//! redo from the marker rewrites those that may be torn.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::closable_file::ClosableFile;
use crate::io::{fault, read_up_to, space};
use crate::sqlite::wal::Salt;
use crate::types::{Checksum, LogIndex, PageCount, PageSize, Pgno, Pos, Txid};

const MAGIC: &[u8; 8] = b"SKEINPG1";
const VERSION: u32 = 1;
const MARKER_BYTES: usize = 96;
const MARKER_STRIDE: u64 = 512;
const PENDING_OFFSET: u64 = 1024;
const SLOTS_OFFSET: u64 = 4096;

/// A frame of a particular incarnation of a WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalPoint {
    /// The incarnation.
    pub salt: Salt,
    /// The frame, 0 before the first.
    pub frame: u32,
}

impl WalPoint {
    /// Frame of a point behind the end of its incarnation: whatever that held is captured.
    pub const RETIRED: u32 = u32::MAX;

    /// The first frame of the incarnation `salt` that is not captured; `None` where all of it is older than this point.
    pub fn first_uncaptured(self, salt: Salt) -> Option<u32> {
        if salt == self.salt {
            return self.frame.checked_add(1);
        }
        // While one connection writes, each incarnation counts the first salt up; one that begins a log without having
        // known the last draws both salts anew.
        let follows = salt.0 == self.salt.0.wrapping_add(1) || self.salt == Salt(0, 0);
        (follows || self.frame == Self::RETIRED).then_some(1)
    }
}

/// What the database file durably holds: all entries up to `index`, none of later ones needed to read it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Marker {
    /// The position.
    pub pos: Pos,
    /// The log index of the last entry in it.
    pub index: LogIndex,
    /// Page size; meaningless while `pages` is 0.
    pub page_size: PageSize,
    /// Size in pages.
    pub pages: PageCount,
    /// How far this node's own WAL had been captured, `None` where there was no WAL.
    pub wal: Option<WalPoint>,
}

impl Marker {
    /// The marker of a database without a transaction.
    pub const NEW: Marker = Marker {
        pos: Pos::ZERO,
        index: LogIndex::ZERO,
        page_size: PageSize::DEFAULT,
        pages: PageCount::ZERO,
        wal: None,
    };
}

/// The file of checksums of one database.
#[derive(Debug)]
pub struct PageChecksums {
    file: ClosableFile,
    sequence: u64,
    marker: Marker,
    pending: LogIndex,
    /// Length of the file: nobody else writes it.
    length: u64,
    /// Up to where disk space was taken for it in this run.
    reserved: u64,
}

/// Step in which disk space is taken for checksums: those of 512 pages.
const RESERVE_STEP: u64 = 4096;

impl PageChecksums {
    /// Opens the file, creating it where missing.
    ///
    /// # Errors
    /// Where it cannot be read, both markers are damaged, or it is of a newer version.
    pub fn open(path: &Path) -> io::Result<Self> {
        fault::point("pages_open")?;
        let file = ClosableFile::open(path)?;
        let mut head = [0u8; 2048];
        let opened = file.get()?;
        let length = opened.metadata()?.len();
        read_up_to(&opened, &mut head, 0)?;
        let pending = read_pending(&head);
        let marked = [0, MARKER_STRIDE as usize]
            .iter()
            .any(|start| head[*start..start + MARKER_BYTES] != [0; MARKER_BYTES]);
        if length == 0 || !marked {
            // Made, but never marked: everything in it is still to be redone.
            return Ok(Self { file, sequence: 0, marker: Marker::NEW, pending, length, reserved: 0 });
        }
        let mut best: Option<(u64, Marker)> = None;
        for start in [0, MARKER_STRIDE as usize] {
            if let Some(found) = decode_marker(&head[start..start + MARKER_BYTES])? {
                best = best.filter(|best| best.0 > found.0).or(Some(found));
            }
        }
        match best {
            Some((sequence, marker)) => Ok(Self { file, sequence, marker, pending, length, reserved: 0 }),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{}: both markers are damaged; remove the database's directory and let it be fetched again",
                    path.display()
                ),
            )),
        }
    }

    /// What the database file durably holds.
    pub fn marker(&self) -> Marker {
        self.marker
    }

    /// Content of entries up to this index may be in the database file without being durable or whole.
    pub fn pending(&self) -> LogIndex {
        self.pending
    }

    /// Notes, before the database file is written, up to which entry it may come to hold content.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn set_pending(&mut self, index: LogIndex) -> io::Result<()> {
        if index > self.pending { self.write_pending(index) } else { Ok(()) }
    }

    /// Notes that the file holds nothing of entries behind `index` after all.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn lower_pending(&mut self, index: LogIndex) -> io::Result<()> {
        if index < self.pending { self.write_pending(index) } else { Ok(()) }
    }

    fn write_pending(&mut self, index: LogIndex) -> io::Result<()> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&index.get().to_le_bytes());
        bytes[8..].copy_from_slice(&(!index.get()).to_le_bytes());
        fault::point("pages_pending")?;
        self.file.get()?.write_all_at(&bytes, PENDING_OFFSET)?;
        self.pending = index;
        Ok(())
    }

    /// Makes checksums durable, then the marker. The database file must be durable up to it already.
    ///
    /// # Errors
    /// Where writing or syncing fails; the old marker then still holds.
    pub fn set_marker(&mut self, marker: Marker) -> io::Result<()> {
        fault::point("pages_sync")?;
        self.file.get()?.sync_data()?;
        self.note_marker(marker)?;
        self.file.get()?.sync_data()
    }

    /// Writes the marker without syncing it: a power cut may take it back.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn note_marker(&mut self, marker: Marker) -> io::Result<()> {
        let sequence = self.sequence + 1;
        fault::point("pages_marker")?;
        self.file.get()?.write_all_at(&encode_marker(sequence, &marker), (sequence % 2) * MARKER_STRIDE)?;
        (self.sequence, self.marker) = (sequence, marker);
        Ok(())
    }

    /// A second handle of the file, to sync it without holding the database's lock.
    ///
    /// # Errors
    /// Where no descriptor is left.
    pub fn sync_handle(&self) -> io::Result<File> {
        self.file.get()?.try_clone()
    }

    /// The checksum of a page, `None` where it has none yet.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn get(&self, pgno: Pgno) -> io::Result<Option<Checksum>> {
        let mut bytes = [0; 8];
        if read_up_to(&*self.file.get()?, &mut bytes, slot_offset(pgno))? < 8 {
            return Ok(None);
        }
        let bits = u64::from_le_bytes(bytes);
        Ok((bits != 0).then(|| Checksum::new(bits)))
    }

    /// Writes checksums; neighbours are written together.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn set(&mut self, checksums: &[(Pgno, Checksum)]) -> io::Result<()> {
        fault::point("pages_write")?;
        let file = self.file.get()?;
        let mut run: Vec<u8> = Vec::new();
        let mut start = None;
        let mut expected = 0;
        for (pgno, checksum) in checksums {
            if pgno.get() != expected || run.len() >= 65536 {
                if let Some(first) = start {
                    file.write_all_at(&run, slot_offset(first))?;
                    self.length = self.length.max(slot_offset(first) + run.len() as u64);
                }
                run.clear();
                start = Some(*pgno);
            }
            run.extend_from_slice(&checksum.get().to_le_bytes());
            expected = pgno.get().wrapping_add(1);
        }
        match start {
            Some(first) => {
                file.write_all_at(&run, slot_offset(first))?;
                self.length = self.length.max(slot_offset(first) + run.len() as u64);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Takes disk space for the checksums of a database of `pages` pages whose file of checksums is at `path`.
    ///
    /// # Errors
    /// Those of [`space::reserve_growth`].
    pub fn reserve(&mut self, path: &Path, pages: PageCount) -> io::Result<()> {
        let end = file_bytes(pages);
        if end <= self.length.max(self.reserved) {
            return Ok(());
        }
        let end = end.next_multiple_of(RESERVE_STEP);
        space::reserve_growth(path, end)?;
        self.reserved = end;
        Ok(())
    }

    /// Forgets the checksums of pages behind `pages`.
    ///
    /// # Errors
    /// Where the file cannot be truncated.
    pub fn truncate(&mut self, pages: PageCount) -> io::Result<()> {
        let end = file_bytes(pages);
        if self.length > end {
            self.file.get()?.set_len(end)?;
            (self.length, self.reserved) = (end, 0);
        }
        Ok(())
    }

    /// The checksums of pages `first..first + out.len()` as far as there are any; missing ones are `None`.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn read_range(&self, first: Pgno, out: &mut [Option<Checksum>]) -> io::Result<()> {
        let mut bytes = vec![0; out.len() * 8];
        let length = read_up_to(&*self.file.get()?, &mut bytes, slot_offset(first))?;
        bytes[length - length % 8..].fill(0);
        for (slot, chunk) in out.iter_mut().zip(bytes.chunks_exact(8)) {
            let bits = u64::from_le_bytes(chunk.try_into().expect("chunks of eight bytes"));
            *slot = (bits != 0).then(|| Checksum::new(bits));
        }
        Ok(())
    }

    /// XOR of the checksums of pages `first..=last`, each page once; pages without one add nothing.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn fold(&self, first: u32, last: u32) -> io::Result<Checksum> {
        let mut total = Checksum::EMPTY;
        let mut next = first;
        let mut chunk = vec![None; 8192];
        while next <= last {
            let count = ((last - next) as usize + 1).min(chunk.len());
            let pgno = Pgno::new(next).expect("pages count from 1");
            self.read_range(pgno, &mut chunk[..count])?;
            chunk[..count].iter().flatten().for_each(|checksum| total = total ^ *checksum);
            next += count as u32;
        }
        Ok(total)
    }
}

fn file_bytes(pages: PageCount) -> u64 {
    SLOTS_OFFSET + u64::from(pages.get()) * 8
}

fn slot_offset(pgno: Pgno) -> u64 {
    SLOTS_OFFSET + u64::from(pgno.get() - 1) * 8
}

fn read_pending(head: &[u8]) -> LogIndex {
    let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    let (value, complement) = (word(PENDING_OFFSET as usize), word(PENDING_OFFSET as usize + 8));
    if value == !complement { LogIndex::new(value) } else { LogIndex::ZERO }
}

fn encode_marker(sequence: u64, marker: &Marker) -> [u8; MARKER_BYTES] {
    let mut out = Vec::with_capacity(MARKER_BYTES);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&marker.page_size.get().to_le_bytes());
    for word in [sequence, marker.pos.txid_or_zero(), marker.pos.checksum.get(), marker.index.get()] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let wal = marker.wal.unwrap_or(WalPoint { salt: Salt(0, 0), frame: 0 });
    for word in [marker.pages.get(), wal.frame, wal.salt.0, wal.salt.1, u32::from(marker.wal.is_some()), 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.resize(MARKER_BYTES - 8, 0);
    out.extend_from_slice(&crc64(&out).to_le_bytes());
    out.try_into().expect("a marker has a fixed size")
}

fn crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64GoIso, bytes)
}

/// `None` for a slot never written or torn; an error for one of a newer version.
fn decode_marker(bytes: &[u8]) -> io::Result<Option<(u64, Marker)>> {
    let word32 = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let word64 = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    if bytes[..8] != *MAGIC || word64(MARKER_BYTES - 8) != crc64(&bytes[..MARKER_BYTES - 8]) {
        return Ok(None);
    }
    if word32(8) != VERSION {
        let text = format!(
            "page checksums of version {} (this program knows {VERSION}): use a newer program",
            word32(8)
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let Ok(page_size) = PageSize::new(word32(12)) else { return Ok(None) };
    let pos = Pos { txid: Txid::new(word64(24)), checksum: Checksum::new(word64(32)) };
    let wal = (word32(64) != 0).then(|| WalPoint { frame: word32(52), salt: Salt(word32(56), word32(60)) });
    let marker =
        Marker { pos, index: LogIndex::new(word64(40)), page_size, pages: PageCount::new(word32(48)), wal };
    Ok(Some((word64(16), marker)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u32) -> Pgno {
        Pgno::new(number).unwrap()
    }

    #[test]
    fn markers_survive_reopening_and_a_torn_slot_leaves_the_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pages");
        let at = |n: u64| Marker {
            pos: Pos::new(Txid::new(n).unwrap(), Checksum::new(n)),
            index: LogIndex::new(n * 10),
            page_size: PageSize::new(65536).unwrap(),
            pages: PageCount::new(3),
            wal: (n == 2).then_some(WalPoint { salt: Salt(7, 8), frame: 9 }),
        };
        let mut pages = PageChecksums::open(&path).unwrap();
        assert_eq!(pages.marker(), Marker::NEW);
        pages.set_marker(at(1)).unwrap();
        pages.set_marker(at(2)).unwrap();
        pages.set_pending(LogIndex::new(33)).unwrap();
        let reopened = PageChecksums::open(&path).unwrap();
        assert_eq!((reopened.marker(), reopened.pending()), (at(2), LogIndex::new(33)));
        reopened.file.get().unwrap().write_all_at(&[0xff], 20).unwrap();
        assert_eq!(PageChecksums::open(&path).unwrap().marker(), at(1));
        reopened.file.get().unwrap().write_all_at(&[0xff], 512 + 20).unwrap();
        assert!(PageChecksums::open(&path).unwrap_err().to_string().contains("markers are damaged"));
    }

    #[test]
    fn checksums_are_kept_by_page_and_fold_to_the_database_checksum() {
        let dir = tempfile::tempdir().unwrap();
        let mut pages = PageChecksums::open(&dir.path().join("pages")).unwrap();
        let sums: Vec<_> = [1, 3, 4, 7, 20].map(|n| (page(n), Checksum::new(u64::from(n) << 8))).into();
        pages.set(&sums).unwrap();
        assert_eq!(pages.get(page(7)).unwrap(), Some(Checksum::new(7 << 8)));
        assert_eq!(pages.get(page(5)).unwrap(), None);
        assert_eq!(pages.fold(1, 20).unwrap(), Checksum::new((1 ^ 3 ^ 4 ^ 7 ^ 20) << 8));
        pages.truncate(PageCount::new(4)).unwrap();
        assert_eq!(pages.get(page(7)).unwrap(), None);
        assert_eq!(pages.fold(1, 100).unwrap(), Checksum::new((1 ^ 3 ^ 4) << 8));
    }
}
