//! Change sets in files: where the pages of each are.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::HistoryError;
use crate::ltx::{self, Decoder, FrameAt, HEADER_SIZE, Header, INDEX_END_SIZE, LtxError};
use crate::types::{Checksum, PageCount, Timestamp, Txid, TxidRange};

/// A run of following transactions that lies in one file, or in two: each by itself, and all merged into one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Segment {
    /// The transactions.
    pub range: TxidRange,
    /// Checksum of the database after them.
    pub post: Checksum,
    /// Size of the database after them.
    pub commit: PageCount,
    /// When the first of them was committed, as far as known,
    pub first_time: Timestamp,
    /// and the last.
    pub last_time: Timestamp,
    /// Whether there is a file in which they are merged.
    pub merged: bool,
    /// Whether there is a file in which each is by itself, and its size in bytes.
    pub single: Option<u64>,
    /// Size of the merged file in bytes.
    pub merged_bytes: u64,
}

impl Segment {
    /// What its files take, in bytes.
    pub fn bytes(&self) -> u64 {
        self.merged_bytes + self.single.unwrap_or(0)
    }

    /// The file in which each transaction is by itself.
    pub fn single_path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.sets", self.range.min()))
    }

    /// The file in which they are merged.
    pub fn merged_path(&self, dir: &Path) -> PathBuf {
        dir.join(ltx::file_name(self.range))
    }
}

/// One committed transaction, or several where they are only kept together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transaction {
    /// Its number; a range where several are kept together.
    pub range: TxidRange,
    /// When it was committed.
    pub time: Timestamp,
    /// Pages it changed.
    pub pages: usize,
    /// Size of the database after it, in pages.
    pub commit: PageCount,
    /// Checksum of the database after it.
    pub checksum: Checksum,
}

/// One change set in a file.
pub(super) struct SetAt {
    /// Its header.
    pub header: Header,
    /// Checksum of the database after it.
    pub post: Checksum,
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its pages, their offsets as in the file.
    pub frames: Vec<FrameAt>,
}

impl SetAt {
    /// It as a transaction.
    pub fn transaction(&self) -> Transaction {
        Transaction {
            range: self.header.range,
            time: Timestamp::from_ms(self.header.timestamp_ms),
            pages: self.frames.len(),
            commit: self.header.commit,
            checksum: self.post,
        }
    }
}

/// The change sets that lie one behind the other in `bytes`, checked as a whole each; what comes behind the last whole one,
/// as a crash in the middle of a write leaves it, is left out.
pub(super) fn sets_in(bytes: &[u8]) -> Vec<SetAt> {
    let (mut rest, mut found) = (bytes, Vec::new());
    while !rest.is_empty() {
        let offset = (bytes.len() - rest.len()) as u64;
        match take_set(&mut rest, offset, bytes.len()) {
            Ok(set) => found.push(set),
            Err(_) => break,
        }
    }
    found
}

fn take_set(rest: &mut &[u8], offset: u64, size: usize) -> Result<SetAt, LtxError> {
    let mut decoder = Decoder::new(&mut *rest)?;
    let (header, mut frames, mut page) = (*decoder.header(), Vec::new(), Vec::new());
    while let Some(pgno) = decoder.next_page(&mut page)? {
        let (at, size_bytes) = decoder.frame();
        frames.push(FrameAt { pgno, offset: offset + at, size_bytes });
    }
    let post = decoder.finish()?.post_apply.unwrap_or(Checksum::EMPTY);
    let size_bytes = (size - rest.len()) as u64 - offset;
    Ok(SetAt { header, post, offset, size_bytes, frames })
}

/// Reads a file of single change sets.
///
/// # Errors
/// Where it cannot be read.
pub(super) fn read_sets(path: &Path) -> Result<(Vec<u8>, Vec<SetAt>), HistoryError> {
    let bytes = std::fs::read(path).map_err(HistoryError::io("reading", path))?;
    let sets = sets_in(&bytes);
    Ok((bytes, sets))
}

/// What a file that is one change set says of itself: header, checksum after, and the frames of its pages. Its pages are not
/// read.
///
/// # Errors
/// Where it cannot be read, or is cut short.
pub(super) fn read_index(path: &Path) -> Result<SetAt, HistoryError> {
    let read = || -> Result<SetAt, LtxError> {
        let at = |offset: u64| move |source| LtxError::Io { offset, source };
        let file = File::open(path).map_err(at(0))?;
        let size_bytes = file.metadata().map_err(at(0))?.len();
        let mut head = [0; HEADER_SIZE];
        file.read_exact_at(&mut head, 0).map_err(at(0))?;
        let header = *Decoder::new(&head[..])?.header();
        let cut_short = |offset| LtxError::CutShort { offset, inside: "page index" };
        let end_at = size_bytes.checked_sub(INDEX_END_SIZE as u64).ok_or_else(|| cut_short(size_bytes))?;
        let mut end = [0; INDEX_END_SIZE];
        file.read_exact_at(&mut end, end_at).map_err(at(end_at))?;
        let (index_bytes, trailer) = ltx::index_end(&end)?;
        let start = end_at.checked_sub(index_bytes).ok_or_else(|| cut_short(end_at))?;
        let mut index = vec![0; usize::try_from(index_bytes).map_err(|_| cut_short(start))?];
        file.read_exact_at(&mut index, start).map_err(at(start))?;
        let frames = ltx::parse_page_index(&index)?;
        let post = trailer.post_apply.unwrap_or(Checksum::EMPTY);
        Ok(SetAt { header, post, offset: 0, size_bytes, frames })
    };
    read().map_err(|error| HistoryError::ltx(path, error))
}

/// The transactions that a name of a file of single change sets begins with.
pub(super) fn parse_single(name: &str) -> Option<Txid> {
    name.strip_suffix(".sets")?.parse().ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ltx::{Compression, Encoder};
    use crate::types::{PageSize, Pgno};

    /// A change set of pages of 512 bytes, each filled with one byte.
    pub fn ltx(txid: u64, pre: Option<u64>, post: u64, commit: u32, ms: i64, pages: &[(u32, u8)]) -> Vec<u8> {
        let page_size = PageSize::new(512).unwrap();
        let range = TxidRange::single(Txid::new(txid).unwrap());
        let header = Header {
            timestamp_ms: ms,
            ..Header::new(page_size, PageCount::new(commit), range, pre.map(Checksum::new))
        };
        let mut encoder = Encoder::new(Vec::new(), header, Compression::Stored).unwrap();
        for (pgno, fill) in pages {
            encoder.page(Pgno::new(*pgno).unwrap(), &[*fill; 512]).unwrap();
        }
        encoder.finish(Some(Checksum::new(post))).unwrap().writer
    }

    #[test]
    fn a_file_that_a_crash_cut_anywhere_has_its_whole_change_sets() {
        let (first, second) =
            (ltx(5, Some(1), 2, 3, 10, &[(1, 1), (3, 3)]), ltx(6, Some(2), 4, 3, 20, &[(2, 2)]));
        let file = [first.clone(), second].concat();
        for cut in 0..=file.len() {
            let sets = sets_in(&file[..cut]);
            let expected = if cut == file.len() { 2 } else { usize::from(cut >= first.len()) };
            assert_eq!(sets.len(), expected, "cut at {cut}");
        }
        let sets = sets_in(&file);
        assert_eq!(sets[1].offset, first.len() as u64);
        assert_eq!(sets[1].size_bytes, file.len() as u64 - sets[1].offset);
        let FrameAt { pgno, offset, size_bytes } = sets[1].frames[0];
        let mut page = [0; 512];
        let frame = &file[offset as usize..(offset + size_bytes) as usize];
        assert_eq!(ltx::decode_frame(frame, &mut page).unwrap(), pgno);
        assert_eq!(page, [2; 512]);
    }

    #[test]
    fn a_merged_file_is_known_by_its_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ltx");
        let bytes = ltx(5, Some(1), 2, 3, 10, &[(1, 1), (3, 3)]);
        std::fs::write(&path, &bytes).unwrap();
        let set = read_index(&path).unwrap();
        assert_eq!(set.frames, sets_in(&bytes)[0].frames);
        assert_eq!((set.post, set.size_bytes), (sets_in(&bytes)[0].post, bytes.len() as u64));
        for cut in [0, 50, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(read_index(&path).is_err(), "cut at {cut}");
        }
    }
}
