//! `skein db export --format sql`: a database as a script of SQL statements, as the `.dump` of SQLite's shell.
//!
//! SQLite reads the script, and other databases do after what is SQLite's own is taken out of it. Source:
//! <https://sqlite.org/cli.html#converting_an_entire_database_to_a_text_file>.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

/// Writes the database in `file`, which nobody changes meanwhile, to `out`.
///
/// The statements make, in one transaction, the tables with their rows in the order of their keys, then indexes, triggers and
/// views. Generated columns are not written; a rowid that is no column is not kept, as VACUUM does not keep it.
///
/// # Errors
/// Where the file cannot be read as a database, or `out` not be written.
pub(super) fn dump(file: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    // Immutable: a file that says it is in WAL mode is read without files beside it.
    let uri = format!("file:{}?immutable=1", escaped(file)?);
    let database =
        Connection::open_with_flags(uri, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI)?;
    let encoding = Encoding::of(&database)?;
    writeln!(out, "PRAGMA foreign_keys=OFF;")?;
    if encoding != Encoding::Utf8 {
        writeln!(out, "PRAGMA encoding='{}';", encoding.name())?;
    }
    for pragma in ["application_id", "user_version"] {
        let value: i64 = database.pragma_query_value(None, pragma, |row| row.get(0))?;
        if value != 0 {
            writeln!(out, "PRAGMA {pragma}={value};")?;
        }
    }
    writeln!(out, "BEGIN TRANSACTION;")?;
    tables(&database, encoding, out)?;
    others(&database, out)?;
    writeln!(out, "COMMIT;")?;
    Ok(out.flush()?)
}

/// A path as URIs take it. Source: <https://sqlite.org/uri.html#the_uri_path>.
fn escaped(file: &Path) -> anyhow::Result<String> {
    let path = file.to_str().with_context(|| format!("{} is not UTF-8", file.display()))?;
    Ok(path.replace('%', "%25").replace('?', "%3f").replace('#', "%23"))
}

/// How the database keeps text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Encoding {
    Utf8,
    Utf16Le,
    Utf16Be,
}

impl Encoding {
    fn of(database: &Connection) -> anyhow::Result<Self> {
        let name: String = database.pragma_query_value(None, "encoding", |row| row.get(0))?;
        match name.as_str() {
            "UTF-8" => Ok(Self::Utf8),
            "UTF-16le" => Ok(Self::Utf16Le),
            "UTF-16be" => Ok(Self::Utf16Be),
            other => anyhow::bail!("text is kept as {other}, which is not known"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Utf8 => "UTF-8",
            Self::Utf16Le => "UTF-16le",
            Self::Utf16Be => "UTF-16be",
        }
    }

    /// The bytes that a database of this encoding keeps for a text.
    fn bytes(self, text: &[u8]) -> Vec<u8> {
        let wide = || String::from_utf8_lossy(text).encode_utf16().collect::<Vec<_>>();
        match self {
            Self::Utf8 => text.to_vec(),
            Self::Utf16Le => wide().into_iter().flat_map(u16::to_le_bytes).collect(),
            Self::Utf16Be => wide().into_iter().flat_map(u16::to_be_bytes).collect(),
        }
    }
}

fn tables(database: &Connection, encoding: Encoding, out: &mut impl Write) -> anyhow::Result<()> {
    // The table that AUTOINCREMENT keeps comes into being with the first table that uses it.
    let mut listed = database.prepare(
        "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND sql IS NOT NULL
         ORDER BY name = 'sqlite_sequence', rowid",
    )?;
    let tables: Vec<(String, String)> =
        listed.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    let is_virtual =
        |sql: &str| sql.get(..20).is_some_and(|head| head.eq_ignore_ascii_case("CREATE VIRTUAL TABLE"));
    let any_virtual = tables.iter().any(|(_, sql)| is_virtual(sql));
    if any_virtual {
        // Its module has made the tables it keeps its content in, and would make them again.
        writeln!(out, "PRAGMA writable_schema=ON;")?;
    }
    let mut analyzed = false;
    for (name, sql) in &tables {
        if is_virtual(sql) {
            let (name, sql) =
                (text_literal(name.as_bytes(), encoding), text_literal(sql.as_bytes(), encoding));
            writeln!(
                out,
                "INSERT INTO sqlite_schema(type,name,tbl_name,rootpage,sql) VALUES('table',{name},{name},0,{sql});"
            )?;
            continue;
        }
        match name.as_str() {
            "sqlite_sequence" => writeln!(out, "DELETE FROM sqlite_sequence;")?,
            name if name.starts_with("sqlite_stat") => {
                if !std::mem::replace(&mut analyzed, true) {
                    writeln!(out, "ANALYZE sqlite_schema;")?;
                }
            }
            name if name.starts_with("sqlite_") => continue,
            _ => writeln!(out, "{sql};")?,
        }
        rows(database, name, encoding, out).with_context(|| format!("table {name}"))?;
    }
    if any_virtual {
        writeln!(out, "PRAGMA writable_schema=OFF;")?;
    }
    Ok(())
}

fn rows(database: &Connection, table: &str, encoding: Encoding, out: &mut impl Write) -> anyhow::Result<()> {
    let mut described = database.prepare("SELECT name, hidden FROM pragma_table_xinfo(?1) ORDER BY cid")?;
    let columns: Vec<(String, i64)> =
        described.query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    let stored: Vec<_> =
        columns.iter().filter(|(_, hidden)| *hidden == 0).map(|(name, _)| quoted(name)).collect();
    let list = stored.join(",");
    let named = if stored.len() == columns.len() { String::new() } else { format!("({list})") };
    let head = format!("INSERT INTO {}{named} VALUES(", quoted(table));
    let mut statement = database.prepare(&format!("SELECT {list} FROM {}", quoted(table)))?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        out.write_all(head.as_bytes())?;
        for column in 0..stored.len() {
            if column > 0 {
                out.write_all(b",")?;
            }
            literal(row.get_ref(column)?, encoding, out)?;
        }
        out.write_all(b");\n")?;
    }
    Ok(())
}

fn others(database: &Connection, out: &mut impl Write) -> anyhow::Result<()> {
    let mut listed = database.prepare(
        "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND type IN ('index', 'trigger', 'view') ORDER BY rowid",
    )?;
    let mut found = listed.query([])?;
    while let Some(row) = found.next()? {
        writeln!(out, "{};", row.get::<_, String>(0)?)?;
    }
    Ok(())
}

/// A name as SQL takes every name.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(value: ValueRef<'_>, encoding: Encoding, out: &mut impl Write) -> io::Result<()> {
    match value {
        ValueRef::Null => out.write_all(b"NULL"),
        ValueRef::Integer(number) => write!(out, "{number}"),
        // A number too large for a double is infinite to SQLite, which has no other way to write it.
        ValueRef::Real(number) if number.is_infinite() => {
            write!(out, "{}9e999", if number < 0.0 { "-" } else { "" })
        }
        // The fewest digits that give the same double, with an exponent, so that it is not read as an integer.
        ValueRef::Real(number) => write!(out, "{number:e}"),
        ValueRef::Text(text) => out.write_all(text_literal(text, encoding).as_bytes()),
        ValueRef::Blob(bytes) => write!(out, "X'{}'", hex(bytes)),
    }
}

/// A text, whatever is in it: SQLite ends a statement at a NUL.
fn text_literal(text: &[u8], encoding: Encoding) -> String {
    match std::str::from_utf8(text) {
        Ok(text) if !text.contains('\0') => format!("'{}'", text.replace('\'', "''")),
        _ => format!("CAST(X'{}' AS TEXT)", hex(&encoding.bytes(text))),
    }
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = "
        PRAGMA foreign_keys=OFF; PRAGMA user_version=7; PRAGMA application_id=99;
        CREATE TABLE \"odd \"\"name\"(id INTEGER PRIMARY KEY AUTOINCREMENT, 'select' TEXT, v);
        CREATE TABLE plain(a, b REAL, c AS (a || '!') STORED, d);
        CREATE TABLE keyed(k TEXT PRIMARY KEY, n INT) WITHOUT ROWID, STRICT;
        CREATE TABLE child(id INTEGER PRIMARY KEY, parent INTEGER REFERENCES \"odd \"\"name\");
        CREATE VIRTUAL TABLE words USING fts5(body);
        CREATE INDEX by_a ON plain(a) WHERE a IS NOT NULL;
        CREATE VIEW seen AS SELECT a FROM plain;
        CREATE TRIGGER counts AFTER INSERT ON child BEGIN UPDATE keyed SET n = n + 1; END;
        INSERT INTO child VALUES(1, 3);
        INSERT INTO \"odd \"\"name\" VALUES(3, 'it''s
two lines', NULL), (9, char(0) || 'after', X'00ff');
        DELETE FROM \"odd \"\"name\" WHERE id = 9;
        INSERT INTO \"odd \"\"name\" VALUES(4, 'a' || char(0) || 'b', x'');
        INSERT INTO plain(a, b, d) VALUES(1, 0.1, 1e300), (NULL, 1e999, -1e999), (-9223372036854775808, 5.0, 3.0),
            ('é', 1.7976931348623157e308, 4.9e-324), ('', -0.0, 123456789012345.678);
        INSERT INTO keyed VALUES('k', 9223372036854775807);
        INSERT INTO words VALUES('the quick brown fox');
        ANALYZE;";

    /// Every value of every table, exactly: type, and bytes or number.
    fn content(database: &Connection) -> Vec<String> {
        let mut listed =
            database.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").unwrap();
        let names: Vec<String> =
            listed.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        let mut all = Vec::new();
        for name in names {
            let mut statement = database.prepare(&format!("SELECT * FROM {}", quoted(&name))).unwrap();
            let columns = statement.column_count();
            let mut rows = statement.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                let values: Vec<_> = (0..columns).map(|i| format!("{:?}", row.get_ref(i).unwrap())).collect();
                all.push(format!("{name}: {}", values.join(", ")));
            }
        }
        all
    }

    fn schema(database: &Connection) -> Vec<String> {
        let mut listed =
            database.prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name").unwrap();
        listed.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    fn there_and_back(encoding: &str) -> (Connection, Connection, String) {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from 100%?#.db");
        let made = Connection::open(&from).unwrap();
        made.execute_batch(&format!("PRAGMA encoding='{encoding}'; {SCHEMA}")).unwrap();
        // As an export of a database in WAL mode: the header says so, and there is no log.
        made.execute_batch("PRAGMA journal_mode=WAL; PRAGMA wal_checkpoint(TRUNCATE);").unwrap();
        let mut script = Vec::new();
        dump(&from, &mut script).unwrap();
        let script = String::from_utf8(script).unwrap();
        let to = dir.path().join("to.db");
        Connection::open(&to).unwrap().execute_batch(&script).unwrap();
        (made, Connection::open(&to).unwrap(), script)
    }

    #[test]
    fn the_script_makes_the_same_database_again() {
        for encoding in ["UTF-8", "UTF-16le", "UTF-16be"] {
            let (from, to, script) = there_and_back(encoding);
            assert!(content(&from).len() > 12, "{:?}", content(&from));
            assert_eq!(content(&to), content(&from), "{encoding}: {script}");
            assert_eq!(schema(&to), schema(&from));
            for pragma in ["user_version", "application_id", "encoding"] {
                let value = |database: &Connection| {
                    database
                        .pragma_query_value(None, pragma, |row| Ok(format!("{:?}", row.get_ref(0)?)))
                        .unwrap()
                };
                assert_eq!(value(&to), value(&from), "{pragma}");
            }
            let checked: String = to.pragma_query_value(None, "integrity_check", |row| row.get(0)).unwrap();
            assert_eq!(checked, "ok");
            let found: i64 =
                to.query_row("SELECT count(*) FROM words('quick')", [], |row| row.get(0)).unwrap();
            assert_eq!(found, 1, "the full text index works");
        }
    }

    #[test]
    fn what_is_no_database_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.db");
        std::fs::write(&file, vec![7; 4096]).unwrap();
        assert!(dump(&file, &mut Vec::new()).is_err());
    }
}
