use crate::types::Pgno;

/// The index of an LTX file while its pages pass: where the frame of each page is.
///
/// Per page three varints (7 bits per byte, low bits first): page number, offset of the frame, size of the
/// frame; then a 0; then the size of all this in 8 bytes big-endian. Source: LTX, `encodePageIndex`.
pub(super) struct Index {
    bytes: Vec<u8>,
}

impl Index {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    pub(super) fn add(&mut self, pgno: Pgno, offset: u64, size_bytes: u64) {
        for number in [u64::from(pgno.get()), offset, size_bytes] {
            put_uvarint(&mut self.bytes, number);
        }
    }

    /// The index as it stands in the file, end mark and size included.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.push(0);
        let size = self.bytes.len() as u64;
        self.bytes.extend_from_slice(&size.to_be_bytes());
        self.bytes
    }
}

fn put_uvarint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_varints_a_zero_and_its_size() {
        let mut index = Index::new();
        index.add(Pgno::FIRST, 100, 300);
        assert_eq!(index.finish(), [1, 100, 0xac, 2, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
    }
}
