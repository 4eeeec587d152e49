//! Errors of SQLite as clients read them, with whether it is safe to try again.

use rusqlite::{Error, ErrorCode, ffi};

use super::interrupt::Reason;
use crate::sql::hrana::Failure;

/// What was under way when SQLite refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Under {
    /// A transaction was open before.
    pub transaction: bool,
    /// And is open still.
    pub still: bool,
    /// The statement would have committed something: alone, or as a `COMMIT`.
    pub commits: bool,
    /// It was ended from outside.
    pub interrupted: Option<Reason>,
}

/// The code of what nobody can tell.
pub(super) const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";
/// The code of what nobody waits for any more.
pub(super) const ABANDONED: &str = "ABANDONED";
/// The code of a transaction of which nothing is committed.
pub(super) const TRANSACTION_LOST: &str = "TRANSACTION_LOST";

/// The error of a statement.
pub(super) fn failure(error: &Error, under: Under) -> Failure {
    let plain = plain(error);
    if let Some(reason) = under.interrupted
        && matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::OperationInterrupted | ErrorCode::DatabaseBusy)
        )
    {
        return interrupted(reason, under);
    }
    if error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) && under.commits {
        let why = format!("{}: it may or may not be committed; look before you try again", plain.message);
        return Failure::new(OUTCOME_UNKNOWN, why);
    }
    if under.transaction && !under.still && !under.commits {
        let why = format!(
            "{}: the transaction was rolled back, nothing of it is committed, and it may be tried again",
            plain.message
        );
        return Failure::new(TRANSACTION_LOST, why);
    }
    plain
}

fn interrupted(reason: Reason, under: Under) -> Failure {
    let lost = if under.transaction && !under.still { ", and the transaction was rolled back" } else { "" };
    match reason {
        Reason::Late => Failure::new(
            "STATEMENT_TIMEOUT",
            format!("the statement took longer than sql.statement_timeout: nothing of it is done{lost}"),
        ),
        Reason::Abandoned => Failure::new(ABANDONED, format!("the client has gone{lost}")),
    }
}

/// The error of a text that does not compile.
pub(super) fn input(error: &Error) -> Failure {
    match error {
        // Without a place in the text SQLite's message is told as one of execution.
        Error::SqliteFailure(inner, Some(message)) if inner.extended_code == ffi::SQLITE_ERROR => {
            Failure::new("SQL_INPUT_ERROR", message.clone())
        }
        other => plain(other),
    }
}

/// The error by itself.
pub(super) fn plain(error: &Error) -> Failure {
    match error {
        Error::SqliteFailure(inner, message) => {
            let text = message.clone().unwrap_or_else(|| inner.to_string());
            Failure::new(code(inner.extended_code), format!("{}: {text}", code(inner.extended_code)))
        }
        Error::SqlInputError { error: inner, msg, offset, .. }
            if inner.extended_code == ffi::SQLITE_ERROR =>
        {
            let at = usize::try_from(*offset).map_or_else(|_| String::new(), |at| format!(" at byte {at}"));
            Failure::new("SQL_INPUT_ERROR", format!("{msg}{at}"))
        }
        Error::SqlInputError { error: inner, msg, .. } => {
            Failure::new(code(inner.extended_code), format!("{}: {msg}", code(inner.extended_code)))
        }
        Error::NulError(_) => Failure::new("SQL_INPUT_ERROR", "a statement may not contain a zero byte"),
        other => Failure::new("SQLITE_ERROR", other.to_string()),
    }
}

/// The name of a primary result code.
///
/// Source: <https://www.sqlite.org/rescode.html>.
fn code(extended: i32) -> &'static str {
    match extended & 0xff {
        ffi::SQLITE_INTERNAL => "SQLITE_INTERNAL",
        ffi::SQLITE_PERM => "SQLITE_PERM",
        ffi::SQLITE_ABORT => "SQLITE_ABORT",
        ffi::SQLITE_BUSY => "SQLITE_BUSY",
        ffi::SQLITE_LOCKED => "SQLITE_LOCKED",
        ffi::SQLITE_NOMEM => "SQLITE_NOMEM",
        ffi::SQLITE_READONLY => "SQLITE_READONLY",
        ffi::SQLITE_INTERRUPT => "SQLITE_INTERRUPT",
        ffi::SQLITE_IOERR => "SQLITE_IOERR",
        ffi::SQLITE_CORRUPT => "SQLITE_CORRUPT",
        ffi::SQLITE_FULL => "SQLITE_FULL",
        ffi::SQLITE_CANTOPEN => "SQLITE_CANTOPEN",
        ffi::SQLITE_PROTOCOL => "SQLITE_PROTOCOL",
        ffi::SQLITE_SCHEMA => "SQLITE_SCHEMA",
        ffi::SQLITE_TOOBIG => "SQLITE_TOOBIG",
        ffi::SQLITE_CONSTRAINT => "SQLITE_CONSTRAINT",
        ffi::SQLITE_MISMATCH => "SQLITE_MISMATCH",
        ffi::SQLITE_MISUSE => "SQLITE_MISUSE",
        ffi::SQLITE_AUTH => "SQLITE_AUTH",
        ffi::SQLITE_RANGE => "SQLITE_RANGE",
        ffi::SQLITE_NOTADB => "SQLITE_NOTADB",
        _ => "SQLITE_ERROR",
    }
}
