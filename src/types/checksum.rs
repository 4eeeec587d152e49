use std::fmt;
use std::ops::BitXor;
use std::str::FromStr;

/// Checksum of a page or of a whole database as LTX defines it; bit 63 is always set.
///
/// Page: 2^63 | CRC-64/GO-ISO(pgno as 4 bytes big-endian, page). Database: 2^63 | XOR of its pages,
/// the lock page left out; an empty database is 2^63. Source: LTX, `postApplyChecksum`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Checksum(u64);

impl Checksum {
    const FLAG: u64 = 1 << 63;

    /// The checksum of a database without pages.
    pub const EMPTY: Checksum = Checksum(Self::FLAG);

    /// A checksum with bit 63 set, whatever the argument's.
    pub fn new(bits: u64) -> Self {
        Self(bits | Self::FLAG)
    }

    /// The 64 bits, bit 63 set.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// Adds a page to, or takes a page out of, a database's checksum.
impl BitXor for Checksum {
    type Output = Checksum;

    fn bitxor(self, other: Checksum) -> Checksum {
        Checksum::new(self.0 ^ other.0)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Checksum {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("checksum {text:?} is not 16 hex digits with the top bit set");
        if text.len() != 16 {
            return Err(bad());
        }
        match u64::from_str_radix(text, 16) {
            Ok(bits) if bits & Self::FLAG != 0 => Ok(Self(bits)),
            _ => Err(bad()),
        }
    }
}
