//! The final databases are sound, and hold what was committed and nothing else.

use std::collections::BTreeSet;
use std::path::Path;

use super::super::history::History;
use crate::types::DbName;

/// `file` is a copy of a final database.
pub fn check(history: &History, db: &DbName, file: &Path) -> Result<(), String> {
    let numbers = numbers_in(file).map_err(|error| format!("{db} in the end: {error}"))?;
    let committed: BTreeSet<u64> = history.content(db).iter().map(|step| step.proposal).collect();
    if numbers != committed {
        let (lost, strange) = (committed.difference(&numbers), numbers.difference(&committed));
        let (lost, strange): (Vec<_>, Vec<_>) = (lost.collect(), strange.collect());
        return Err(format!("{db} in the end lacks {lost:?} and has {strange:?} that was not committed"));
    }
    Ok(())
}

fn numbers_in(file: &Path) -> Result<BTreeSet<u64>, String> {
    let failed = |error: rusqlite::Error| error.to_string();
    let connection = rusqlite::Connection::open(file).map_err(failed)?;
    let found: String =
        connection.query_row("PRAGMA integrity_check", (), |row| row.get(0)).map_err(failed)?;
    if found != "ok" {
        return Err(format!("integrity_check says {found}"));
    }
    let mut statement = connection.prepare("SELECT number FROM done").map_err(failed)?;
    let rows = statement.query_map((), |row| row.get::<_, i64>(0)).map_err(failed)?;
    rows.map(|row| row.map(|number| number as u64).map_err(failed)).collect()
}
