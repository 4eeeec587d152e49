use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{DbName, Timestamp};

/// How the backup to one URL stands, as the uploading node knows it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct BackupStatus {
    /// Where to, without options.
    pub url: String,
    /// `uploading`; `standby` on a node that is not primary; `failing`, with the reason.
    pub state: String,
    /// Why it fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// For how long something committed has not been in the bucket, in milliseconds.
    pub lag_ms: u64,
    /// What an operator should look at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// The databases, by name.
    pub databases: Vec<DatabaseBackup>,
}

/// How the backup of one database stands.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct DatabaseBackup {
    /// Its name.
    pub name: String,
    /// The position that a restore reaches, `txid/checksum`; `null` while none does.
    pub position: Option<String>,
    /// What is added to a transaction number of the cluster to get that of the files.
    pub txid_offset: u64,
    /// When the last transaction in the bucket was committed.
    pub time: Option<String>,
    /// When the last snapshot was.
    pub snapshot: Option<String>,
    /// Files in the bucket.
    pub files: usize,
    /// When the database was dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// Why it is not backed up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it was last restored from the bucket and found equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<String>,
}

/// Where an uploader writes its status, for others to read at any time.
#[derive(Clone)]
pub struct StatusBoard(Arc<Mutex<Board>>);

struct Board {
    url: String,
    warn_after: Duration,
    /// `None` while another node uploads.
    state: Option<Result<(), String>>,
    /// Since when something has not been uploaded.
    behind_since: Option<std::time::Instant>,
    databases: BTreeMap<DbName, DatabaseBackup>,
    verified: BTreeMap<DbName, Result<Timestamp, String>>,
}

impl Board {
    fn warning(&self, lag: Duration) -> Option<String> {
        let url = &self.url;
        let failing = self.databases.values().find(|database| database.error.is_some());
        let unverified =
            self.verified.iter().find_map(|(name, outcome)| Some((name, outcome.as_ref().err()?)));
        match (&self.state, failing) {
            (Some(Err(why)), _) => Some(format!("the backup to {url} fails: {why}")),
            (Some(Ok(())), _) if lag >= self.warn_after => {
                Some(format!("the backup to {url} has been behind for {} s", lag.as_secs()))
            }
            (Some(Ok(())), Some(database)) => {
                let why = database.error.as_deref().unwrap_or_default();
                Some(format!("{} is not backed up to {url}: {why}", database.name))
            }
            (Some(Ok(())), None) => {
                let (name, why) = unverified?;
                Some(format!("{name} cannot be restored from {url}: {why}"))
            }
            _ => None,
        }
    }
}

impl StatusBoard {
    /// Of the backup to `url`, which warns when it is behind for longer than `warn_after`.
    pub fn new(url: String, warn_after: Duration) -> Self {
        let databases = BTreeMap::new();
        let board =
            Board { url, warn_after, state: None, behind_since: None, databases, verified: BTreeMap::new() };
        Self(Arc::new(Mutex::new(board)))
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// This node uploads, with or without success; or another one does.
    pub(super) fn set_state(&self, state: Option<Result<(), String>>) {
        let mut board = self.lock();
        if state.is_none() {
            board.databases.clear();
            board.verified.clear();
            board.behind_since = None;
        }
        board.state = state;
    }

    /// This node is not primary for the moment.
    pub(super) fn pause(&self) {
        let mut board = self.lock();
        (board.state, board.behind_since) = (None, None);
    }

    /// Whether everything committed is in the bucket.
    pub(super) fn set_behind(&self, behind: bool) {
        let mut board = self.lock();
        board.behind_since = behind.then(|| board.behind_since.unwrap_or_else(std::time::Instant::now));
    }

    /// How a database stands; `None` takes it off.
    pub(super) fn set_database(&self, db: &DbName, status: Option<DatabaseBackup>) {
        match status {
            Some(status) => drop(self.lock().databases.insert(db.clone(), status)),
            None => drop(self.lock().databases.remove(db)),
        }
    }

    /// A database was restored and found equal, or why not.
    pub(super) fn set_verified(&self, db: &DbName, outcome: Result<Timestamp, String>) {
        self.lock().verified.insert(db.clone(), outcome);
    }

    /// The databases that a restore gives something of, where this node knows.
    pub(super) fn restorable(&self) -> Vec<DbName> {
        let board = self.lock();
        let there = board.databases.iter().filter(|(_, database)| database.position.is_some());
        there.map(|(name, _)| name.clone()).collect()
    }

    /// For how long something committed has not been in the bucket.
    pub fn lag(&self) -> Duration {
        self.lock().behind_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Why this node, which should upload, does not.
    pub fn failure(&self) -> Option<String> {
        self.lock().state.clone().and_then(Result::err)
    }

    /// All of it.
    pub fn status(&self) -> BackupStatus {
        let board = self.lock();
        let (state, why) = match &board.state {
            None => ("standby", None),
            Some(Ok(())) => ("uploading", None),
            Some(Err(why)) => ("failing", Some(why.clone())),
        };
        let lag = board.behind_since.map_or(Duration::ZERO, |since| since.elapsed());
        let databases = board.databases.iter().map(|(name, status)| {
            let (verified, failure) = match board.verified.get(name) {
                Some(Ok(at)) => (Some(at.to_string()), None),
                Some(Err(why)) => (None, Some(format!("it cannot be restored: {why}"))),
                None => (None, None),
            };
            DatabaseBackup { verified, error: status.error.clone().or(failure), ..status.clone() }
        });
        let warning = board.warning(lag);
        BackupStatus {
            warning,
            url: board.url.clone(),
            state: state.to_owned(),
            why,
            lag_ms: u64::try_from(lag.as_millis()).unwrap_or(u64::MAX),
            databases: databases.collect(),
        }
    }
}
