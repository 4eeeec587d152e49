//! The state of the network between nodes: what is cut, slow, or held back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::dice;

/// All links, by the numbers of the nodes at their ends.
#[derive(Default)]
pub struct Links {
    cut: BTreeSet<(u64, u64)>,
    slow: BTreeMap<(u64, u64), u64>,
    held: BTreeSet<u64>,
    /// One message in this many is lost; 0 for none.
    pub loses_one_in: u64,
}

impl Links {
    /// Lets nothing pass from one node to another.
    pub fn cut(&mut self, from: u64, to: u64) {
        self.cut.insert((from, to));
    }

    /// Lets messages take up to `millis` more.
    pub fn slow(&mut self, from: u64, to: u64, millis: u64) {
        self.slow.insert((from, to), millis);
    }

    /// Keeps all messages to and from a node until it is released.
    pub fn hold(&mut self, node: u64, held: bool) {
        if held {
            self.held.insert(node);
        } else {
            self.held.remove(&node);
        }
    }

    /// Repairs everything.
    pub fn heal(&mut self) {
        *self =
            Self { loses_one_in: self.loses_one_in, held: std::mem::take(&mut self.held), ..Self::default() };
    }

    /// Whether messages wait.
    pub fn waits(&self, from: u64, to: u64) -> bool {
        self.held.contains(&from) || self.held.contains(&to)
    }

    /// Whether a message that leaves now gets lost.
    pub fn loses(&self, from: u64, to: u64) -> bool {
        self.cut.contains(&(from, to)) || (self.loses_one_in > 0 && dice::one_in(self.loses_one_in))
    }

    /// Whether both directions are open.
    pub fn connects(&self, from: u64, to: u64) -> bool {
        !self.cut.contains(&(from, to)) && !self.cut.contains(&(to, from)) && !self.waits(from, to)
    }

    /// How long a message takes.
    pub fn delay(&self, from: u64, to: u64) -> Duration {
        let usual = if dice::one_in(60) { dice::millis(5, 150) } else { dice::millis(0, 5) };
        let more = self.slow.get(&(from, to)).map_or(Duration::ZERO, |slow| dice::millis(0, *slow));
        usual + more
    }
}
