use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags};

use super::EngineOptions;
use super::authorizer::authorizer;
use super::error::plain;
use super::interrupt::Interrupt;
use crate::sql::hrana::Failure;

/// Steps of SQLite's machine between two looks at the interrupt: some 10 us.
const STEPS: i32 = 2000;
/// Statements that a connection keeps prepared.
const STATEMENTS: usize = 64;
/// The longest pause between two attempts to get a lock.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// A connection to a database on the mount.
pub(super) struct SqlConnection {
    /// SQLite's.
    pub sqlite: Connection,
    /// Ends its statements.
    pub interrupt: Arc<Interrupt>,
    /// Something of it outlives a stream: a pragma, a temporary table.
    changed: Arc<AtomicBool>,
    path: PathBuf,
    /// Device and inode of the file that is open.
    file: (u64, u64),
}

impl SqlConnection {
    /// Opens a database that exists, or makes it where `create`.
    ///
    /// # Errors
    /// Where it is not there, or no database.
    pub fn open(path: &Path, create: bool, options: &EngineOptions) -> Result<Self, Failure> {
        let made = create && !path.exists();
        let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        flags.set(OpenFlags::SQLITE_OPEN_CREATE, create);
        let mut sqlite = Connection::open_with_flags(path, flags).map_err(|error| plain(&error))?;
        let (interrupt, changed) = (Arc::new(Interrupt::default()), Arc::new(AtomicBool::new(false)));
        set_up(&mut sqlite, made, &interrupt, &changed, options).map_err(|error| plain(&error))?;
        let file =
            file_at(path).ok_or_else(|| Failure::new("SQLITE_CANTOPEN", "the database was dropped"))?;
        Ok(Self { sqlite, interrupt, changed, path: path.to_owned(), file })
    }

    /// Whether another stream may have it: nothing of the last one is left, and the file is still the database.
    pub fn is_as_new(&self) -> bool {
        self.sqlite.is_autocommit()
            && !self.changed.load(Ordering::Relaxed)
            && !self.interrupt.is_abandoned()
            && file_at(&self.path) == Some(self.file)
    }
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

fn set_up(
    sqlite: &mut Connection,
    made: bool,
    interrupt: &Arc<Interrupt>,
    changed: &Arc<AtomicBool>,
    options: &EngineOptions,
) -> rusqlite::Result<()> {
    sqlite.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    let bytes = i32::try_from(options.bytes_max).unwrap_or(i32::MAX);
    sqlite.set_limit(Limit::SQLITE_LIMIT_LENGTH, bytes)?;
    sqlite.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, bytes)?;
    sqlite.set_limit(Limit::SQLITE_LIMIT_WORKER_THREADS, 0)?;
    sqlite.set_prepared_statement_cache_capacity(STATEMENTS);
    let (waits, limit) = (interrupt.clone(), options.busy_timeout);
    let mut since = Instant::now();
    sqlite.busy_handler(Some(move |attempts: i32| {
        if attempts == 0 {
            since = Instant::now();
        }
        if since.elapsed() >= limit || waits.due().is_some() {
            return false;
        }
        // As SQLite's own handler: nothing tells when a lock of another process is free.
        std::thread::sleep(Duration::from_millis(1 << attempts.clamp(0, 5)).min(PAUSE_MAX));
        true
    }))?;
    if made {
        sqlite.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(()))?;
    }
    let asked = interrupt.clone();
    sqlite.progress_handler(STEPS, Some(move || asked.due().is_some()))?;
    sqlite.authorizer(Some(authorizer(changed.clone())))
}
