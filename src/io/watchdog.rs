//! Which calls of this program are under way, and since when.
//!
//! A thread that waits for something that never comes (a lock in the kernel, a mount that does not answer, a dead disk) says
//! nothing by itself. So threads say when a call begins that must end soon, and one other thread looks at all of them.

use std::cell::OnceCell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

/// What a thread is doing.
#[derive(Debug)]
struct Post {
    thread: String,
    tid: i32,
    doing: Mutex<&'static str>,
    /// Since when, in microseconds after the first call of this program; 0 while nothing is being done.
    since: AtomicU64,
    depth: AtomicU32,
}

/// A call that is under way; over when dropped.
#[derive(Debug)]
pub struct Call {
    post: Arc<Post>,
}

/// A call that has not ended for too long.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stuck {
    /// The thread's name.
    pub thread: String,
    /// Its number in the kernel.
    pub tid: i32,
    /// What it is doing.
    pub doing: &'static str,
    /// For how long.
    pub age: Duration,
}

impl std::fmt::Display for Stuck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "thread {} has been {} for {:.1} s", self.thread, self.doing, self.age.as_secs_f64())
    }
}

fn posts() -> MutexGuard<'static, Vec<Weak<Post>>> {
    static POSTS: Mutex<Vec<Weak<Post>>> = Mutex::new(Vec::new());
    POSTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn now_us() -> u64 {
    static STARTED: OnceLock<Instant> = OnceLock::new();
    let elapsed = STARTED.get_or_init(Instant::now).elapsed().as_micros();
    u64::try_from(elapsed).unwrap_or(u64::MAX).saturating_add(1)
}

impl Post {
    fn new() -> Arc<Self> {
        let thread = std::thread::current().name().unwrap_or("without a name").to_owned();
        let post = Arc::new(Self {
            thread,
            tid: own_tid(),
            doing: Mutex::new(""),
            since: AtomicU64::new(0),
            depth: AtomicU32::new(0),
        });
        let mut posts = posts();
        posts.retain(|post| post.strong_count() > 0);
        posts.push(Arc::downgrade(&post));
        post
    }

    fn stuck(&self, limit: Duration, now: u64) -> Option<Stuck> {
        let since = self.since.load(Ordering::SeqCst);
        let age = Duration::from_micros(now.saturating_sub(since));
        let doing = *self.doing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let stuck = Stuck { thread: self.thread.clone(), tid: self.tid, doing, age };
        (since != 0 && age > limit).then_some(stuck)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.post.depth.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.post.since.store(0, Ordering::SeqCst);
        }
    }
}

/// The number of the calling thread in the kernel.
pub fn own_tid() -> i32 {
    thread_local! {
        static OWN: i32 = nix::unistd::gettid().as_raw();
    }
    OWN.with(|own| *own)
}

/// A call of this thread begins: `doing` completes "has been ... for 3 s". Within another one it is part of that.
pub fn begin(doing: &'static str) -> Call {
    thread_local! {
        static OWN: OnceCell<Arc<Post>> = const { OnceCell::new() };
    }
    let post = OWN.with(|own| own.get_or_init(Post::new).clone());
    if post.depth.fetch_add(1, Ordering::SeqCst) == 0 {
        *post.doing.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = doing;
        post.since.store(now_us(), Ordering::SeqCst);
    }
    Call { post }
}

impl Call {
    /// The call goes on, and so does its thread.
    pub fn goes_on(&self) {
        self.post.since.store(now_us(), Ordering::SeqCst);
    }
}

/// Calls that have been under way for longer than `limit`.
pub fn stuck(limit: Duration) -> Vec<Stuck> {
    let now = now_us();
    let all: Vec<Arc<Post>> = posts().iter().filter_map(Weak::upgrade).collect();
    all.iter().filter_map(|post| post.stuck(limit, now)).collect()
}

/// Where a thread stands in the kernel, as far as the kernel tells: its state and the function it sleeps in.
pub fn place_in_kernel(tid: i32) -> String {
    let read =
        |name: &str| std::fs::read_to_string(format!("/proc/self/task/{tid}/{name}")).unwrap_or_default();
    let stat = read("stat");
    let state =
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).unwrap_or("?").to_owned();
    let sleeps = read("wchan");
    match sleeps.trim() {
        "" | "0" => format!("state {state}"),
        sleeps => format!("state {state} in {sleeps}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_does_not_end_is_seen_until_it_ends() {
        let name = "skein-test-stuck";
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let (begun, begins) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            let call = begin("waiting");
            let inner = begin("looking");
            begun.send(own_tid()).unwrap();
            let _ = receiver.recv();
            drop((inner, call));
            begun.send(0).unwrap();
            let _ = receiver.recv();
        });
        let thread = thread.unwrap();
        let tid = begins.recv().unwrap();
        let seen = || stuck(Duration::ZERO).into_iter().find(|stuck| stuck.thread == name);
        let found = seen().unwrap();
        assert_eq!((found.tid, found.doing), (tid, "waiting"));
        // Asleep by now, or about to be.
        assert!(place_in_kernel(tid).starts_with("state "), "{}", place_in_kernel(tid));
        assert!(stuck(Duration::from_secs(3600)).is_empty());
        sender.send(()).unwrap();
        begins.recv().unwrap();
        assert_eq!(seen(), None);
        drop(sender);
        thread.join().unwrap();
    }
}
