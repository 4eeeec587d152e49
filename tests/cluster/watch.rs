//! Who calls itself primary, asked of every node all the time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::nodes::{Door, Nodes};
use crate::harness::http;

/// Terms and the names of nodes that called themselves primary in them.
pub type Claims = BTreeSet<(u64, String)>;

/// A thread per node that asks for its status.
pub struct Watch {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Claims>>,
}

impl Watch {
    /// Begins to ask.
    pub fn start(nodes: &Nodes) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let doors = (0..nodes.len()).map(|index| nodes.door(index));
        let watch = |door: Door| {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                door.inside(|address| {
                    let mut claims = Claims::new();
                    while !over.load(Ordering::Relaxed) {
                        // A node that is dead or stopped says nothing.
                        if let Ok(status) = http::get_json(address, "/v1/status")
                            && status["primary"]["name"] == door.name.as_str()
                        {
                            claims.insert((status["term"].as_u64().unwrap_or(0), door.name.clone()));
                        }
                        std::thread::sleep(Duration::from_millis(15));
                    }
                    claims
                })
            })
        };
        let threads = doors.map(watch).collect();
        Self { over, threads }
    }

    /// Ends it; what was claimed. Every node answers by now, or its daemon has ended.
    pub fn end(mut self) -> Claims {
        self.over.store(true, Ordering::Relaxed);
        self.threads.drain(..).flat_map(|thread| thread.join().expect("asking does not panic")).collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
