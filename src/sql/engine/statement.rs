//! One statement: prepared, checked, bound, stepped.

use std::ops::{Deref, DerefMut};
use std::time::Instant;

use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::{Batch, CachedStatement, Connection, Statement};

use super::EngineOptions;
use super::connection::SqlConnection;
use super::error::{Under, failure, input, plain};
use super::first_word::FirstWord;
use super::session::{Allowed, Session, Transaction};
use crate::sql::hrana::{
    Column, DescribeColumn, DescribeParam, DescribeResult, Failure, Stmt, StmtResult, Value,
};

/// Takes what a statement gives.
pub(super) trait RowSink {
    /// Its columns, once.
    ///
    /// # Errors
    /// Where nobody wants them.
    fn begin(&mut self, cols: Vec<Column>) -> Result<(), Failure>;

    /// A row.
    ///
    /// # Errors
    /// Where nobody wants it, or there are too many.
    fn row(&mut self, row: Vec<Value>) -> Result<(), Failure>;
}

/// What is left of the limits of one answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    rows: u64,
    bytes: usize,
}

impl Budget {
    /// All of it.
    pub fn of(options: &EngineOptions) -> Self {
        Self { rows: options.rows_max, bytes: options.bytes_max }
    }

    /// Takes the room of a row.
    ///
    /// # Errors
    /// Where there is none.
    pub fn take(&mut self, row: &[Value]) -> Result<(), Failure> {
        let bytes = row.iter().map(Value::weight).sum();
        let left = self.rows.checked_sub(1).zip(self.bytes.checked_sub(bytes));
        let (rows, bytes) = left.ok_or_else(|| {
            let why = "the answer is larger than sql.response_rows or sql.response_bytes: ask for less, or use a cursor";
            Failure::new("RESPONSE_TOO_LARGE", why)
        })?;
        *self = Self { rows, bytes };
        Ok(())
    }
}

/// Collects rows, within what is left of the answer.
pub(super) struct Collected<'a> {
    pub cols: Vec<Column>,
    pub rows: Vec<Vec<Value>>,
    pub budget: &'a mut Budget,
    pub wanted: bool,
}

impl RowSink for Collected<'_> {
    fn begin(&mut self, cols: Vec<Column>) -> Result<(), Failure> {
        self.cols = cols;
        Ok(())
    }

    fn row(&mut self, row: Vec<Value>) -> Result<(), Failure> {
        if self.wanted {
            self.budget.take(&row)?;
            self.rows.push(row);
        }
        Ok(())
    }
}

/// What a statement has done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    pub affected: u64,
    pub last_rowid: Option<i64>,
}

/// A statement that is prepared; kept by its connection where its text is one statement for certain.
pub(super) enum Prepared<'c> {
    Kept(CachedStatement<'c>),
    Once(Statement<'c>),
}

impl<'c> Deref for Prepared<'c> {
    type Target = Statement<'c>;

    fn deref(&self) -> &Statement<'c> {
        match self {
            Prepared::Kept(statement) => statement,
            Prepared::Once(statement) => statement,
        }
    }
}

impl DerefMut for Prepared<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Prepared::Kept(statement) => statement,
            Prepared::Once(statement) => statement,
        }
    }
}

/// Prepares a text that is one statement.
///
/// # Errors
/// Where it is none, or several.
pub(super) fn prepare<'c>(sqlite: &'c Connection, sql: &str) -> Result<Prepared<'c>, Failure> {
    let text = sql.trim_end();
    let text = text.strip_suffix(';').unwrap_or(text);
    if !text.contains(';') && !text.contains('\0') {
        let statement = sqlite.prepare_cached(text).map_err(|error| input(&error))?;
        // A comment, or nothing, is no statement.
        return match statement.expanded_sql() {
            Some(_) => Ok(Prepared::Kept(statement)),
            None => Err(no_statement()),
        };
    }
    let mut statements = Batch::new(sqlite, sql);
    let first = statements.next().map_err(|error| input(&error))?.ok_or_else(no_statement)?;
    match statements.next() {
        Ok(None) => Ok(Prepared::Once(first)),
        _ => Err(Failure::new(
            "SQL_MANY_STATEMENTS",
            "SQL has more than one statement: use a batch or a sequence",
        )),
    }
}

fn no_statement() -> Failure {
    Failure::new("SQL_NO_STATEMENT", "SQL has no statement")
}

/// What a statement is executed with.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub allowed: Allowed,
    pub options: &'a EngineOptions,
}

/// Executes a statement of a request.
///
/// # Errors
/// Where it fails, is not allowed, or is ended.
pub(super) fn execute(
    session: &mut Session,
    scope: Scope<'_>,
    stmt: &Stmt,
    out: &mut dyn RowSink,
) -> Result<Done, Failure> {
    session.end_late(scope.options);
    session.connection.interrupt.arm(scope.options.statement_max);
    let sql = session.text(&stmt.sql)?;
    let Session { connection, transaction, .. } = session;
    let mut statement = prepare(&connection.sqlite, &sql)?;
    bind(&mut statement, stmt)?;
    run(connection, transaction, scope, (&mut statement, FirstWord::of(&sql)), out)
}

/// Executes a statement that is prepared and bound.
fn run(
    connection: &SqlConnection,
    transaction: &mut Transaction,
    scope: Scope<'_>,
    (statement, word): (&mut Statement<'_>, FirstWord),
    out: &mut dyn RowSink,
) -> Result<Done, Failure> {
    let (sqlite, readonly) = (&connection.sqlite, statement.readonly());
    transaction.check(connection, scope.allowed, word, readonly)?;
    connection.interrupt.arm(scope.options.statement_max);
    let (autocommit, changes) = (sqlite.is_autocommit(), sqlite.total_changes());
    out.begin(columns(statement))?;
    let stepped = step(statement, out);
    transaction.note(connection, word);
    stepped.map_err(|stop| match stop {
        Stop::Sqlite(error) => {
            let under = Under {
                transaction: !autocommit,
                still: !sqlite.is_autocommit(),
                commits: !readonly && autocommit || word == FirstWord::Commit,
                interrupted: connection.interrupt.due(),
            };
            failure(&error, under)
        }
        Stop::Sink(failure) => failure,
    })?;
    let changed = sqlite.total_changes() != changes;
    Ok(Done {
        affected: if changed { sqlite.changes() } else { 0 },
        last_rowid: changed.then(|| sqlite.last_insert_rowid()),
    })
}

/// Executes a statement, and gives its rows at once.
///
/// # Errors
/// As [`execute`].
pub(super) fn collect(
    session: &mut Session,
    scope: Scope<'_>,
    stmt: &Stmt,
    budget: &mut Budget,
) -> Result<StmtResult, Failure> {
    let start = Instant::now();
    let wanted = stmt.want_rows.unwrap_or(true);
    let mut out = Collected { cols: Vec::new(), rows: Vec::new(), budget, wanted };
    let done = execute(session, scope, stmt, &mut out)?;
    Ok(StmtResult {
        cols: out.cols,
        rows: out.rows,
        affected_row_count: done.affected,
        last_insert_rowid: done.last_rowid,
        replication_index: None,
        query_duration_ms: start.elapsed().as_secs_f64() * 1000.0,
    })
}

/// Executes all statements of a text, until one fails; their rows are not wanted.
///
/// # Errors
/// Of the first that fails.
pub(super) fn sequence(session: &mut Session, scope: Scope<'_>, sql: &str) -> Result<(), Failure> {
    session.end_late(scope.options);
    let Session { connection, transaction, .. } = session;
    let mut statements = Batch::new(&connection.sqlite, sql);
    while let Some(mut statement) = statements.next().map_err(|error| input(&error))? {
        let word = FirstWord::of(&statement.expanded_sql().unwrap_or_default());
        let _done = run(connection, transaction, scope, (&mut statement, word), &mut Unwanted)?;
    }
    Ok(())
}

/// Rows that nobody wants.
struct Unwanted;

impl RowSink for Unwanted {
    fn begin(&mut self, _: Vec<Column>) -> Result<(), Failure> {
        Ok(())
    }

    fn row(&mut self, _: Vec<Value>) -> Result<(), Failure> {
        Ok(())
    }
}

/// What a statement is.
///
/// # Errors
/// Where it is none.
pub(super) fn describe(sqlite: &Connection, sql: &str) -> Result<DescribeResult, Failure> {
    let statement = prepare(sqlite, sql)?;
    let params = (1..=statement.parameter_count())
        .map(|at| DescribeParam { name: statement.parameter_name(at).map(ToOwned::to_owned) });
    let cols = statement.columns();
    let cols = cols.map(|column| DescribeColumn {
        name: column.name().to_owned(),
        decltype: column.decl_type().map(ToOwned::to_owned),
    });
    Ok(DescribeResult {
        params: params.collect(),
        cols: cols.collect(),
        is_explain: statement.is_explain() != 0,
        is_readonly: statement.readonly(),
    })
}

fn columns(statement: &Statement<'_>) -> Vec<Column> {
    let all = statement.columns();
    all.map(|column| Column {
        name: Some(column.name().to_owned()),
        decltype: column.decl_type().map(ToOwned::to_owned),
    })
    .collect()
}

fn bind(statement: &mut Statement<'_>, stmt: &Stmt) -> Result<(), Failure> {
    let invalid = |why: String| Failure::new("ARGS_INVALID", why);
    let count = statement.parameter_count();
    if stmt.args.len() > count {
        return Err(invalid(format!("{} arguments are given for {count} parameters", stmt.args.len())));
    }
    statement.clear_bindings();
    let mut bound = vec![false; count + 1];
    for (at, value) in (1..).zip(&stmt.args) {
        statement.raw_bind_parameter(at, value).map_err(|error| plain(&error))?;
        bound[at] = true;
    }
    for arg in &stmt.named_args {
        let bare = arg.name.trim_start_matches([':', '@', '$']);
        let named = |at: &usize| {
            let name = statement.parameter_name(*at);
            name.is_some_and(|name| name == arg.name || (bare == arg.name && name.get(1..) == Some(bare)))
        };
        // One that the statement does not have is nothing to it: clients give the same names to many statements.
        let Some(at) = (1..=count).find(named) else { continue };
        statement.raw_bind_parameter(at, &arg.value).map_err(|error| plain(&error))?;
        bound[at] = true;
    }
    // SQLite takes what is not bound for NULL; who forgets an argument is told.
    match (1..=count)
        .find(|at| !bound[*at] && statement.parameter_name(*at).is_none_or(|name| !name.is_empty()))
    {
        Some(at) => {
            let name = statement.parameter_name(at).map_or_else(|| format!("?{at}"), ToOwned::to_owned);
            Err(invalid(format!("no value is given for the parameter {name}")))
        }
        None => Ok(()),
    }
}

enum Stop {
    Sqlite(rusqlite::Error),
    Sink(Failure),
}

fn step(statement: &mut Statement<'_>, out: &mut dyn RowSink) -> Result<(), Stop> {
    let width = statement.column_count();
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next().map_err(Stop::Sqlite)? {
        let mut values = Vec::with_capacity(width);
        for column in 0..width {
            let value = row.get_ref(column).map_err(Stop::Sqlite)?;
            values.push(Value::of(value).map_err(|_| {
                let why = format!("the text in column {column} is not UTF-8: ask for CAST(... AS BLOB)");
                Stop::Sink(Failure::new("TEXT_NOT_UTF8", why))
            })?);
        }
        out.row(values).map_err(Stop::Sink)?;
    }
    Ok(())
}
