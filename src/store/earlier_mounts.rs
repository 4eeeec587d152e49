//! Databases that processes still have open through a mount of an earlier run of this node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::RwLock;

use crate::types::DbName;

/// Those databases, with the processes. This node serves them to nobody on its mount: the locks of those processes are on
/// inodes of the old mount, and who opens a database by name, or removes a file of it, may be one of them.
#[derive(Debug, Default)]
pub(super) struct HeldDatabases(RwLock<BTreeMap<DbName, BTreeSet<i32>>>);

impl HeldDatabases {
    /// Takes what is held from now on; gives what is not any more.
    pub fn set(&self, held: BTreeMap<DbName, BTreeSet<i32>>) -> Vec<DbName> {
        let mut known = self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let before = std::mem::replace(&mut *known, held);
        before.into_keys().filter(|db| !known.contains_key(db)).collect()
    }

    /// The processes that have a database open so; `None` where none has.
    pub fn by(&self, db: &DbName) -> Option<Vec<i32>> {
        let known = self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        known.get(db).map(|pids| pids.iter().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_told_once() {
        let name = |text: &str| DbName::new(text).unwrap();
        let held = HeldDatabases::default();
        let both =
            BTreeMap::from([(name("a.db"), BTreeSet::from([7, 3])), (name("b.db"), BTreeSet::from([3]))]);
        assert_eq!(held.set(both), []);
        assert_eq!(held.by(&name("a.db")), Some(vec![3, 7]));
        assert_eq!(held.set(BTreeMap::from([(name("a.db"), BTreeSet::from([7]))])), [name("b.db")]);
        assert_eq!((held.by(&name("a.db")), held.by(&name("b.db"))), (Some(vec![7]), None));
        assert_eq!(held.set(BTreeMap::new()), [name("a.db")]);
        assert_eq!(held.by(&name("a.db")), None);
    }
}
