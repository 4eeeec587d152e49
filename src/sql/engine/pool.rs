//! Connections to the databases, so many to each at a time.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::EngineOptions;
use super::connection::SqlConnection;
use super::session::Session;
use crate::sql::hrana::Failure;

/// How long a connection that nobody uses is kept.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// The connections to all databases.
pub(super) struct Pool {
    options: Arc<EngineOptions>,
    databases: Mutex<HashMap<String, Arc<Database>>>,
}

struct Database {
    places: Arc<Semaphore>,
    idle: Mutex<Vec<(SqlConnection, Instant)>>,
}

/// Room for one connection to a database.
pub(super) struct Place {
    database: Arc<Database>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// Keeps the connection for the next stream, or closes it.
    pub fn give_back(self, connection: SqlConnection) {
        if connection.is_as_new() {
            self.database.idle().push((connection, Instant::now()));
        }
    }
}

impl Database {
    fn idle(&self) -> MutexGuard<'_, Vec<(SqlConnection, Instant)>> {
        self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Pool {
    /// Without any yet.
    pub fn new(options: Arc<EngineOptions>) -> Self {
        Self { options, databases: Mutex::default() }
    }

    fn databases(&self) -> MutexGuard<'_, HashMap<String, Arc<Database>>> {
        self.databases.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A stream on a database; `create` makes one that does not exist.
    ///
    /// # Errors
    /// Where all connections are in use, or the database cannot be opened.
    pub async fn session(&self, db: &str, create: bool) -> Result<Session, Failure> {
        let new = || {
            let places = Arc::new(Semaphore::new(self.options.connections_max));
            Arc::new(Database { places, idle: Mutex::default() })
        };
        let database = self.databases().entry(db.to_owned()).or_insert_with(new).clone();
        let waited = tokio::time::timeout(self.options.busy_timeout, database.places.clone().acquire_owned());
        let Ok(Ok(permit)) = waited.await else {
            let why = format!("all {} connections to {db} are in use", self.options.connections_max);
            return Err(Failure::new("TOO_MANY_STREAMS", why));
        };
        let place = Place { database, _permit: permit };
        let (path, options): (PathBuf, _) = (self.options.mount.join(db), self.options.clone());
        let opened = tokio::task::spawn_blocking(move || {
            loop {
                let Some((connection, _)) = place.database.idle().pop() else { break };
                if connection.is_as_new() {
                    return Ok(Session::new(connection, place));
                }
            }
            let connection = SqlConnection::open(&path, create, &options)?;
            Ok(Session::new(connection, place))
        });
        opened.await.unwrap_or_else(|error| Err(Failure::new("INTERNAL", error.to_string())))
    }

    /// Closes connections that nobody uses. Blocking.
    pub fn close_idle(&self) {
        let all: Vec<_> = self.databases().values().cloned().collect();
        for database in all {
            let old: Vec<_> = {
                let mut idle = database.idle();
                let (old, kept) = idle.drain(..).partition(|(_, since)| since.elapsed() >= IDLE_MAX);
                *idle = kept;
                old
            };
            drop(old);
        }
        // What nobody has a connection to is forgotten.
        self.databases().retain(|_, database| Arc::strong_count(database) > 1 || !database.idle().is_empty());
    }
}
