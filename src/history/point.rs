//! A database as it was: pages are read as they are asked for, from the base and the change sets.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::HistoryError;
use super::generation::BASE;
use super::meta::Base;
use super::segment::{Segment, SetAt, read_index, read_sets};
use crate::io::read_or_zero;
use crate::ltx;
use crate::sqlite::page_owners::page_owners;
use crate::types::{DbName, LogIndex, PageCount, PageSize, Pgno, Pos, Timestamp, Txid};

/// Files with change sets that one point has open at a time.
const FILES_OPEN_MAX: usize = 8;

/// What a point is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PointHeader {
    /// The position of the database.
    pub pos: Pos,
    /// When its last transaction was committed.
    pub time: Timestamp,
    /// Page size in bytes.
    pub page_size: PageSize,
    /// Size in pages.
    pub commit: PageCount,
}

impl PointHeader {
    /// Size of the database in bytes.
    pub fn bytes(&self) -> u64 {
        self.commit.bytes(self.page_size)
    }
}

/// Names a point for as long as it is kept.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PointId {
    /// The database.
    pub db: DbName,
    /// Which of the chains of that name: the log entry it begins with.
    pub generation: LogIndex,
    /// The transaction.
    pub txid: Txid,
    /// Size of the database in bytes.
    pub size_bytes: u64,
    /// When the transaction was committed.
    pub time: Timestamp,
}

/// A database as it was at one point; its files stay as they are while it is there.
pub struct Point {
    header: PointHeader,
    dir: PathBuf,
    files: Vec<PathBuf>,
    /// Where the newest image of each page is: file, offset, size of the frame.
    frames: HashMap<Pgno, (u32, u64, u32)>,
    base: Option<File>,
    /// Pages above it that no change set has were cut off meanwhile: they are zeros.
    base_pages: PageCount,
    open: Mutex<Vec<(u32, Arc<File>)>>,
    _pin: Arc<()>,
}

/// What a point is made of.
pub(super) struct Parts {
    /// Directory of the generation.
    pub dir: PathBuf,
    /// Page size in bytes.
    pub page_size: PageSize,
    /// Its base.
    pub base: Base,
    /// The segments from the base on, to the one that the point is in.
    pub segments: Vec<Segment>,
    /// Keeps the files.
    pub pin: Arc<()>,
}

impl Point {
    /// The database of `parts` after transaction `at`, or as it was at the base where that is `None`.
    ///
    /// # Errors
    /// Where no change set ends there; the text says what ends before. Where a file cannot be read.
    pub(super) fn open(parts: Parts, at: Option<Txid>) -> Result<Self, HistoryError> {
        let Parts { dir, page_size, base, segments, pin } = parts;
        let base_path = dir.join(BASE);
        let file = match base.pages {
            PageCount::ZERO => None,
            _ => Some(File::open(&base_path).map_err(HistoryError::io("opening", &base_path))?),
        };
        let header = PointHeader { pos: base.pos, time: base.time, page_size, commit: base.pages };
        let (files, frames, open) = (Vec::new(), HashMap::new(), Mutex::default());
        let mut point =
            Self { header, dir, files, frames, base: file, base_pages: base.pages, open, _pin: pin };
        for segment in segments {
            if Some(segment.range.min()) > at {
                break;
            }
            point.add_segment(&segment, at)?;
        }
        if point.header.pos.txid != at {
            let reached = point.header.pos.txid_or_zero();
            return Err(HistoryError::NotFound(format!(
                "transaction {:016x} is kept only together with others; the last point before it is {reached:016x}",
                at.map_or(0, Txid::get)
            )));
        }
        Ok(point)
    }

    fn add_segment(&mut self, segment: &Segment, at: Option<Txid>) -> Result<(), HistoryError> {
        if segment.merged && Some(segment.range.max()) <= at {
            let path = segment.merged_path(&self.dir);
            let set = read_index(&path)?;
            let file = self.add_file(path);
            self.add_set(file, &set, segment.last_time);
            return Ok(());
        }
        if segment.single.is_none() {
            return Ok(());
        }
        let path = segment.single_path(&self.dir);
        let (_, sets) = read_sets(&path)?;
        let file = self.add_file(path);
        for set in sets.iter().take_while(|set| Some(set.header.range.max()) <= at) {
            self.add_set(file, set, Timestamp::from_ms(set.header.timestamp_ms));
        }
        Ok(())
    }

    fn add_file(&mut self, path: PathBuf) -> u32 {
        self.files.push(path);
        self.files.len() as u32 - 1
    }

    fn add_set(&mut self, file: u32, set: &SetAt, time: Timestamp) {
        let commit = set.header.commit;
        for frame in &set.frames {
            self.frames.insert(frame.pgno, (file, frame.offset, frame.size_bytes as u32));
        }
        if commit < self.header.commit {
            self.frames.retain(|pgno, _| commit.contains(*pgno));
        }
        self.base_pages = self.base_pages.min(commit);
        let pos = Pos::new(set.header.range.max(), set.post);
        self.header = PointHeader { pos, time: self.header.time.max(time), commit, ..self.header };
    }

    /// What it is.
    pub fn header(&self) -> PointHeader {
        self.header
    }

    /// Reads a page into `page`, which is as large as a page.
    ///
    /// # Errors
    /// Where a file cannot be read, or is damaged.
    pub fn read_page(&self, pgno: Pgno, page: &mut [u8]) -> Result<(), HistoryError> {
        let Some((number, offset, size)) = self.frames.get(&pgno).copied() else {
            return match &self.base {
                Some(base) if self.base_pages.contains(pgno) => {
                    let offset = pgno.offset(self.header.page_size);
                    let read = read_or_zero(base, offset, page);
                    read.map_err(HistoryError::io("reading", &self.dir.join(BASE)))
                }
                _ => {
                    page.fill(0);
                    Ok(())
                }
            };
        };
        let path = &self.files[number as usize];
        let mut frame = vec![0; size as usize];
        let file = self.file(number, path).map_err(HistoryError::io("opening", path))?;
        file.read_exact_at(&mut frame, offset).map_err(HistoryError::io("reading", path))?;
        let found = ltx::decode_frame(&frame, page).map_err(|error| HistoryError::ltx(path, error))?;
        if found != pgno {
            return Err(HistoryError::Corrupt(format!(
                "{}: page {found} is where {pgno} should be",
                path.display()
            )));
        }
        Ok(())
    }

    fn file(&self, number: u32, path: &Path) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, file)) = open.iter().find(|(known, _)| *known == number) {
            return Ok(file.clone());
        }
        let file = Arc::new(File::open(path)?);
        if open.len() >= FILES_OPEN_MAX {
            open.remove(0);
        }
        open.push((number, file.clone()));
        Ok(file)
    }

    /// Reads a part of the database file, as far as it goes; returns how much that is.
    ///
    /// # Errors
    /// As [`read_page`](Self::read_page).
    pub fn read_at(&self, offset: u64, data: &mut [u8]) -> Result<usize, HistoryError> {
        let size = self.header.bytes();
        let wanted = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
        let mut page = vec![0; self.header.page_size.len()];
        let mut done = 0;
        while done < wanted {
            let at = offset + done as u64;
            let Some(pgno) = Pgno::of_offset(at, self.header.page_size) else { break };
            self.read_page(pgno, &mut page)?;
            let begin = (at - pgno.offset(self.header.page_size)) as usize;
            let length = (page.len() - begin).min(wanted - done);
            data[done..done + length].copy_from_slice(&page[begin..begin + length]);
            done += length;
        }
        Ok(done)
    }

    /// Gives all pages in order to `each`, the lock page as zeros, and compares them with the checksum that the database had.
    ///
    /// # Errors
    /// Where they cannot be read, or are not those of the point: `Corrupt`, after the last but before it is given.
    pub fn for_each_page(
        &self,
        mut each: impl FnMut(Pgno, &[u8]) -> Result<(), HistoryError>,
    ) -> Result<(), HistoryError> {
        let PointHeader { page_size, commit, pos, .. } = self.header;
        let (lock_page, mut computed) = (Pgno::lock_page(page_size), crate::types::Checksum::EMPTY);
        let mut page = vec![0; page_size.len()];
        for pgno in (1..=commit.get()).filter_map(Pgno::new) {
            if pgno == lock_page {
                page.fill(0);
            } else {
                self.read_page(pgno, &mut page)?;
                computed = computed ^ ltx::page_checksum(pgno, &page);
            }
            if pgno.get() == commit.get() && computed != pos.checksum {
                return Err(HistoryError::Corrupt(format!(
                    "the pages in {} have checksum {computed}, not that of {pos}",
                    self.dir.display()
                )));
            }
            each(pgno, &page)?;
        }
        Ok(())
    }

    /// The tables, or what else owns pages, that have one of these pages here. Reads all pages of b-trees.
    ///
    /// # Errors
    /// Where a page cannot be read.
    pub fn tables_with(&self, pages: &[Pgno]) -> Result<BTreeSet<String>, HistoryError> {
        let PointHeader { page_size, commit, .. } = self.header;
        let owners = page_owners(page_size, commit.get(), &mut |pgno, page| self.read_page(pgno, page))?;
        Ok(pages.iter().filter_map(|pgno| owners.get(pgno).cloned()).collect())
    }

    /// The pages in which it and another point differ, of which one may be larger.
    ///
    /// # Errors
    /// Where a page cannot be read.
    pub fn differing_pages(&self, other: &Self) -> Result<Vec<Pgno>, HistoryError> {
        let size = self.header.commit.max(other.header.commit);
        let (mut mine, mut theirs) =
            (vec![0; self.header.page_size.len()], vec![0; other.header.page_size.len()]);
        let mut found = Vec::new();
        for pgno in size.pages(self.header.page_size) {
            if self.header.commit.contains(pgno) != other.header.commit.contains(pgno) {
                found.push(pgno);
                continue;
            }
            // Where neither has an image of its own both show the base.
            let based = |point: &Self| !point.frames.contains_key(&pgno) && point.base_pages.contains(pgno);
            if self.dir == other.dir && based(self) && based(other) {
                continue;
            }
            self.read_page(pgno, &mut mine)?;
            other.read_page(pgno, &mut theirs)?;
            if mine != theirs {
                found.push(pgno);
            }
        }
        Ok(found)
    }
}
