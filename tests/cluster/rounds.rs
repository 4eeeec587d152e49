//! Rounds of one cluster: applications on every mount, a fault, its end, and the question whether all is well.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::book::{self, Book};
use super::checker;
use super::client::{Client, Task};
use super::faults::{Fault, Kind};
use super::nodes::{Nodes, Shape};
use super::watch::{Claims, Watch};
use crate::harness::{self, PATIENCE, within};

/// How long the nodes that are left may take to find a primary.
const TAKEOVER_MAX: Duration = Duration::from_secs(15);
/// Rounds after which new databases are begun, so that reading everything stays cheap.
const ROUNDS_PER_BOOK: u64 = 8;

/// A client process, the database it works on, and where it runs.
struct Working {
    book: usize,
    node: usize,
    client: Client,
}

/// A cluster and everything known of it.
pub struct Run {
    nodes: Nodes,
    shape: Shape,
    /// Of all rounds; the last ones are in use.
    books: Vec<Book>,
    claims: Claims,
    rounds: u64,
    clients: u64,
}

impl Run {
    /// Starts the cluster; none where it cannot be had here.
    pub fn start(shape: Shape, passthrough: bool) -> Option<Self> {
        let nodes = Nodes::start(shape, passthrough)?;
        Some(Self { nodes, shape, books: Vec::new(), claims: Claims::default(), rounds: 0, clients: 0 })
    }

    /// One round; what happened, in a line.
    ///
    /// # Errors
    /// Everything that is not as it must be.
    pub fn round(&mut self, seed: u64) -> Result<String, String> {
        let outcome = self.play(seed);
        if outcome.is_err() && harness::number("SKEIN_CLUSTER_KEEP", 0) != 0 {
            self.nodes.keep_directory();
        }
        outcome
    }

    fn play(&mut self, seed: u64) -> Result<String, String> {
        let mut random = StdRng::seed_from_u64(seed);
        let primary = self.nodes.wait_for_primary(&self.all(), PATIENCE)?;
        if self.rounds.is_multiple_of(ROUNDS_PER_BOOK) {
            self.begin_books(primary)?;
        }
        self.rounds += 1;
        let follower = (primary + random.random_range(1..self.nodes.len())) % self.nodes.len();
        let fault = Fault { kind: Kind::of(seed), primary, follower };
        let watch = Watch::start(&self.nodes);
        let troubled = self.trouble(fault, &mut random).and_then(|()| self.settle());
        watch.end(&mut self.claims);
        troubled.map_err(|error| format!("{fault:?}: {error}"))?;
        let last = self.check().map_err(|error| format!("after {fault:?}: {error}"))?;
        let counts: Vec<_> = self.in_use().map(|book| self.books[book].summary()).collect();
        let (kind, names) = (fault.kind, [primary, follower, last].map(|node| self.nodes.name(node)));
        Ok(format!(
            "{kind:?} (primary {}, follower {}), then primary {}; {}",
            names[0],
            names[1],
            names[2],
            counts.join("; ")
        ))
    }

    /// What the daemons said last.
    pub fn last_words(&self) -> String {
        self.nodes.last_words()
    }

    /// The databases of earlier rounds are as they were.
    ///
    /// # Errors
    /// Where one has changed.
    pub fn look_back(&self) -> Result<(), String> {
        self.books.iter().try_for_each(|book| book.look_back(&self.nodes))
    }

    fn all(&self) -> Vec<usize> {
        (0..self.nodes.len()).collect()
    }

    fn in_use(&self) -> std::ops::Range<usize> {
        self.books.len().saturating_sub(book::KINDS.len())..self.books.len()
    }

    fn begin_books(&mut self, primary: usize) -> Result<(), String> {
        let number = self.books.len() / book::KINDS.len();
        self.books.extend(book::KINDS.map(|kind| Book::new(kind, number)));
        for book in self.in_use() {
            let journal = self.books[book].kind.journal.to_owned();
            self.start_client(book, primary, Task::Found { journal }, 0.0).client.end(PATIENCE)?;
            self.nodes.same_bytes(&self.books[book].db)?;
        }
        Ok(())
    }

    fn start_client(&mut self, book: usize, node: usize, task: Task, seconds: f64) -> Working {
        self.clients += 1;
        let mut orders = self.books[book].orders(&self.nodes, node, self.clients, task);
        orders.seconds = seconds;
        Working { book, node, client: Client::start(orders) }
    }

    fn start_work(&mut self, nodes: &[usize], seconds: f64) -> Vec<Working> {
        let mut working = Vec::new();
        for book in self.in_use() {
            for node in nodes {
                for _ in 0..self.books[book].kind.clients {
                    working.push(self.start_client(book, *node, Task::Work, seconds));
                }
            }
        }
        working
    }

    /// Applications at work, the fault, its end. Afterwards no client runs, and every daemon does.
    fn trouble(&mut self, fault: Fault, random: &mut StdRng) -> Result<(), String> {
        let (before, lasts) = (random.random_range(0.7..1.3), random.random_range(1.0..4.0));
        let mut working = self.start_work(&self.all(), before + lasts + 1.5);
        // The moment of the fault is what a round draws.
        std::thread::sleep(Duration::from_secs_f64(before));
        let mut wrong: Vec<String> = fault.strike(&mut self.nodes).err().into_iter().collect();
        let begun = Instant::now();
        let majority = fault.majority(&self.nodes);
        if self.shape == Shape::ThreeVoters && !majority.is_empty() {
            let found = self.nodes.wait_for_primary(&majority, TAKEOVER_MAX);
            wrong.extend(found.err().map(|error| format!("while it lasts: {error}")));
        }
        std::thread::sleep(Duration::from_secs_f64(lasts).saturating_sub(begun.elapsed()));
        fault.heal(&mut self.nodes);
        let down = fault.down(&self.nodes);
        // On a dead mount a client can commit nothing any more.
        let (mut stranded, mut working): (Vec<_>, Vec<_>) =
            working.drain(..).partition(|one| down.contains(&one.node));
        wrong.extend(stranded.iter_mut().filter_map(|one| one.client.kill9().err()));
        wrong.extend(self.nodes.start_again(&down).err());
        if wrong.is_empty() {
            working.extend(self.start_work(&down, 1.5));
        }
        for one in &mut working {
            let limit = PATIENCE + Duration::from_secs_f64(one.client.orders.seconds);
            wrong.extend(one.client.end(limit).err());
        }
        for one in stranded.iter().chain(&working) {
            self.books[one.book].keep(&one.client.orders);
        }
        let fallen = self.nodes.fallen(&self.all());
        wrong.extend(fallen.into_iter().map(|name| format!("{name} ended by itself")));
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    }

    /// Waits until each database accepts a write: what clients wrote before is decided then.
    fn settle(&mut self) -> Result<(), String> {
        for book in self.in_use() {
            let mut last = String::new();
            let settled = within(PATIENCE, || {
                let primary = self.nodes.wait_for_primary(&self.all(), PATIENCE);
                let ended = primary.and_then(|primary| {
                    let mut settling = self.start_client(book, primary, Task::Settle, 15.0);
                    let ended = settling.client.end(PATIENCE);
                    self.books[book].keep(&settling.client.orders);
                    ended
                });
                ended.map_err(|error| last = error).ok()
            });
            settled.ok_or_else(|| format!("{} accepts no write: {last}", self.books[book].db))?;
        }
        Ok(())
    }

    /// All that must hold when nobody writes; gives the primary.
    fn check(&mut self) -> Result<usize, String> {
        let claims = checker::check_claims(self.claims.all());
        let mut wrong: Vec<_> = claims.iter().map(|broken| format!("{broken:?}")).collect();
        for book in self.in_use() {
            wrong.extend(self.books[book].judge(&self.nodes).err());
        }
        let primary = self.nodes.wait_for_primary(&self.all(), PATIENCE);
        if wrong.is_empty() { primary } else { Err(wrong.join("\n")) }
    }
}
