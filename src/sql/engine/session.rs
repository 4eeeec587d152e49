use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::EngineOptions;
use super::connection::SqlConnection;
use super::error::TRANSACTION_LOST;
use super::first_word::FirstWord;
use super::pool::Place;
use crate::sql::hrana::{Failure, SqlRef, StoredText};

/// Texts that a stream may keep.
const STORED_MAX: usize = 64;

/// How long a transaction has to be rolled back.
const ROLLBACK_MAX: Duration = Duration::from_secs(10);

/// What a request may do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowed {
    /// The client's token lets it write.
    pub write: bool,
    /// This node is primary.
    pub here: bool,
}

/// A stream of Hrana's: a connection, and what its client keeps on it.
pub(super) struct Session {
    /// The connection.
    pub connection: SqlConnection,
    /// What its client believes of its transaction.
    pub transaction: Transaction,
    /// Of all that its database may have.
    place: Place,
    stored: HashMap<i32, String>,
}

/// The transaction of a stream.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    /// Why the transaction that the client believes in is no more; it is told once.
    lost: Option<Failure>,
    begun: Option<Instant>,
    reads_only: bool,
}

impl Session {
    /// With nothing on it.
    pub fn new(connection: SqlConnection, place: Place) -> Self {
        Self { connection, place, stored: HashMap::new(), transaction: Transaction::default() }
    }

    /// Gives the connection back, where it is fit for another stream.
    pub fn end(self) {
        self.place.give_back(self.connection);
    }

    /// Keeps a text under a number.
    ///
    /// # Errors
    /// Where there are too many.
    pub fn store(&mut self, text: StoredText) -> Result<(), Failure> {
        if self.stored.len() >= STORED_MAX && !self.stored.contains_key(&text.sql_id) {
            let why = format!("a stream keeps at most {STORED_MAX} texts: close one");
            return Err(Failure::new("SQL_STORE_TOO_LARGE", why));
        }
        drop(self.stored.insert(text.sql_id, text.sql));
        Ok(())
    }

    /// Forgets a text.
    pub fn forget(&mut self, sql_id: i32) {
        drop(self.stored.remove(&sql_id));
    }

    /// All texts it keeps, to be taken to another node.
    pub fn texts(&self) -> Vec<StoredText> {
        self.stored.iter().map(|(sql_id, sql)| StoredText { sql_id: *sql_id, sql: sql.clone() }).collect()
    }

    /// The text that a request means.
    ///
    /// # Errors
    /// Where it means none.
    pub fn text(&self, sql: &SqlRef) -> Result<String, Failure> {
        match (&sql.sql, sql.sql_id) {
            (Some(text), None) => Ok(text.clone()),
            (None, Some(id)) => self.stored.get(&id).cloned().ok_or_else(|| {
                Failure::new("SQL_NOT_FOUND", format!("no text is stored under the number {id}"))
            }),
            _ => Err(Failure::new("INVALID_REQUEST", "one of sql and sql_id is needed")),
        }
    }

    /// Whether no transaction is open.
    pub fn is_autocommit(&self) -> bool {
        self.connection.sqlite.is_autocommit()
    }

    /// Ends the transaction, and remembers to say why.
    pub fn abort(&mut self, why: Failure) {
        if self.is_autocommit() {
            return;
        }
        self.connection.interrupt.arm(ROLLBACK_MAX);
        // Where even that fails the connection is closed with the stream, which rolls back.
        let _rolled_back = self.connection.sqlite.execute_batch("ROLLBACK");
        self.transaction = Transaction { lost: Some(why), ..Transaction::default() };
    }

    /// Ends a transaction that takes too long.
    pub fn end_late(&mut self, options: &EngineOptions) {
        let limit = options.transaction_max;
        if self.transaction.begun.is_some_and(|begun| begun.elapsed() >= limit) {
            let why = format!(
                "the transaction took longer than {limit:?} (sql.transaction_timeout): it was rolled back, nothing of it \
                 is committed, and it may be tried again"
            );
            self.abort(Failure::new("TRANSACTION_TIMEOUT", why));
        }
    }
}

impl Transaction {
    /// Before a statement: whether it may be executed on `connection`.
    ///
    /// # Errors
    /// Where the transaction is over, or does not write, or the client may not.
    pub fn check(
        &mut self,
        connection: &SqlConnection,
        allowed: Allowed,
        word: FirstWord,
        readonly: bool,
    ) -> Result<(), Failure> {
        if let Some(lost) = self.lost.take() {
            return Err(lost);
        }
        if readonly {
            return Ok(());
        }
        if !allowed.write {
            return Err(Failure::new("BLOCKED", "the token does not allow changes of this database"));
        }
        let autocommit = connection.sqlite.is_autocommit();
        if self.reads_only && !autocommit {
            let why = "SQLITE_READONLY: this transaction was begun as READONLY";
            return Err(Failure::new("SQLITE_READONLY", why));
        }
        if !allowed.here {
            let why = if word == FirstWord::BeginWrite || autocommit {
                "this node is not primary: send the statement in a request of its own, it is taken there then"
            } else {
                "this transaction began as one that reads, on a node that is not primary: begin it with BEGIN IMMEDIATE"
            };
            return Err(Failure::new("SQLITE_READONLY", format!("SQLITE_READONLY: {why}")));
        }
        Ok(())
    }

    /// After a statement: notes what has become of the transaction.
    pub fn note(&mut self, connection: &SqlConnection, word: FirstWord) {
        if connection.sqlite.is_autocommit() {
            self.begun = None;
            self.reads_only = false;
        } else if self.begun.is_none() {
            self.begun = Some(Instant::now());
            self.reads_only = word == FirstWord::BeginReadOnly;
        }
    }
}

/// Why a transaction ends that a moving primary cannot take along.
pub(super) fn moved() -> Failure {
    Failure::new(
        TRANSACTION_LOST,
        "the primary moves to another node: the transaction was rolled back, nothing of it is committed, and it may be \
         tried again",
    )
}
