//! The shell of a terminal.

use std::path::PathBuf;

use anyhow::bail;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};

use super::complete::Names;
use super::format::render;
use super::remote::{Remote, Table};
use super::split::{Pieces, split};
use crate::cli::output::{error_line, out};
use crate::cli::result_format::Format;

/// Where lines are kept, below the home directory.
const HISTORY: &str = ".skein_sql_history";
/// Names of tables and columns that are completed.
const NAMES: &str = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%' \
                     UNION SELECT c.name FROM sqlite_schema AS s, pragma_table_info(s.name) AS c LIMIT 10000";
const HELP: &str = ".tables           the tables and views\n.schema [TABLE]   how they were made\n.exit             \
                    ends; so does Ctrl-D\nA statement ends with a semicolon.\n";

type Line = Editor<Names, FileHistory>;

/// Reads statements until the end.
///
/// # Errors
/// Where the terminal fails.
pub(super) async fn run(mut remote: Remote, format: Format) -> anyhow::Result<i32> {
    let mut editor: Line = Editor::with_config(Config::builder().auto_add_history(false).build())?;
    let history = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(HISTORY));
    if let Some(path) = &history {
        // There is none the first time.
        let _ = editor.load_history(path);
    }
    editor.set_helper(Some(Names(names(&mut remote).await)));
    let mut begun = String::new();
    loop {
        let prompt = match (begun.is_empty(), remote.in_transaction()) {
            (false, _) => "  ...> ",
            (true, true) => "skein*> ",
            (true, false) => "skein> ",
        };
        let (back, read) = tokio::task::spawn_blocking(move || {
            let read = editor.readline(prompt);
            (editor, read)
        })
        .await?;
        editor = back;
        match read {
            Ok(line) => {
                begun.push_str(&line);
                begun.push('\n');
            }
            Err(ReadlineError::Interrupted) => {
                begun.clear();
                continue;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => bail!("the terminal: {error}"),
        }
        let Pieces { whole, rest } = split(&begun);
        if !whole.is_empty() {
            let _new = editor.add_history_entry(begun.trim());
        }
        if whole.iter().any(|piece| matches!(*piece, ".exit" | ".quit")) {
            break;
        }
        for statement in whole {
            show(&mut remote, statement, format).await?;
            if statement
                .trim_start()
                .get(..6)
                .is_some_and(|word| ["create", "alter ", "drop t"].contains(&word.to_lowercase().as_str()))
            {
                editor.set_helper(Some(Names(names(&mut remote).await)));
            }
        }
        begun = rest.trim_start().to_owned();
    }
    if let Some(path) = &history
        && let Err(error) = editor.save_history(path)
    {
        error_line(&format!("{}: {error}", path.display()));
    }
    remote.close().await?;
    Ok(0)
}

async fn show(remote: &mut Remote, statement: &str, format: Format) -> anyhow::Result<()> {
    let answer = match statement.strip_prefix('.') {
        Some(command) => dot_command(remote, command).await,
        None => remote.execute(statement).await,
    };
    match answer {
        Ok(result) => {
            out(&render(&result, format))?;
            if format == Format::Table && !statement.starts_with('.') {
                let (rows, changed) = (result.rows.len(), result.affected_row_count);
                let ms = result.query_duration_ms;
                out(&format!("({rows} rows, {changed} changed, {ms:.1} ms)\n"))?;
            }
        }
        Err(error) => error_line(&format!("{error:#}")),
    }
    Ok(())
}

/// A command of the shell itself, without its dot.
///
/// # Errors
/// Where there is none of that name, or the node refuses.
pub(super) async fn dot_command(remote: &mut Remote, command: &str) -> anyhow::Result<Table> {
    let mut words = command.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("tables"), None, _) => {
            let sql = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%' ORDER BY 1";
            remote.execute(sql).await
        }
        (Some("schema"), None, _) => {
            remote
                .execute(
                    "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY tbl_name, type DESC, name",
                )
                .await
        }
        (Some("schema"), Some(table), None) => {
            let table = table.replace('\'', "''");
            let sql = format!(
                "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND tbl_name = '{table}' ORDER BY type DESC, name"
            );
            remote.execute(&sql).await
        }
        (Some("help"), None, _) => {
            out(HELP)?;
            Ok(Table::default())
        }
        (Some("exit" | "quit"), None, _) => Ok(Table::default()),
        _ => bail!("there is no command .{command}: .help lists them"),
    }
}

/// Without names nothing but SQL's own words is completed.
async fn names(remote: &mut Remote) -> Vec<String> {
    if remote.in_transaction() {
        return Vec::new();
    }
    let found = remote.execute(NAMES).await.unwrap_or_default();
    let name = |row: &Vec<serde_json::Value>| Some(row.first()?["value"].as_str()?.to_owned());
    found.rows.iter().filter_map(name).collect()
}
