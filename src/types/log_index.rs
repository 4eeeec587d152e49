use std::fmt;

/// Position of an entry in the cluster's log, from 1; 0 stands before the first entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LogIndex(u64);

impl LogIndex {
    /// Before the first entry.
    pub const ZERO: LogIndex = LogIndex(0);

    /// The index `value`.
    pub fn new(value: u64) -> Self {
        Self(value)
    }

    /// The number itself.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The index of the entry behind this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for LogIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
