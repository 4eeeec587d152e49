//! Keeps the log readable: an application that is refused again and again is told of once in a while.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

/// The same is said again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Different things remembered.
const REMEMBERED_MAX: usize = 1024;

/// What was said, and how often it happened since.
#[derive(Default)]
struct Said(HashMap<u64, (Instant, u64)>);

static SAID: LazyLock<Mutex<Said>> = LazyLock::new(Mutex::default);

/// Whether a line is due: how often the same happened unsaid before, `None` where it is to stay unsaid now.
pub(super) fn due(what: impl Hash) -> Option<u64> {
    let mut said = SAID.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    said.due(what, Instant::now())
}

impl Said {
    fn due(&mut self, what: impl Hash, now: Instant) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        let key = hasher.finish();
        if let Some((at, unsaid)) = self.0.get_mut(&key) {
            if now.saturating_duration_since(*at) < AGAIN_AFTER {
                *unsaid += 1;
                return None;
            }
            *at = now;
            return Some(std::mem::take(unsaid));
        }
        if self.0.len() >= REMEMBERED_MAX {
            self.0.retain(|_, (at, _)| now.saturating_duration_since(*at) < AGAIN_AFTER);
        }
        if self.0.len() < REMEMBERED_MAX {
            self.0.insert(key, (now, 0));
        }
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_in_a_while_with_how_often_it_happened() {
        let (mut said, now) = (Said::default(), Instant::now());
        assert_eq!(said.due(("a", 1), now), Some(0));
        assert_eq!(said.due(("b", 1), now), Some(0));
        assert_eq!((said.due(("a", 1), now), said.due(("a", 1), now)), (None, None));
        assert_eq!(said.due(("a", 1), now + AGAIN_AFTER), Some(2));
        for other in 0..2 * REMEMBERED_MAX {
            let _due = said.due(("many", other), now);
        }
        assert!(said.0.len() <= REMEMBERED_MAX);
    }
}
