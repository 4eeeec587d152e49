use std::fmt;
use std::str::FromStr;

use super::{Checksum, Txid};

/// Where a database stands: its last transaction and its checksum after it.
///
/// Printed as `txid/checksum`, 33 characters; a database that has no transaction yet is
/// `0000000000000000/8000000000000000`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pos {
    /// The last transaction, `None` before the first.
    pub txid: Option<Txid>,
    /// The checksum of all pages after it.
    pub checksum: Checksum,
}

impl Pos {
    /// The position before the first transaction.
    pub const ZERO: Pos = Pos { txid: None, checksum: Checksum::EMPTY };

    /// The position after `txid`.
    pub fn new(txid: Txid, checksum: Checksum) -> Self {
        Self { txid: Some(txid), checksum }
    }

    /// The last transaction as a number, 0 before the first.
    pub fn txid_or_zero(self) -> u64 {
        self.txid.map_or(0, Txid::get)
    }

    /// The number the next transaction will have.
    pub fn next_txid(self) -> Txid {
        match self.txid {
            None => Txid::FIRST,
            Some(txid) => txid.checked_add(1).expect("2^64 transactions cannot have happened"),
        }
    }
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}/{}", self.txid_or_zero(), self.checksum)
    }
}

impl fmt::Debug for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not `txid/checksum`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("position {0:?} is not of the form txid/checksum")]
pub struct InvalidPos(pub String);

impl FromStr for Pos {
    type Err = InvalidPos;

    fn from_str(text: &str) -> Result<Self, InvalidPos> {
        let bad = || InvalidPos(text.to_owned());
        let (txid, checksum) = text.split_once('/').ok_or_else(bad)?;
        if txid.len() != 16 || !txid.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let number = u64::from_str_radix(txid, 16).map_err(|_| bad())?;
        Ok(Self { txid: Txid::new(number), checksum: checksum.parse().map_err(|_| bad())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for pos in [Pos::ZERO, Pos::new(Txid::new(0x2a).unwrap(), Checksum::new(7))] {
            assert_eq!(pos.to_string().parse(), Ok(pos));
        }
    }
}
