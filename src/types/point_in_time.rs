use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{Timestamp, Txid};

/// A moment of a database that somebody asks for.
///
/// Written as a transaction (`000000000000002a`), a time (RFC 3339: `2026-11-28T10:00:00Z`), or how long ago (`5m ago`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PointInTime {
    /// After this transaction.
    Txid(Txid),
    /// With all transactions committed at or before this time.
    Time(Timestamp),
    /// The same for a time so long before now.
    Ago(Duration),
}

/// A text that names no point in time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no transaction (16 hex digits), no time such as 2026-11-28T10:00:00Z, and no \"5m ago\"")]
pub struct InvalidPointInTime(String);

impl PointInTime {
    /// The same with a time instead of how long ago, as of `now`.
    pub fn absolute(self, now: Timestamp) -> Self {
        match self {
            Self::Ago(ago) => {
                let ms = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
                Self::Time(Timestamp::from_ms(now.ms().saturating_sub(ms)))
            }
            other => other,
        }
    }
}

impl fmt::Display for PointInTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Txid(txid) => txid.fmt(f),
            Self::Time(time) => time.fmt(f),
            Self::Ago(ago) => write!(f, "{}ms ago", ago.as_millis()),
        }
    }
}

impl FromStr for PointInTime {
    type Err = InvalidPointInTime;

    fn from_str(text: &str) -> Result<Self, InvalidPointInTime> {
        let bad = || InvalidPointInTime(text.chars().take(80).collect());
        if let Some(ago) = text.strip_suffix("ago") {
            return parse_ago(ago.trim()).map(Self::Ago).ok_or_else(bad);
        }
        if let Ok(txid) = text.parse() {
            return Ok(Self::Txid(txid));
        }
        text.parse().map(Self::Time).map_err(|_| bad())
    }
}

/// `1h30m`, `5 m`, `90s`, `250ms`, `2d`.
fn parse_ago(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, Duration::ZERO);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let unit_ms = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(unit_ms)?))?;
        rest = rest[letters..].trim_start();
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_times_and_ages_are_told_apart() {
        let txid = PointInTime::Txid(Txid::new(0x2a).unwrap());
        assert_eq!("000000000000002a".parse(), Ok(txid));
        assert_eq!("1970-01-01T00:00:01Z".parse(), Ok(PointInTime::Time(Timestamp::from_ms(1000))));
        for (text, ms) in
            [("5m ago", 300_000), ("1h30m ago", 5_400_000), ("90s ago", 90_000), ("2 d ago", 172_800_000)]
        {
            assert_eq!(text.parse(), Ok(PointInTime::Ago(Duration::from_millis(ms))), "{text}");
        }
        let now = Timestamp::from_ms(400_000);
        let ago: PointInTime = "5m ago".parse().unwrap();
        assert_eq!(ago.absolute(now), PointInTime::Time(Timestamp::from_ms(100_000)));
        for point in [txid, ago, PointInTime::Time(now)] {
            assert_eq!(point.to_string().parse(), Ok(point));
        }
    }

    #[test]
    fn what_names_no_point_is_refused() {
        for text in [
            "",
            "ago",
            " ago",
            "5 ago",
            "m ago",
            "5y ago",
            "2a",
            "0000000000000000",
            "-5m ago",
            "yesterday",
            "99999999999999999999s ago",
        ] {
            assert!(text.parse::<PointInTime>().is_err(), "{text}");
        }
    }
}
