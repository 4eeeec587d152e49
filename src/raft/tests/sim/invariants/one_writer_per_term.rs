//! At most one node writes: per term for ever, and at any moment whatever the term.

use super::super::history::History;

/// `node` lets applications write in `term`; `others` let them, too.
pub fn check(history: &mut History, node: u64, term: u64, others: &[u64]) -> Result<(), String> {
    let writer = *history.writers.entry(term).or_insert(node);
    if writer != node {
        return Err(format!("n{writer} and n{node} are both primary in term {term}"));
    }
    match others.first() {
        Some(other) => Err(format!("n{node} may write in term {term} while n{other} still may")),
        None => Ok(()),
    }
}
