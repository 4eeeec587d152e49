use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};

/// Words that a statement is made of, and the commands of the shell.
const WORDS: [&str; 44] = [
    ".exit",
    ".help",
    ".schema",
    ".tables",
    "ALTER",
    "AND",
    "AS",
    "BEGIN",
    "BY",
    "COMMIT",
    "CREATE",
    "DELETE",
    "DESC",
    "DISTINCT",
    "DROP",
    "EXISTS",
    "EXPLAIN",
    "FROM",
    "GROUP",
    "HAVING",
    "IMMEDIATE",
    "INDEX",
    "INSERT",
    "INTO",
    "JOIN",
    "LEFT",
    "LIMIT",
    "NOT",
    "NULL",
    "ON",
    "OR",
    "ORDER",
    "PRAGMA",
    "QUERY PLAN",
    "REPLACE",
    "ROLLBACK",
    "SELECT",
    "SET",
    "TABLE",
    "UNION",
    "UPDATE",
    "VALUES",
    "VIEW",
    "WHERE",
];

/// Completes words of SQL, and names of the database.
#[derive(Default)]
pub(super) struct Names(pub Vec<String>);

impl Completer for Names {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let before = &line[..at];
        let start = before
            .rfind(|c: char| !c.is_alphanumeric() && c != '_' && c != '.')
            .map_or(0, |found| found + before[found..].chars().next().map_or(1, char::len_utf8));
        let begun = before[start..].to_lowercase();
        if begun.is_empty() {
            return Ok((start, Vec::new()));
        }
        let all = self.0.iter().map(String::as_str).chain(WORDS);
        let mut fitting: Vec<String> =
            all.filter(|word| word.to_lowercase().starts_with(&begun)).map(ToOwned::to_owned).collect();
        fitting.dedup();
        Ok((start, fitting))
    }
}

impl Hinter for Names {
    type Hint = String;
}

impl Highlighter for Names {}

impl Validator for Names {}

impl Helper for Names {}
