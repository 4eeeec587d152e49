//! Keeps the log readable: what happens again and again, such as an application that is refused, is told of once in a while.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

/// The same gets another line after this.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Different things remembered.
const REMEMBERED_MAX: usize = 1024;

/// When something last got a line, and how often it happened since.
#[derive(Default)]
struct Lines(HashMap<u64, (Instant, u64)>);

static LINES: LazyLock<Mutex<Lines>> = LazyLock::new(Mutex::default);

/// Whether a line is due: how often the same happened without a line since the last one, `None` where none is due now.
pub fn due(what: impl Hash) -> Option<u64> {
    let mut lines = LINES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    lines.due(what, Instant::now())
}

impl Lines {
    fn due(&mut self, what: impl Hash, now: Instant) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        let key = hasher.finish();
        if let Some((at, suppressed)) = self.0.get_mut(&key) {
            if now.saturating_duration_since(*at) < AGAIN_AFTER {
                *suppressed += 1;
                return None;
            }
            *at = now;
            return Some(std::mem::take(suppressed));
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
        let (mut lines, now) = (Lines::default(), Instant::now());
        assert_eq!(lines.due(("a", 1), now), Some(0));
        assert_eq!(lines.due(("b", 1), now), Some(0));
        assert_eq!((lines.due(("a", 1), now), lines.due(("a", 1), now)), (None, None));
        assert_eq!(lines.due(("a", 1), now + AGAIN_AFTER), Some(2));
        for other in 0..2 * REMEMBERED_MAX {
            let _due = lines.due(("many", other), now);
        }
        assert!(lines.0.len() <= REMEMBERED_MAX);
    }
}
