use std::collections::HashMap;
use std::sync::{Arc, RwLock};

/// Where voters were last found, which may differ from what the membership says of them: a node that comes back with
/// another address is needed for the quorum that would write the address down.
#[derive(Clone, Default, Debug)]
pub struct AddressBook {
    found: Arc<RwLock<HashMap<u64, String>>>,
}

impl AddressBook {
    /// Notes that node `id` answered at `addr` (HOST:PORT).
    pub fn found(&self, id: u64, addr: String) {
        self.found.write().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(id, addr);
    }

    /// Where node `id` answered, if it did.
    pub fn get(&self, id: u64) -> Option<String> {
        self.found.read().unwrap_or_else(|poisoned| poisoned.into_inner()).get(&id).cloned()
    }
}
