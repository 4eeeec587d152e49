//! What SQL that comes over the network may do: everything inside its database, and nothing outside of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

/// Pragmas that only tell, whatever their argument; those with a table's name are among them.
const TELLING: [&str; 19] = [
    "collation_list",
    "compile_options",
    "data_version",
    "database_list",
    "foreign_key_check",
    "foreign_key_list",
    "freelist_count",
    "function_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "module_list",
    "page_count",
    "pragma_list",
    "quick_check",
    "table_info",
    "table_list",
    "table_xinfo",
];
/// Pragmas whose value may be asked for, but is the node's: they change the file, its durability or its locks.
const ASKED: [&str; 18] = [
    "auto_vacuum",
    "busy_timeout",
    "cache_size",
    "encoding",
    "journal_mode",
    "journal_size_limit",
    "locking_mode",
    "max_page_count",
    "mmap_size",
    "page_size",
    "query_only",
    "schema_version",
    "secure_delete",
    "synchronous",
    "temp_store",
    "trusted_schema",
    "wal_autocheckpoint",
    "writable_schema",
];
/// Pragmas that may be set. The first are of the connection, which then is not used again for another stream.
const OF_CONNECTION: [&str; 7] = [
    "analysis_limit",
    "automatic_index",
    "case_sensitive_like",
    "defer_foreign_keys",
    "foreign_keys",
    "legacy_alter_table",
    "recursive_triggers",
];
/// These are of the database, and inside the transaction.
const OF_DATABASE: [&str; 4] = ["application_id", "incremental_vacuum", "optimize", "user_version"];

/// Decides for one connection; notes in `changed` that the connection is not as a new one any more.
pub(super) fn authorizer(
    changed: Arc<AtomicBool>,
) -> impl for<'r> FnMut(AuthContext<'r>) -> Authorization + Send + 'static {
    move |context| {
        let allowed = match context.action {
            AuthAction::Pragma { pragma_name, pragma_value } => pragma(pragma_name, pragma_value, &changed),
            // VACUUM works in a temporary file that it attaches under an empty name; so may others.
            AuthAction::Attach { filename } => {
                changed.store(true, Ordering::Relaxed);
                filename.is_empty()
            }
            AuthAction::Function { function_name } => !["load_extension", "fts3_tokenizer"]
                .iter()
                .any(|name| function_name.eq_ignore_ascii_case(name)),
            AuthAction::CreateTempTable { .. }
            | AuthAction::CreateTempIndex { .. }
            | AuthAction::CreateTempTrigger { .. }
            | AuthAction::CreateTempView { .. } => {
                changed.store(true, Ordering::Relaxed);
                true
            }
            // ATTACH with a name that is an expression among them: SQLite does not tell it.
            AuthAction::Unknown { .. } => false,
            _ => true,
        };
        if allowed { Authorization::Allow } else { Authorization::Deny }
    }
}

fn pragma(name: &str, value: Option<&str>, changed: &AtomicBool) -> bool {
    let name = name.to_ascii_lowercase();
    let name = name.as_str();
    if OF_CONNECTION.contains(&name) && value.is_some() {
        changed.store(true, Ordering::Relaxed);
    }
    TELLING.contains(&name)
        || OF_CONNECTION.contains(&name)
        || OF_DATABASE.contains(&name)
        || (ASKED.contains(&name) && value.is_none())
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    #[test]
    fn a_statement_stays_in_its_database_and_leaves_its_durability() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other.db");
        let mut connection = Connection::open(dir.path().join("app.db")).unwrap();
        connection
            .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(v); INSERT INTO t VALUES(1)")
            .unwrap();
        let changed = Arc::new(AtomicBool::new(false));
        connection.authorizer(Some(authorizer(changed.clone()))).unwrap();
        for sql in [
            format!("ATTACH '{}' AS o", other.display()),
            format!("ATTACH 'file:{}' AS o", other.display()),
            format!("ATTACH '{}' || '' AS o", other.display()),
            "ATTACH ?1 AS o".to_owned(),
            "ATTACH ':memory:' AS o".to_owned(),
            format!("VACUUM INTO '{}'", other.display()),
            format!("VACUUM main INTO '{}' || ''", other.display()),
            "SELECT load_extension('/x')".to_owned(),
            "SELECT fts3_tokenizer('simple', x'00')".to_owned(),
            "PRAGMA journal_mode=DELETE".to_owned(),
            "PRAGMA Synchronous = OFF".to_owned(),
            "PRAGMA main.locking_mode(EXCLUSIVE)".to_owned(),
            "PRAGMA writable_schema=1".to_owned(),
            "PRAGMA temp_store_directory='/tmp'".to_owned(),
            "PRAGMA mmap_size=1".to_owned(),
            "PRAGMA wal_checkpoint(TRUNCATE)".to_owned(),
            "PRAGMA soft_heap_limit=1".to_owned(),
            "PRAGMA schema_version=7".to_owned(),
        ] {
            let outcome = connection.execute_batch(&sql);
            assert!(outcome.is_err(), "{sql}");
        }
        assert!(!other.exists());
        changed.store(false, Ordering::Relaxed);
        for sql in [
            "PRAGMA user_version=3",
            "PRAGMA table_info(t)",
            "SELECT * FROM pragma_table_info('t')",
            "PRAGMA journal_mode",
            "PRAGMA integrity_check",
            "PRAGMA optimize",
        ] {
            connection.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        assert!(!changed.load(Ordering::Relaxed));
        for sql in ["PRAGMA foreign_keys=ON", "CREATE TEMP TABLE x(v)", "VACUUM", "ATTACH '' AS scratch"] {
            connection.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
            assert!(changed.swap(false, Ordering::Relaxed), "{sql}");
        }
    }
}
