use std::io::{Read, Write};

use super::decoder::Decoder;
use super::encoder::{Compression, Encoder, Finished};
use super::error::LtxError;
use super::header::{Header, Trailer};
use crate::types::{NodeId, Pgno};

/// Merges LTX files of following transactions into one: the newest image of each page, no page beyond the
/// final size.
///
/// Holds one page per input. The result has the checksum before of the first and timestamp, size and checksum
/// after of the last; node and WAL fields are zero. It carries no checksums if one of the inputs does not.
/// Source: LTX, `Compactor`.
///
/// # Errors
/// [`LtxError::Input`] where a file is damaged or does not continue the one before it (page size,
/// transactions, checksum); [`LtxError::Invalid`] without inputs; [`LtxError::Io`] from the writer.
/// What was written by then is to be thrown away.
pub fn compact<R: Read, W: Write>(
    inputs: impl IntoIterator<Item = R>,
    writer: W,
    compression: Compression,
) -> Result<Finished<W>, LtxError> {
    let mut inputs = open_all(inputs)?;
    let header = merged_header(&inputs)?;
    let mut encoder = Encoder::new(writer, header, compression)?;
    while let Some(pgno) = inputs.iter().filter_map(|input| input.pgno).min() {
        let newest = inputs.iter().rposition(|input| input.pgno == Some(pgno));
        if let Some(newest) = newest.filter(|_| header.commit.contains(pgno)) {
            encoder.page(pgno, &inputs[newest].page)?;
        }
        for input in inputs.iter_mut().filter(|input| input.pgno == Some(pgno)) {
            input.advance()?;
        }
    }
    let post = finish_all(inputs)?.post_apply.filter(|_| !header.no_checksum);
    encoder.finish(post)
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
    let range = crate::types::TxidRange::new(first.range.min(), last.range.max())
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
