use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Size, Time};

/// Section `[history]` as one source gives it; key `some_key` is the option `--history-some-key`.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PartialHistory {
    /// For how long earlier states are kept.
    pub keep: Option<Time>,
    /// What they may take.
    pub bytes: Option<Size>,
}

impl PartialHistory {
    /// These settings, and where they say nothing those of `below`.
    pub fn or(self, below: Self) -> Self {
        Self { keep: self.keep.or(below.keep), bytes: self.bytes.or(below.bytes) }
    }
}

/// What is kept of earlier states of databases.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HistorySettings {
    /// For how long; zero: nothing is kept.
    pub keep: Duration,
    /// What all of it may take on a node, in bytes.
    pub bytes_max: u64,
}

impl HistorySettings {
    const KEEP: Duration = Duration::from_secs(3600);
    const BYTES_MAX: u64 = 1 << 30;

    /// Fills in the defaults.
    pub fn resolve(partial: &PartialHistory) -> Self {
        Self {
            keep: partial.keep.map_or(Self::KEEP, Time::get),
            bytes_max: partial.bytes.map_or(Self::BYTES_MAX, Size::bytes),
        }
    }

    /// Whether anything is kept.
    pub fn is_on(&self) -> bool {
        !self.keep.is_zero() && self.bytes_max > 0
    }
}
