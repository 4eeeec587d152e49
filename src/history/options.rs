use std::time::Duration;

/// What is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HistoryOptions {
    /// For how long every point is kept.
    pub keep: Duration,
    /// What all files may take together, in bytes.
    pub bytes_max: u64,
    /// Disk space that commits need, in bytes; twice that is left free.
    pub disk_reserve_bytes: u64,
}
