use std::io::{Read, Write};

use super::decoder::Decoder;
use super::encoder::{Compression, Encoder, Finished};
use super::error::LtxError;
use super::header::{Header, Trailer};
use crate::types::{NodeId, PageCount, Pgno, TxidRange};

/// The most pages without content a merged file may have: a limit on what a false size can make us write.
const HOLES_MAX: u32 = 1 << 20;

/// Merges LTX files of following transactions into one that changes a database as all of them in order do.
///
/// That is: the newest image of each page, no page beyond the final size, and zeros for a page that was cut
/// off or never written and lies inside the final size (SQLite does not write free pages when it grows a file).
///
/// Holds one page per input. The result has the checksum before of the first and timestamp, size and checksum
/// after of the last; node and WAL fields are zero. It carries no checksums if one of the inputs does not.
/// Source: LTX, `Compactor`, which leaves the zeros out.
///
/// # Errors
/// [`LtxError::Input`] where a file is damaged or does not continue the one before it (page size,
/// transactions, checksum); [`LtxError::Invalid`] without inputs or with more than 2^20 pages of zeros;
/// [`LtxError::Io`] from the writer. What was written by then is to be thrown away.
pub fn compact<R: Read, W: Write>(
    inputs: impl IntoIterator<Item = R>,
    writer: W,
    compression: Compression,
) -> Result<Finished<W>, LtxError> {
    compact_as(inputs, writer, compression, &CompactOptions::default())
}

/// What a merged file is to be besides the sum of its inputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CompactOptions {
    /// Size of the database before the first input, where it is known: pages above it that no input has are written as
    /// zeros, so that a reader of the result that knows only pages in files finds every page.
    pub before: Option<PageCount>,
    /// The header that the result is to have instead, but for page size and size of the database.
    pub header: Option<CompactHeader>,
}

/// Fields of a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CompactHeader {
    /// The transactions covered, which may be numbered in another way than those of the inputs.
    pub range: TxidRange,
    /// Milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Where readers are to believe that the frames start in the WAL, in bytes.
    pub wal_offset: u64,
}

/// The same with `options`. A result with another header carries no checksums.
///
/// # Errors
/// As [`compact`].
pub fn compact_as<R: Read, W: Write>(
    inputs: impl IntoIterator<Item = R>,
    writer: W,
    compression: Compression,
    options: &CompactOptions,
) -> Result<Finished<W>, LtxError> {
    let mut inputs = open_all(inputs)?;
    let mut header = merged_header(&inputs)?;
    if let Some(CompactHeader { range, timestamp_ms, wal_offset }) = options.header {
        header = Header { range, timestamp_ms, wal_offset, no_checksum: true, pre_apply: None, ..header };
    }
    let commits: Vec<PageCount> = inputs.iter().map(|input| input.decoder.header().commit).collect();
    let encoder = Encoder::new(writer, header, compression)?;
    let mut merged = Merged::new(encoder, &commits, options.before);
    while let Some(pgno) = inputs.iter().filter_map(|input| input.pgno).min() {
        let newest = inputs.iter().rposition(|input| input.pgno == Some(pgno));
        let newest = newest.expect("the least page number is one of an input");
        if header.commit.contains(pgno) {
            let survives = commits[newest..].iter().all(|commit| commit.contains(pgno));
            merged.page(pgno, survives.then_some(&inputs[newest].page))?;
        }
        for input in inputs.iter_mut().filter(|input| input.pgno == Some(pgno)) {
            input.advance()?;
        }
    }
    merged.holes_up_to(header.commit.get())?;
    let post = finish_all(inputs)?.post_apply.filter(|_| !header.no_checksum);
    merged.encoder.finish(post)
}

/// The file written, and the pages in it that must not be left out.
struct Merged<W> {
    encoder: Encoder<W>,
    /// The last page dealt with, or the smallest size the database had: pages above were not there then.
    done: u32,
    holes: u32,
    zeros: Vec<u8>,
}

impl<W: Write> Merged<W> {
    fn new(encoder: Encoder<W>, commits: &[PageCount], before: Option<PageCount>) -> Self {
        let zeros = vec![0; encoder.header().page_size.len()];
        let done = commits.iter().chain(&before).min().map_or(0, |commit| commit.get());
        Self { encoder, done, holes: 0, zeros }
    }

    /// Writes an image, or zeros where the page was cut off behind it.
    fn page(&mut self, pgno: Pgno, image: Option<&Vec<u8>>) -> Result<(), LtxError> {
        self.holes_up_to(pgno.get() - 1)?;
        self.encoder.page(pgno, image.unwrap_or(&self.zeros))?;
        self.done = self.done.max(pgno.get());
        Ok(())
    }

    /// Writes zeros for the pages not dealt with, up to and including page `last`.
    fn holes_up_to(&mut self, last: u32) -> Result<(), LtxError> {
        let lock = Pgno::lock_page(self.encoder.header().page_size);
        while self.done < last {
            self.done += 1;
            let Some(pgno) = Pgno::new(self.done).filter(|pgno| *pgno != lock) else { continue };
            self.holes += 1;
            if self.holes > HOLES_MAX {
                let why = format!("more than {HOLES_MAX} pages have no content in any of the files");
                return Err(LtxError::invalid_page(pgno, why));
            }
            self.encoder.page(pgno, &self.zeros)?;
        }
        Ok(())
    }
}

/// A file being merged, and its page that is next.
struct Input<R> {
    number: usize,
    decoder: Decoder<R>,
    pgno: Option<Pgno>,
    page: Vec<u8>,
}

impl<R: Read> Input<R> {
    fn advance(&mut self) -> Result<(), LtxError> {
        self.pgno = self.decoder.next_page(&mut self.page).map_err(|e| in_input(self.number, e))?;
        Ok(())
    }
}

fn in_input(input: usize, source: LtxError) -> LtxError {
    LtxError::Input { input, source: Box::new(source) }
}

fn open_all<R: Read>(readers: impl IntoIterator<Item = R>) -> Result<Vec<Input<R>>, LtxError> {
    let mut inputs = Vec::new();
    for (number, reader) in readers.into_iter().enumerate() {
        let decoder = Decoder::new(reader).map_err(|e| in_input(number, e))?;
        let mut input = Input { number, decoder, pgno: None, page: Vec::new() };
        input.advance()?;
        inputs.push(input);
    }
    Ok(inputs)
}

fn merged_header<R: Read>(inputs: &[Input<R>]) -> Result<Header, LtxError> {
    let (Some(first), Some(last)) = (inputs.first(), inputs.last()) else {
        return Err(LtxError::invalid("there are no files to compact"));
    };
    for (number, pair) in inputs.windows(2).enumerate() {
        check_continues(pair[0].decoder.header(), pair[1].decoder.header())
            .map_err(|(offset, why)| in_input(number + 1, LtxError::corrupt(offset, why)))?;
    }
    let (first, last) = (first.decoder.header(), last.decoder.header());
    let no_checksum = inputs.iter().any(|input| input.decoder.header().no_checksum);
    let range = TxidRange::new(first.range.min(), last.range.max())
        .ok_or_else(|| LtxError::invalid("the last file ends before the first begins"))?;
    Ok(Header {
        no_checksum,
        page_size: last.page_size,
        commit: last.commit,
        range,
        timestamp_ms: last.timestamp_ms,
        pre_apply: first.pre_apply.filter(|_| !no_checksum),
        wal_offset: 0,
        wal_size_bytes: 0,
        wal_salt: (0, 0),
        node_id: NodeId::new(0),
    })
}

/// Files may overlap, but leave no gap and do not go back.
fn check_continues(before: &Header, after: &Header) -> Result<(), (u64, String)> {
    if before.page_size != after.page_size {
        let why = format!("page size {} after one of {}", after.page_size, before.page_size);
        return Err((8, why));
    }
    let gap = after.range.min().get() - 1 > before.range.max().get();
    if gap || after.range.min() < before.range.min() || after.range.max() < before.range.max() {
        let (range, last) = (after.range, before.range.max());
        let why = format!("transactions {} to {} do not continue {last}", range.min(), range.max());
        return Err((16, why));
    }
    Ok(())
}

/// Checks all files to their end; returns the trailer of the last.
fn finish_all<R: Read>(inputs: Vec<Input<R>>) -> Result<Trailer, LtxError> {
    let mut before: Option<(Header, Trailer)> = None;
    for input in inputs {
        let header = *input.decoder.header();
        let trailer = input.decoder.finish().map_err(|e| in_input(input.number, e))?;
        if let Some((prev, prev_trailer)) = before {
            let adjacent = header.range.min().get() - 1 == prev.range.max().get();
            let known = header.pre_apply.zip(prev_trailer.post_apply);
            if let Some((pre, post)) = known.filter(|(pre, post)| adjacent && pre != post) {
                let why = format!("checksum before is {pre}, the file before it ends with {post}");
                return Err(in_input(input.number, LtxError::corrupt(40, why)));
            }
        }
        before = Some((header, trailer));
    }
    before.map(|(_, trailer)| trailer).ok_or_else(|| LtxError::invalid("there are no files to compact"))
}
