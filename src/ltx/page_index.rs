//! Single pages of an LTX file, without reading the rest of it.

use super::encoder::{FRAME_FLAG_SIZE, FRAME_HEADER_SIZE};
use super::error::LtxError;
use super::header::{TRAILER_SIZE, Trailer, be32, be64, checksum_field};
use crate::types::Pgno;

/// Bytes at the end of a file that say how long its page index is: the size of the index (8), the trailer (16).
pub const INDEX_END_SIZE: usize = 8 + TRAILER_SIZE;

/// Where the frame of a page is in an LTX file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameAt {
    /// The page.
    pub pgno: Pgno,
    /// Where its frame begins, in bytes.
    pub offset: u64,
    /// Size of the frame in bytes.
    pub size_bytes: u64,
}

/// Size in bytes of the page index without its size field, and the trailer, from the last bytes of a file.
///
/// # Errors
/// Where the trailer is none.
pub fn index_end(end: &[u8; INDEX_END_SIZE]) -> Result<(u64, Trailer), LtxError> {
    let post_apply = checksum_field(8, be64(end, 8))?;
    Ok((be64(end, 0), Trailer { post_apply, file_checksum: be64(end, 16) }))
}

/// The frames that a page index names, in the order of their pages; `index` is without its size field.
///
/// # Errors
/// Where it is no page index.
pub fn parse_page_index(index: &[u8]) -> Result<Vec<FrameAt>, LtxError> {
    let (mut rest, mut frames) = (index, Vec::new());
    loop {
        let pgno = take_uvarint(&mut rest, index.len())?;
        if pgno == 0 {
            return Ok(frames);
        }
        let pgno = u32::try_from(pgno).ok().and_then(Pgno::new);
        let pgno = pgno.ok_or_else(|| LtxError::corrupt(0, "the page index names no page"))?;
        let offset = take_uvarint(&mut rest, index.len())?;
        let size_bytes = take_uvarint(&mut rest, index.len())?;
        frames.push(FrameAt { pgno, offset, size_bytes });
    }
}

/// Decodes one frame into `page`, which is as large as a page, and gives its number.
///
/// # Errors
/// Where the frame is damaged, or of the format of version 3a, which this program never writes.
pub fn decode_frame(frame: &[u8], page: &mut [u8]) -> Result<Pgno, LtxError> {
    if frame.len() < FRAME_HEADER_SIZE {
        return Err(LtxError::CutShort { offset: frame.len() as u64, inside: "header of a page" });
    }
    let pgno = Pgno::new(be32(frame, 0)).ok_or_else(|| LtxError::corrupt(0, "page number 0"))?;
    let flags = u16::from_be_bytes([frame[4], frame[5]]);
    if flags != FRAME_FLAG_SIZE {
        let why = format!("flags {flags:04x} of page {pgno} are not those of a block");
        return Err(LtxError::Unsupported { offset: 4, why });
    }
    let block = &frame[FRAME_HEADER_SIZE..];
    if be32(frame, 6) as usize != block.len() {
        return Err(LtxError::corrupt_page(6, pgno, "the size of the block is not that of the index"));
    }
    match lz4_flex::block::decompress_into(block, page) {
        Ok(got) if got == page.len() => Ok(pgno),
        Ok(got) => Err(LtxError::corrupt_page(
            FRAME_HEADER_SIZE as u64,
            pgno,
            format!("decompresses to {got} bytes, the page size is {}", page.len()),
        )),
        Err(error) => {
            Err(LtxError::corrupt_page(FRAME_HEADER_SIZE as u64, pgno, format!("lz4 block: {error}")))
        }
    }
}

/// Takes a varint (7 bits per byte, low bits first) off the front of `rest`; `size` is that of the whole index.
fn take_uvarint(rest: &mut &[u8], size: usize) -> Result<u64, LtxError> {
    let (mut number, mut shift) = (0u64, 0);
    loop {
        let offset = (size - rest.len()) as u64;
        let Some((byte, after)) = rest.split_first() else {
            return Err(LtxError::CutShort { offset, inside: "page index" });
        };
        *rest = after;
        if shift > 63 {
            return Err(LtxError::corrupt(offset, "a number of the page index is too large"));
        }
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ltx::{Compression, Encoder, Header};
    use crate::types::{Checksum, PageCount, PageSize, Txid, TxidRange};

    #[test]
    fn each_page_is_found_through_the_index_at_the_end() {
        let page_size = PageSize::new(512).unwrap();
        let range = TxidRange::single(Txid::new(7).unwrap());
        for compression in [Compression::Lz4, Compression::Stored] {
            let header = Header::new(page_size, PageCount::new(300), range, Some(Checksum::new(5)));
            let mut encoder = Encoder::new(Vec::new(), header, compression).unwrap();
            for pgno in [1u32, 2, 200, 300] {
                encoder.page(Pgno::new(pgno).unwrap(), &[pgno as u8; 512]).unwrap();
            }
            let file = encoder.finish(Some(Checksum::new(9))).unwrap().writer;
            let end = file.last_chunk::<INDEX_END_SIZE>().unwrap();
            let (size, trailer) = index_end(end).unwrap();
            assert_eq!(trailer.post_apply, Some(Checksum::new(9)));
            let start = file.len() - INDEX_END_SIZE - size as usize;
            let index = &file[start..start + size as usize];
            let frames = parse_page_index(index).unwrap();
            assert_eq!(frames.iter().map(|frame| frame.pgno.get()).collect::<Vec<_>>(), [1, 2, 200, 300]);
            let mut page = [0; 512];
            for FrameAt { pgno, offset, size_bytes } in frames {
                let frame = &file[offset as usize..(offset + size_bytes) as usize];
                assert_eq!(decode_frame(frame, &mut page).unwrap(), pgno);
                assert_eq!(page, [pgno.get() as u8; 512]);
                assert!(decode_frame(&frame[..frame.len() - 1], &mut page).is_err());
            }
            for cut in 0..index.len() {
                assert!(parse_page_index(&index[..cut]).is_err(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn numbers_that_fit_nowhere_are_refused() {
        assert!(parse_page_index(&[0xff; 16]).is_err());
        assert!(parse_page_index(&[0xff, 0xff, 0xff, 0xff, 0x7f, 1, 1, 0]).is_err());
    }
}
