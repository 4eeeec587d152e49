//! Who calls itself primary, asked of every node all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::nodes::{Door, Nodes};
use crate::harness::http;

/// A node called itself primary in a term.
#[derive(Clone, Debug)]
pub struct Claim {
    pub term: u64,
    pub name: String,
    /// When the first such answer was in: it was given before.
    pub first: Instant,
    /// When the last question with such an answer was put: it was given after.
    pub last: Instant,
}

/// Claims of all terms and nodes so far.
#[derive(Debug, Default)]
pub struct Claims(Vec<Claim>);

impl Claims {
    /// Everything claimed so far.
    pub fn all(&self) -> &[Claim] {
        &self.0
    }

    /// Adds a claim to those of the same node and term.
    pub fn add(&mut self, claim: Claim) {
        let same = self.0.iter_mut().find(|known| known.term == claim.term && known.name == claim.name);
        match same {
            Some(known) => {
                known.first = known.first.min(claim.first);
                known.last = known.last.max(claim.last);
            }
            None => self.0.push(claim),
        }
    }
}

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
        let threads = doors.map(|door| {
            let over = Arc::clone(&over);
            std::thread::spawn(move || ask(&door, &over))
        });
        Self { threads: threads.collect(), over }
    }

    /// Ends it; what was claimed is added. Every node answers by now, or its daemon has ended.
    pub fn end(mut self, claims: &mut Claims) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let found = thread.join().expect("asking does not panic");
            found.0.into_iter().for_each(|claim| claims.add(claim));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn ask(door: &Door, over: &AtomicBool) -> Claims {
    let mut claims = Claims::default();
    door.inside(|address| {
        while !over.load(Ordering::Relaxed) {
            let last = Instant::now();
            // A node that is dead or stopped says nothing.
            if let Ok(status) = http::get_json(address, "/v1/status")
                && status["primary"]["name"] == door.name.as_str()
            {
                let term = status["term"].as_u64().unwrap_or(0);
                claims.add(Claim { term, name: door.name.clone(), first: Instant::now(), last });
            }
            std::thread::sleep(Duration::from_millis(15));
        }
    });
    claims
}
