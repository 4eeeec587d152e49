use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

/// Number of a captured commit of one database: 1 for the first, +1 for each later one.
///
/// Printed as 16 lower-case hex digits. Source: LTX, `minTXID`/`maxTXID`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Txid(NonZeroU64);

impl Txid {
    /// The first transaction of a database.
    pub const FIRST: Txid = Txid(NonZeroU64::MIN);

    /// A transaction number, or `None` for 0, which names no transaction.
    pub fn new(value: u64) -> Option<Self> {
        NonZeroU64::new(value).map(Self)
    }

    /// The number itself.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// The number `count` transactions later, or `None` past 2^64-1.
    pub fn checked_add(self, count: u64) -> Option<Self> {
        self.0.checked_add(count).map(Self)
    }
}

impl fmt::Display for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not 16 lower-case hex digits naming a transaction.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("txid {0:?} is not 16 hex digits above zero")]
pub struct InvalidTxid(pub String);

impl FromStr for Txid {
    type Err = InvalidTxid;

    fn from_str(text: &str) -> Result<Self, InvalidTxid> {
        let bad = || InvalidTxid(text.to_owned());
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        u64::from_str_radix(text, 16).ok().and_then(Txid::new).ok_or_else(bad)
    }
}

/// The transactions one change set covers, both ends included.
///
/// Holds: `min <= max`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TxidRange {
    min: Txid,
    max: Txid,
}

impl TxidRange {
    /// The range `min..=max`, or `None` where `min > max`.
    pub fn new(min: Txid, max: Txid) -> Option<Self> {
        (min <= max).then_some(Self { min, max })
    }

    /// The range of one transaction.
    pub fn single(txid: Txid) -> Self {
        Self { min: txid, max: txid }
    }

    /// The first transaction covered.
    pub fn min(self) -> Txid {
        self.min
    }

    /// The last transaction covered.
    pub fn max(self) -> Txid {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        let txid = Txid::new(0x2a).unwrap();
        assert_eq!(txid.to_string(), "000000000000002a");
        assert_eq!("000000000000002a".parse(), Ok(txid));
    }

    #[test]
    fn zero_and_short_texts_are_refused() {
        for text in ["0000000000000000", "2a", "+00000000000002a", ""] {
            assert!(text.parse::<Txid>().is_err(), "{text}");
        }
    }
}
