//! Whether a node that is not primary can do a request by itself.

use rusqlite::Batch as Statements;
use rusqlite::fallible_iterator::FallibleIterator;

use super::first_word::FirstWord;
use super::session::Session;
use super::statement::prepare;
use crate::sql::hrana::{SqlRef, StoredText, StreamRequest};

/// Whether all of it reads, and compiles here; what does not compile may be newer than this node's schema, and the
/// primary has the last word on it. A transaction that may write is the primary's, unless it ends in the same request.
pub(super) fn reads_only(session: &Session, requests: &[StreamRequest]) -> bool {
    let ends = matches!(requests.last(), Some(StreamRequest::Close {}));
    // Texts that are stored in this request are not yet known to the session.
    let mut texts: Vec<StoredText> = Vec::new();
    requests.iter().all(|request| match request {
        StreamRequest::Execute { stmt } => is_read(session, &texts, &stmt.sql, ends),
        StreamRequest::Batch { batch } => {
            batch.steps.iter().all(|step| is_read(session, &texts, &step.stmt.sql, ends))
        }
        StreamRequest::Sequence(sql) => all_read(session, &texts, sql, ends),
        StreamRequest::Describe(sql) => {
            let Some(text) = text(session, &texts, sql) else { return true };
            prepare(&session.connection.sqlite, &text).is_ok()
        }
        StreamRequest::StoreSql(text) => {
            texts.push(text.clone());
            true
        }
        StreamRequest::CloseSql { sql_id } => {
            texts.retain(|text| text.sql_id != *sql_id);
            true
        }
        StreamRequest::GetAutocommit {} | StreamRequest::Close {} => true,
    })
}

/// The text; `None` where there is none, which executing it will tell.
fn text(session: &Session, texts: &[StoredText], sql: &SqlRef) -> Option<String> {
    let stored = texts.iter().rev().find(|text| Some(text.sql_id) == sql.sql_id);
    match stored {
        Some(text) if sql.sql.is_none() => Some(text.sql.clone()),
        _ => session.text(sql).ok(),
    }
}

fn is_read(session: &Session, texts: &[StoredText], sql: &SqlRef, ends: bool) -> bool {
    let Some(text) = text(session, texts, sql) else { return true };
    may_be_here(FirstWord::of(&text), ends)
        && prepare(&session.connection.sqlite, &text).is_ok_and(|statement| statement.readonly())
}

fn all_read(session: &Session, texts: &[StoredText], sql: &SqlRef, ends: bool) -> bool {
    let Some(text) = text(session, texts, sql) else { return true };
    let mut statements = Statements::new(&session.connection.sqlite, &text);
    loop {
        match statements.next() {
            Ok(Some(statement)) => {
                let word = FirstWord::of(&statement.expanded_sql().unwrap_or_default());
                if !statement.readonly() || !may_be_here(word, ends) {
                    return false;
                }
            }
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

fn may_be_here(word: FirstWord, ends: bool) -> bool {
    match word {
        FirstWord::Begin | FirstWord::Savepoint => ends,
        FirstWord::BeginWrite => false,
        FirstWord::BeginReadOnly | FirstWord::Commit | FirstWord::Other => true,
    }
}
