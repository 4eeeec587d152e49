use crc_fast::{CrcAlgorithm, Digest};

use crate::types::{Checksum, Pgno};

const FLAG: u64 = 1 << 63;

/// The running CRC-64/GO-ISO of a file.
pub(super) struct FileDigest(Digest);

impl FileDigest {
    pub(super) fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc64GoIso))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The file checksum so far, bit 63 set.
    pub(super) fn value(&self) -> u64 {
        self.0.finalize() | FLAG
    }
}

/// The checksum of one page: its part in the checksum of its database.
///
/// 2^63 | CRC-64/GO-ISO(page number as 4 bytes big-endian, page). Source: LTX, `ChecksumPage`.
pub fn page_checksum(pgno: Pgno, page: &[u8]) -> Checksum {
    let mut digest = Digest::new(CrcAlgorithm::Crc64GoIso);
    digest.update(&pgno.get().to_be_bytes());
    digest.update(page);
    Checksum::new(digest.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_is_go_iso() {
        let mut digest = FileDigest::new();
        digest.update(b"12345");
        digest.update(b"6789");
        assert_eq!(digest.value(), 0xB909_56C7_75A4_1001);
    }

    #[test]
    fn a_page_checksum_covers_its_number() {
        let page = [7u8; 512];
        let one = page_checksum(Pgno::FIRST, &page);
        let two = page_checksum(Pgno::new(2).unwrap(), &page);
        assert_ne!(one, two);
        assert_eq!(one.get() >> 63, 1);
    }
}
