use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Waits between attempts to connect: doubling from 100 ms to 2 s, each shortened at random by up to half.
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LAST: Duration = Duration::from_secs(2);

    pub(super) fn new() -> Self {
        Self { next: Self::FIRST }
    }

    /// After a success the next wait is short again.
    pub(super) fn reset(&mut self) {
        self.next = Self::FIRST;
    }

    /// How long to wait now.
    pub(super) fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(Self::LAST);
        // `RandomState` is seeded anew each time: enough to keep replicas from knocking in step.
        let random = RandomState::new().build_hasher().finish();
        wait - wait.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64 / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_between_half_of_the_first_and_the_last() {
        let mut backoff = Backoff::new();
        for _ in 0..20 {
            let wait = backoff.next();
            assert!(wait >= Backoff::FIRST / 2 && wait <= Backoff::LAST, "{wait:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= Backoff::FIRST);
    }
}
