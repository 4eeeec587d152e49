//! Files for the bucket, made of change sets of the log and of databases. Blocking.

use std::fs::File;
use std::io::{BufReader, BufWriter, Cursor, Read, Seek, Write};
use std::path::Path;

use bytes::Bytes;

use super::{BackupError, Body};
use crate::db::{DbError, SnapshotHeader};
use crate::io::blobs::BlobStore;
use crate::ltx::{self, ChangeSet, CompactHeader, CompactOptions, Compression, Encoder, Finished, Header};
use crate::store::StoreError;
use crate::types::{PageCount, Pgno, Timestamp, TxidRange};

/// What Litestream's writer wants to find as the begin of the frames in the WAL to carry on where this one stopped: behind
/// a WAL's header of 32 bytes, with no frames.
const WAL_OFFSET: u64 = 32;
/// Change sets merged at a time: each step looks at the next page of all of them.
const MERGED_AT_A_TIME: usize = 128;
/// Larger results lie in a file while they are uploaded, in bytes.
const IN_MEMORY_BYTES: u64 = 4 << 20;

/// A file for the bucket.
#[derive(Debug)]
pub(super) struct Made {
    /// Its content.
    pub body: Body,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// What the header of a file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Naming {
    /// The transactions, in the numbers of the files.
    pub range: TxidRange,
    /// When the last of them was committed.
    pub time: Timestamp,
}

enum Input {
    Inline(Cursor<Bytes>),
    Blob(BufReader<File>),
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Input::Inline(bytes) => bytes.read(buffer),
            Input::Blob(file) => file.read(buffer),
        }
    }
}

fn failed(scratch: &Path) -> impl FnOnce(std::io::Error) -> BackupError {
    BackupError::io(format!("writing into {}", scratch.display()))
}

/// Merges following change sets of a database that had `before` pages.
///
/// # Errors
/// Where a large change set is not here any more, or they do not follow each other.
pub(super) fn merge_sets(
    sets: &[ChangeSet],
    before: PageCount,
    naming: Naming,
    blobs: &BlobStore,
    scratch: &Path,
) -> Result<Made, BackupError> {
    let mut inputs = Vec::with_capacity(sets.len());
    let mut bytes = 0;
    for set in sets {
        inputs.push(match (&set.body, set.blob()) {
            (ltx::Body::Inline(inline), _) => Input::Inline(Cursor::new(inline.clone())),
            (_, Some(blob)) => {
                let opened = blobs.open_blob((blob.digest, blob.size_bytes));
                let what = format!("large change set {blob} of database {}", set.db);
                let opened = opened.map_err(|error| match error.kind() {
                    // The log has given it up.
                    std::io::ErrorKind::NotFound => BackupError::NotFound(format!("{what} is gone")),
                    _ => BackupError::io(what)(error),
                });
                Input::Blob(BufReader::with_capacity(1 << 18, opened?))
            }
            (ltx::Body::Blob(_), None) => continue,
        });
        bytes += set.blob().map_or(set.inline_bytes() as u64, |blob| blob.size_bytes);
    }
    let commits: Vec<PageCount> = sets.iter().map(|set| set.commit).collect();
    let what = format!("change sets of {}", sets.first().map_or("no database", |set| set.db.as_str()));
    let (inputs, before) = merge_in_steps(inputs, &commits, before, bytes, scratch, &what)?;
    merge(inputs, Some(before), naming, bytes, scratch, &what)
}

/// Merges neighbours until few enough are left to be merged at once. Returns them, and the size before the first.
fn merge_in_steps(
    mut inputs: Vec<Input>,
    commits: &[PageCount],
    before: PageCount,
    bytes: u64,
    scratch: &Path,
    what: &str,
) -> Result<(Vec<Input>, PageCount), BackupError> {
    let mut commits = commits.to_vec();
    while inputs.len() > MERGED_AT_A_TIME {
        let mut merged = Vec::new();
        let mut size = before;
        let mut ends = Vec::new();
        let mut rest = inputs.into_iter().peekable();
        for group in commits.chunks(MERGED_AT_A_TIME) {
            let some: Vec<Input> = rest.by_ref().take(group.len()).collect();
            let options = CompactOptions { before: Some(size), header: None };
            let mut out = Out::new(bytes, scratch)?;
            ltx::compact_as(some, &mut out, Compression::Stored, &options)
                .map_err(|error| BackupError::ltx(what, error))?;
            merged.push(out.into_input(scratch)?);
            size = group.last().copied().unwrap_or(size);
            ends.push(size);
        }
        (inputs, commits) = (merged, ends);
    }
    Ok((inputs, before))
}

/// Merges files of the bucket into one. They have every page between their sizes.
///
/// # Errors
/// Where one is damaged, or they do not follow each other.
pub(super) fn merge_files(
    files: Vec<File>,
    bytes: u64,
    naming: Naming,
    scratch: &Path,
) -> Result<Made, BackupError> {
    let inputs = files.into_iter().map(|file| Input::Blob(BufReader::with_capacity(1 << 16, file))).collect();
    merge(inputs, None, naming, bytes, scratch, "files to be merged")
}

fn merge(
    inputs: Vec<Input>,
    before: Option<PageCount>,
    naming: Naming,
    bytes: u64,
    scratch: &Path,
    what: &str,
) -> Result<Made, BackupError> {
    let Naming { range, time } = naming;
    let header = CompactHeader { range, timestamp_ms: time.ms(), wal_offset: WAL_OFFSET };
    let options = CompactOptions { before, header: Some(header) };
    let mut out = Out::new(bytes, scratch)?;
    ltx::compact_as(inputs, &mut out, Compression::Lz4, &options)
        .map_err(|error| BackupError::ltx(what, error))?;
    out.into_made(scratch)
}

/// Reads a page of a database into the buffer, which is as large as a page.
pub(super) type ReadPage<'a> = dyn FnMut(Pgno, &mut [u8]) -> Result<(), DbError> + 'a;

/// Writes all pages of a database as one file: a snapshot where the range begins with the first transaction.
///
/// # Errors
/// Where a page cannot be read, or the disk is full.
pub(super) fn whole_database(
    header: SnapshotHeader,
    read_page: &mut ReadPage<'_>,
    naming: Naming,
    scratch: &Path,
) -> Result<Made, BackupError> {
    let ltx_header = Header {
        no_checksum: true,
        timestamp_ms: naming.time.ms(),
        wal_offset: WAL_OFFSET,
        ..Header::new(header.page_size, header.commit, naming.range, None)
    };
    let out = Out::new(header.commit.bytes(header.page_size), scratch)?;
    let in_file = |error| BackupError::ltx("a snapshot", error);
    let mut encoder = Encoder::new(out, ltx_header, Compression::Lz4).map_err(in_file)?;
    let mut page = vec![0; header.page_size.len()];
    for pgno in header.commit.pages(header.page_size) {
        read_page(pgno, &mut page).map_err(StoreError::from)?;
        encoder.page(pgno, &page).map_err(in_file)?;
    }
    let Finished { writer, .. } = encoder.finish(None).map_err(in_file)?;
    writer.into_made(scratch)
}

/// What is written: in memory where it is small, else in a file without a name.
enum Out {
    Memory(Vec<u8>),
    File(BufWriter<File>),
}

impl Out {
    /// For about so many bytes.
    fn new(bytes: u64, scratch: &Path) -> Result<Self, BackupError> {
        if bytes <= IN_MEMORY_BYTES {
            return Ok(Self::Memory(Vec::new()));
        }
        let file = tempfile::tempfile_in(scratch).map_err(failed(scratch))?;
        Ok(Self::File(BufWriter::with_capacity(1 << 18, file)))
    }

    fn into_input(self, scratch: &Path) -> Result<Input, BackupError> {
        match self {
            Self::Memory(bytes) => Ok(Input::Inline(Cursor::new(bytes.into()))),
            Self::File(file) => {
                let mut file = file.into_inner().map_err(|error| failed(scratch)(error.into_error()))?;
                file.rewind().map_err(failed(scratch))?;
                Ok(Input::Blob(BufReader::with_capacity(1 << 18, file)))
            }
        }
    }

    fn into_made(self, scratch: &Path) -> Result<Made, BackupError> {
        match self {
            Self::Memory(bytes) => {
                let size_bytes = bytes.len() as u64;
                Ok(Made { body: Body::Bytes(bytes.into()), size_bytes })
            }
            Self::File(file) => {
                let file = file.into_inner().map_err(|error| failed(scratch)(error.into_error()))?;
                let size_bytes = file.metadata().map_err(failed(scratch))?.len();
                Ok(Made { body: Body::File(file, size_bytes), size_bytes })
            }
        }
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Memory(out) => out.write(bytes),
            Self::File(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::File(out) => out.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ltx::{Decoder, page_checksum};
    use crate::types::{Checksum, DbName, PageSize, Txid};

    const PAGE: usize = 512;

    /// The change of one transaction: pages with their fill, and the size after it.
    fn set(txid: u64, commit: u32, pages: &[(u32, u8)]) -> ChangeSet {
        let page_size = PageSize::new(PAGE as u32).unwrap();
        let range = TxidRange::single(Txid::new(txid).unwrap());
        let pre = (txid > 1).then(|| Checksum::new(txid));
        let mut encoder = Encoder::new(
            Vec::new(),
            Header::new(page_size, PageCount::new(commit), range, pre),
            Compression::Lz4,
        )
        .unwrap();
        let mut post = Checksum::EMPTY;
        for (pgno, fill) in pages {
            let (pgno, page) = (Pgno::new(*pgno).unwrap(), [*fill; PAGE]);
            encoder.page(pgno, &page).unwrap();
            post = post ^ page_checksum(pgno, &page);
        }
        let post = if txid == 1 { post } else { Checksum::new(txid + 1) };
        let ltx = encoder.finish(Some(post)).unwrap().writer;
        let body = ltx::Body::Inline(ltx.into());
        let db = DbName::new("a").unwrap();
        let pre = pre.unwrap_or(Checksum::EMPTY);
        ChangeSet { db, range, pre, post, page_size, commit: PageCount::new(commit), body }
    }

    fn merged(sets: &[ChangeSet], before: u32, range: (u64, u64)) -> (Header, Vec<(u32, u8)>) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open_unsynced(dir.path().join("blobs")).unwrap();
        let range = TxidRange::new(Txid::new(range.0).unwrap(), Txid::new(range.1).unwrap()).unwrap();
        let naming = Naming { range, time: Timestamp::from_ms(7) };
        let made = merge_sets(sets, PageCount::new(before), naming, &blobs, dir.path()).unwrap();
        let Body::Bytes(bytes) = made.body else { panic!("small") };
        assert_eq!(bytes.len() as u64, made.size_bytes);
        let mut decoder = Decoder::new(&bytes[..]).unwrap();
        let (header, mut page, mut pages) = (*decoder.header(), Vec::new(), Vec::new());
        while let Some(pgno) = decoder.next_page(&mut page).unwrap() {
            assert!(page.iter().all(|byte| *byte == page[0]));
            pages.push((pgno.get(), page[0]));
        }
        decoder.finish().unwrap();
        (header, pages)
    }

    #[test]
    fn files_have_no_checksums_and_every_page_between_the_sizes() {
        let sets = [set(5, 4, &[(1, 1)]), set(6, 6, &[(1, 2), (6, 9)])];
        let (header, pages) = merged(&sets, 3, (105, 106));
        assert_eq!(pages, [(1, 2), (4, 0), (5, 0), (6, 9)], "pages 4 and 5 were never written");
        assert!(header.no_checksum && header.pre_apply.is_none());
        assert_eq!((header.wal_offset, header.wal_size_bytes, header.timestamp_ms), (32, 0, 7));
        assert_eq!((header.range.min().get(), header.range.max().get()), (105, 106));
        let (header, pages) = merged(&[set(1, 2, &[(1, 1), (2, 2)])], 0, (1, 1));
        assert!(header.is_snapshot());
        assert_eq!(pages, [(1, 1), (2, 2)]);
    }

    #[test]
    fn pages_beyond_a_shrunken_database_are_left_out_and_come_back_as_zeros() {
        let sets = [set(5, 6, &[(1, 1), (5, 5)]), set(6, 2, &[(1, 2)]), set(7, 4, &[(1, 3), (4, 4)])];
        assert_eq!(merged(&sets[..2], 6, (5, 6)).1, [(1, 2)]);
        assert_eq!(merged(&sets, 6, (5, 7)).1, [(1, 3), (3, 0), (4, 4)]);
    }

    #[test]
    fn many_change_sets_are_merged_in_steps_with_the_same_result() {
        let count = (MERGED_AT_A_TIME * MERGED_AT_A_TIME + 3) as u64;
        let sets: Vec<_> =
            (0..count).map(|n| set(n + 2, 4 + (n % 3) as u32, &[(1, n as u8), (4, 1)])).collect();
        let (header, pages) = merged(&sets, 3, (2, count + 1));
        assert_eq!(header.range.max().get(), count + 1);
        let last = (count - 1) as u8;
        let size = 4 + ((count - 1) % 3) as u32;
        let mut expected = vec![(1, last), (4, 1)];
        expected.extend((5..=size).map(|pgno| (pgno, 0)));
        assert_eq!(pages, expected);
    }
}
