//! How far a node that starts has to get before it serves what the cluster has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The last entry that the first leader heard of in this run had committed: before this node has it, what it shows may be
/// any older state, as after its data directory was emptied.
#[derive(Clone, Debug, Default)]
pub(super) struct FirstCommitted(Arc<AtomicU64>);

impl FirstCommitted {
    /// A leader says that it has committed everything up to `index`.
    pub fn heard(&self, index: u64) {
        if index != 0 {
            // The first one counts.
            let _ = self.0.compare_exchange(0, index, Ordering::SeqCst, Ordering::SeqCst);
        }
    }

    /// That entry; 0 before a leader was heard of.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_of_a_leader_counts() {
        let committed = FirstCommitted::default();
        committed.heard(0);
        assert_eq!(committed.get(), 0);
        committed.heard(7);
        committed.heard(9);
        assert_eq!(committed.get(), 7);
    }
}
