use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Time;

/// A size as it stands in a configuration: `64MiB`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(u64);

/// As they are written; the others that [`FromStr`] understands mean the same: people write `MB` and mean this.
const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl Size {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no size such as 512KiB, 64MB or 1.5G");
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = unit.trim().to_ascii_lowercase();
        let is = |name: &str| {
            let (first, name) = (&name[..1], name.to_ascii_lowercase());
            unit == name || unit == first.to_ascii_lowercase() || unit == name.replace('i', "")
        };
        // A bare number says nothing: some mean bytes, some what the key is usually written in.
        let (_, shift) = UNITS.iter().find(|(name, _)| is(name)).ok_or_else(bad)?;
        if let Ok(number) = number.parse::<u64>() {
            return number.checked_mul(1 << shift).map(Self).ok_or_else(bad);
        }
        let bytes = number.parse::<f64>().map_err(|_| bad())? * (1u64 << shift) as f64;
        if bytes < u64::MAX as f64 { Ok(Self(bytes.round() as u64)) } else { Err(bad()) }
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = UNITS.iter().find(|(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= *shift);
        let (unit, shift) = fits.unwrap_or(&("B", 0));
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

/// Section `[limits]` as one source gives it; key `some_key` is the option `--limits-some-key`.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PartialLimits {
    /// What one database may have committed beyond the log.
    pub uncommitted: Option<Size>,
    /// Disk space that is kept free.
    pub disk_reserve: Option<Size>,
    /// What of the log is kept for nodes that lag behind.
    pub log_keep: Option<Size>,
    /// For how long at most.
    pub log_keep_age: Option<Time>,
    /// Time between two comparisons of the databases with their checksums.
    pub scrub_every: Option<Time>,
    /// How long a write lease keeps the primary where it is.
    pub write_lease: Option<Time>,
}

impl PartialLimits {
    /// These settings, and where they say nothing those of `below`.
    pub fn or(self, below: Self) -> Self {
        Self {
            uncommitted: self.uncommitted.or(below.uncommitted),
            disk_reserve: self.disk_reserve.or(below.disk_reserve),
            log_keep: self.log_keep.or(below.log_keep),
            log_keep_age: self.log_keep_age.or(below.log_keep_age),
            scrub_every: self.scrub_every.or(below.scrub_every),
            write_lease: self.write_lease.or(below.write_lease),
        }
    }
}

/// What bounds a node's writers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LimitSettings {
    /// What one database may have committed beyond the log before its writers wait, in bytes.
    pub uncommitted_bytes_max: u64,
    /// Disk space below which commits are refused, in bytes; of a small disk at most a twentieth.
    pub disk_reserve_bytes: u64,
    /// Log that is kept for nodes that lag behind, in bytes, its large change sets included.
    pub log_keep_bytes: u64,
    /// How long it is kept at most.
    pub log_keep_age: Duration,
    /// Between two comparisons of the databases with their checksums; zero: only one at the start.
    pub scrub_every: Duration,
    /// How long a write lease keeps the primary where it is, unless it is given back before.
    pub write_lease: Duration,
}

impl LimitSettings {
    /// Default of [`log_keep_bytes`](Self::log_keep_bytes).
    pub const LOG_KEEP_BYTES: u64 = 256 << 20;
    /// Default of [`log_keep_age`](Self::log_keep_age).
    pub const LOG_KEEP_AGE: Duration = Duration::from_secs(24 * 3600);
    /// Default of [`scrub_every`](Self::scrub_every).
    pub const SCRUB_EVERY: Duration = Duration::from_secs(24 * 3600);
    /// Default of [`write_lease`](Self::write_lease), as in LiteFS.
    pub const WRITE_LEASE: Duration = Duration::from_secs(30);

    /// Fills in the defaults.
    pub fn resolve(partial: &PartialLimits) -> Self {
        const DEFAULT: u64 = 64 << 20;
        Self {
            uncommitted_bytes_max: partial.uncommitted.map_or(DEFAULT, Size::bytes),
            disk_reserve_bytes: partial.disk_reserve.map_or(DEFAULT, Size::bytes),
            log_keep_bytes: partial.log_keep.map_or(Self::LOG_KEEP_BYTES, Size::bytes),
            log_keep_age: partial.log_keep_age.map_or(Self::LOG_KEEP_AGE, Time::get),
            scrub_every: partial.scrub_every.map_or(Self::SCRUB_EVERY, Time::get),
            write_lease: partial.write_lease.map_or(Self::WRITE_LEASE, Time::get),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_survive_being_written() {
        for (text, bytes) in
            [("0B", 0), ("64MiB", 64 << 20), ("3KiB", 3072), ("1TiB", 1 << 40), ("1001B", 1001)]
        {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.bytes(), size.to_string().as_str()), (bytes, text));
        }
        for (text, bytes) in [("64MB", 64 << 20), ("1g", 1 << 30), ("1.5GiB", 3 << 29), ("8 kb", 8192)] {
            assert_eq!(text.parse::<Size>().map(Size::bytes), Ok(bytes), "{text}");
        }
        for bad in ["", "MiB", "64", "1.2.3M", "-1B", "99999999TiB", "9e9TiB", "1MBit"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
