use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How far what a node fetches from another one is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CopyProgress {
    /// Bytes of the databases that are in place, fetched or there before.
    pub bytes: u64,
    /// Bytes of all databases that are compared.
    pub total_bytes: u64,
    /// How long it has taken so far.
    pub elapsed: Duration,
}

impl CopyProgress {
    /// Bytes a second.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64().max(0.001)
    }

    /// What is left at that rate; `None` before anything is there.
    pub fn left(&self) -> Option<Duration> {
        let rest = self.total_bytes.saturating_sub(self.bytes) as f64;
        (self.bytes > 0).then(|| Duration::try_from_secs_f64(rest / self.rate()).unwrap_or(Duration::MAX))
    }
}

impl fmt::Display for CopyProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        let (bytes, total, rate) = (self.bytes as f64, self.total_bytes as f64, self.rate());
        write!(f, "{:.1} of {:.1} MiB, {:.1} MiB a second", mib(bytes), mib(total), mib(rate))?;
        match self.left() {
            Some(left) => write!(f, ", {} s left", left.as_secs()),
            None => Ok(()),
        }
    }
}

/// What is being fetched now, counted by those who fetch.
#[derive(Default, Debug)]
pub struct Copying {
    since: Mutex<Option<Instant>>,
    under_way: AtomicU64,
    bytes: AtomicU64,
    total_bytes: AtomicU64,
}

/// One copy under way, of one database or of them all; it ends with this.
#[derive(Debug)]
pub struct CopyUnderWay(Arc<Copying>);

impl Copying {
    /// A copy begins. The first one after a pause counts anew.
    pub fn begin(self: &Arc<Self>) -> CopyUnderWay {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if self.under_way.fetch_add(1, Ordering::SeqCst) == 0 {
            *since = Some(Instant::now());
            self.bytes.store(0, Ordering::SeqCst);
            self.total_bytes.store(0, Ordering::SeqCst);
        }
        CopyUnderWay(self.clone())
    }

    /// How far it is; `None` while nothing is fetched.
    pub fn progress(&self) -> Option<CopyProgress> {
        let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = since.filter(|_| self.under_way.load(Ordering::SeqCst) > 0)?.elapsed();
        let total_bytes = self.total_bytes.load(Ordering::SeqCst);
        let bytes = self.bytes.load(Ordering::SeqCst).min(total_bytes);
        Some(CopyProgress { bytes, total_bytes, elapsed })
    }
}

impl CopyUnderWay {
    /// Another database, of this size, is to be compared.
    pub fn add_total(&self, bytes: u64) {
        self.0.total_bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    /// So many bytes of it are in place.
    pub fn add(&self, bytes: u64) {
        self.0.bytes.fetch_add(bytes, Ordering::SeqCst);
    }
}

impl Drop for CopyUnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_of_all_copies_under_way_and_ends_with_the_last() {
        let copying = Arc::<Copying>::default();
        assert_eq!(copying.progress(), None);
        let (first, second) = (copying.begin(), copying.begin());
        first.add_total(100);
        second.add_total(300);
        first.add(100);
        let progress = copying.progress().unwrap();
        assert_eq!((progress.bytes, progress.total_bytes), (100, 400));
        let half = CopyProgress { bytes: 2 << 20, total_bytes: 4 << 20, elapsed: Duration::from_secs(2) };
        assert_eq!(half.to_string(), "2.0 of 4.0 MiB, 1.0 MiB a second, 2 s left");
        drop((first, second));
        assert_eq!(copying.progress(), None);
        copying.begin().add_total(7);
        let again = copying.begin();
        assert_eq!(copying.progress().map(|progress| progress.total_bytes), Some(0));
        drop(again);
    }
}
