//! SQL as the tests use it.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::types::Value;

/// The journal modes a database on the mount may have.
pub const JOURNAL_MODES: [&str; 4] = ["wal", "delete", "truncate", "persist"];
/// The page sizes of the test matrix: smallest, usual, largest.
pub const PAGE_SIZES: [u32; 3] = [512, 4096, 65536];

/// Opens a database the way a careful application does.
pub fn open(path: &Path) -> Connection {
    try_open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// As [`open`]; the error instead of a panic.
pub fn try_open(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(20))?;
    Ok(connection)
}

/// Creates (or opens) a database with this page size and journal mode.
pub fn create(path: &Path, journal: &str, page_size: u32) -> Connection {
    let connection = open(path);
    connection.execute_batch(&format!("PRAGMA page_size={page_size}")).unwrap();
    let got: String =
        connection.query_row(&format!("PRAGMA journal_mode={journal}"), [], |row| row.get(0)).unwrap();
    assert_eq!(got, journal, "journal mode of {}", path.display());
    connection
}

/// Runs statements that must succeed.
pub fn run(connection: &Connection, sql: &str) {
    connection.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// One number.
pub fn number(connection: &Connection, sql: &str) -> i64 {
    connection.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// One text.
pub fn text(connection: &Connection, sql: &str) -> String {
    connection.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// Panics unless SQLite finds the whole database in order.
pub fn check_integrity(connection: &Connection) {
    assert_eq!(text(connection, "PRAGMA integrity_check"), "ok");
}

/// All rows of a query.
pub fn rows(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<Vec<Value>>> {
    let mut statement = connection.prepare(sql)?;
    let width = statement.column_count();
    let mut found = Vec::new();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        found.push((0..width).map(|column| row.get(column)).collect::<Result<_, _>>()?);
    }
    Ok(found)
}

/// Everything a database says: schema and all rows of all tables in a fixed order.
pub fn dump(connection: &Connection) -> Vec<(String, Vec<Vec<Value>>)> {
    let read = |sql: &str| rows(connection, sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let mut all =
        vec![("schema".to_owned(), read("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name"))];
    for table in read("SELECT name FROM sqlite_schema WHERE type='table' ORDER BY name") {
        let Value::Text(name) = &table[0] else { continue };
        // A table without rowids is in the order of its key anyway.
        let with_rowid = rows(connection, &format!("SELECT rowid, * FROM \"{name}\" ORDER BY rowid"));
        all.push((name.clone(), with_rowid.unwrap_or_else(|_| read(&format!("SELECT * FROM \"{name}\"")))));
    }
    all
}
