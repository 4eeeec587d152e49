//! The watcher of logs: captures what NORMAL and OFF commits publish without asking anybody, and what a rollback journal
//! that nobody syncs has ended.
//!
//! One thread for all databases. A log at rest costs one inotify watch that fires once; a log in motion is
//! looked at on a short timer, because publishing is a store to shared memory that no event tells of, and because
//! looking less often makes larger and so cheaper change sets.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::time::TimeSpec;

use super::FileKind;
use super::capture_wal::Found;
use super::database::Database;
use crate::io::watchdog;

/// Between two looks at a log in motion.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Between two looks at a log whose writers sync: they need no watcher, and it would be in their way.
const SYNCED_LOOK_EVERY: Duration = Duration::from_millis(10);
/// First wait for a commit whose frames are written but not yet published.
const PUBLISH_WAIT: Duration = Duration::from_micros(30);
/// Looks without news after which a log is at rest.
const QUIET_LOOKS: u32 = 2;
/// How long a database stays attached after its last handle: applications that open and close for each request
/// must not pay for it.
const LINGER: Duration = Duration::from_secs(2);

enum Command {
    Watch(Weak<Database>, FileKind),
    Closed(Weak<Database>),
    Stop,
}

/// Handle of the watcher's thread.
pub struct WalWatcher {
    commands: Arc<Mutex<Vec<Command>>>,
    wake: Arc<EventFd>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl WalWatcher {
    /// Starts the thread.
    ///
    /// # Errors
    /// Where no inotify instance or thread can be had.
    pub fn start() -> io::Result<Self> {
        let commands = Arc::new(Mutex::new(Vec::new()));
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let mut watcher = Watcher {
            inotify,
            commands: commands.clone(),
            wake: wake.clone(),
            watches: HashMap::new(),
            moving: HashMap::new(),
            closing: Vec::new(),
        };
        let thread = std::thread::Builder::new().name("skein-tail".into()).spawn(move || watcher.run())?;
        Ok(Self { commands, wake, thread: Mutex::new(Some(thread)) })
    }

    /// Watches the log of a database that was just attached.
    pub fn watch(&self, database: &Arc<Database>) {
        self.send(Command::Watch(Arc::downgrade(database), FileKind::Wal));
    }

    /// Watches the journal of a transaction whose end no request will tell of.
    pub fn watch_journal(&self, database: &Arc<Database>) {
        self.send(Command::Watch(Arc::downgrade(database), FileKind::Journal));
    }

    /// The last handle of a database was closed: detach it if none comes back.
    pub fn closed(&self, database: &Arc<Database>) {
        self.send(Command::Closed(Arc::downgrade(database)));
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.send(Command::Stop);
        let thread = self.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    fn send(&self, command: Command) {
        self.commands.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(command);
        // Full only where 2^64 wake-ups are unread.
        let _ = self.wake.write(1);
    }
}

/// Captures what is new in a log of this kind.
fn look_at(database: &Arc<Database>, kind: FileKind) -> Found {
    match kind {
        FileKind::Journal => database.capture_journal_tail(),
        _ => database.capture_tail(),
    }
}

struct Motion {
    database: Weak<Database>,
    kind: FileKind,
    next: Instant,
    quiet: u32,
    publish_wait: Duration,
}

struct Watcher {
    inotify: Inotify,
    commands: Arc<Mutex<Vec<Command>>>,
    wake: Arc<EventFd>,
    watches: HashMap<WatchDescriptor, (Weak<Database>, FileKind)>,
    moving: HashMap<PathBuf, Motion>,
    closing: Vec<(Weak<Database>, Instant)>,
}

impl Watcher {
    fn run(&mut self) {
        loop {
            self.wait();
            if !self.obey() {
                return;
            }
            let _call = watchdog::begin("capturing what applications committed");
            self.hear();
            self.look();
            self.close();
        }
    }

    fn wait(&self) {
        let moving = self.moving.values().map(|motion| motion.next);
        let next = moving.chain(self.closing.iter().map(|(_, at)| *at)).min();
        let timeout = next.map(|at| TimeSpec::from_duration(at.saturating_duration_since(Instant::now())));
        let mut events = [
            PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
        ];
        // Interrupted or failed: the loop looks at everything anyway.
        let _ = ppoll(&mut events, timeout, None);
    }

    fn obey(&mut self) -> bool {
        let _ = self.wake.read();
        let commands =
            std::mem::take(&mut *self.commands.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        for command in commands {
            match command {
                Command::Watch(database, kind) => self.start_moving((database, kind), Instant::now()),
                Command::Closed(database) => self.closing.push((database, Instant::now() + LINGER)),
                Command::Stop => return false,
            }
        }
        true
    }

    fn hear(&mut self) {
        let Ok(events) = self.inotify.read_events() else { return };
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                let all: Vec<_> = self.watches.values().cloned().collect();
                all.into_iter().for_each(|watched| self.start_moving(watched, Instant::now()));
            } else if let Some(watched) = self.watches.remove(&event.wd) {
                self.start_moving(watched, Instant::now());
            }
        }
    }

    fn start_moving(&mut self, (database, kind): (Weak<Database>, FileKind), next: Instant) {
        if let Some(alive) = database.upgrade() {
            let motion = Motion { database, kind, next, quiet: 0, publish_wait: PUBLISH_WAIT };
            self.moving.insert(alive.files().path(kind), motion);
        }
    }

    fn look(&mut self) {
        let now = Instant::now();
        let due: Vec<PathBuf> = self
            .moving
            .iter()
            .filter(|(_, motion)| motion.next <= now)
            .map(|(path, _)| path.clone())
            .collect();
        for path in due {
            let Some(motion) = self.moving.get_mut(&path) else { continue };
            let Some(database) = motion.database.upgrade() else {
                self.moving.remove(&path);
                continue;
            };
            let kind = motion.kind;
            match look_at(&database, kind) {
                Found::Captured | Found::Busy => {
                    (motion.quiet, motion.publish_wait) = (0, PUBLISH_WAIT);
                    motion.next = Instant::now() + LOOK_EVERY;
                }
                Found::Synced => {
                    motion.quiet = 0;
                    motion.next = Instant::now() + SYNCED_LOOK_EVERY;
                }
                Found::Unpublished => {
                    motion.quiet += 1;
                    motion.next = Instant::now() + motion.publish_wait;
                    motion.publish_wait = (motion.publish_wait * 2).min(LOOK_EVERY);
                    // A writer that died here, or one that waits in fsync: the log is heard of again.
                    if motion.quiet > QUIET_LOOKS * 4 {
                        self.rearm(path, &database, kind);
                    }
                }
                Found::Nothing => {
                    motion.quiet += 1;
                    motion.next = Instant::now() + LOOK_EVERY;
                    if motion.quiet >= QUIET_LOOKS {
                        self.rearm(path, &database, kind);
                    }
                }
            }
        }
    }

    /// Puts the log to rest: from the next write on it is heard of.
    fn rearm(&mut self, path: PathBuf, database: &Arc<Database>, kind: FileKind) {
        self.moving.remove(&path);
        database.release_pin();
        match self.inotify.add_watch(&path, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ONESHOT) {
            Ok(watch) => {
                self.watches.insert(watch, (Arc::downgrade(database), kind));
                // What was written between the last look and the watch.
                if matches!(look_at(database, kind), Found::Captured | Found::Busy) {
                    self.start_moving((Arc::downgrade(database), kind), Instant::now() + LOOK_EVERY);
                }
            }
            // Detached meanwhile, and attaching watches it anew; or the journal was removed, which captures it.
            Err(nix::errno::Errno::ENOENT) => {}
            Err(error) => {
                tracing::warn!(db = %database.name(), %error, "cannot watch its log; looking on a timer instead");
                self.start_moving((Arc::downgrade(database), kind), Instant::now() + LOOK_EVERY);
            }
        }
    }

    fn close(&mut self) {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.closing).into_iter().partition(|(_, at)| *at <= now);
        self.closing = later;
        let due: Vec<(Weak<Database>, Instant)> = due;
        for database in due.into_iter().filter_map(|(database, _)| database.upgrade()) {
            let again = (Arc::downgrade(&database), self.commands.clone(), self.wake.clone());
            database.off_thread(
                Box::new(move |answer| {
                    // Something was still to be captured: another try later.
                    if answer.is_err() {
                        let (database, commands, wake) = again;
                        commands
                            .lock()
                            .unwrap_or_else(|poisoned| poisoned.into_inner())
                            .push(Command::Closed(database));
                        let _ = wake.write(1);
                    }
                }),
                |database, done| done(database.try_detach()),
            );
        }
    }
}
