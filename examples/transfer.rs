//! A small bank: moves money between accounts, one transaction each, and says what was acknowledged.
//!
//! ```text
//! transfer DB [--id NAME] [--accounts N] [--journal MODE] [--synchronous LEVEL] [--page-size BYTES]
//!             [--count N] [--seconds S] [--pause-ms MS] [--note BYTES] [--seed N]
//! transfer DB --watch [--seconds S]
//! ```
//! Writes `commit NAME SEQ` once SQLite has acknowledged transaction SEQ (1, 2, 3...) of this NAME, nothing
//! before that. `--watch` only reads, on a replica for instance: `seen N` for N transactions, and exit code 2 with
//! `broken ...` where money was lost or history went backwards, which must never happen.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, params};

const START_BALANCE: i64 = 1000;

struct Arguments {
    database: PathBuf,
    id: String,
    accounts: i64,
    journal: String,
    synchronous: String,
    page_size: u32,
    count: u64,
    seconds: f64,
    pause: Duration,
    note_bytes: i64,
    seed: u64,
    watch: bool,
}

fn parse() -> Result<Arguments, String> {
    let mut words = std::env::args().skip(1);
    let mut parsed = Arguments {
        database: words
            .next()
            .ok_or("usage: transfer DB [options]; see the head of examples/transfer.rs")?
            .into(),
        id: "a".into(),
        accounts: 20,
        journal: "wal".into(),
        synchronous: "full".into(),
        page_size: 4096,
        count: u64::MAX,
        seconds: f64::INFINITY,
        pause: Duration::ZERO,
        note_bytes: 40,
        seed: 1,
        watch: false,
    };
    while let Some(option) = words.next() {
        if option == "--watch" {
            parsed.watch = true;
            continue;
        }
        let value = words.next().ok_or_else(|| format!("{option} needs a value"))?;
        let bad = |error: &dyn std::fmt::Display| format!("{option} {value}: {error}");
        match option.as_str() {
            "--id" => parsed.id = value,
            "--journal" => parsed.journal = value,
            "--synchronous" => parsed.synchronous = value,
            "--accounts" => parsed.accounts = value.parse().map_err(|e| bad(&e))?,
            "--page-size" => parsed.page_size = value.parse().map_err(|e| bad(&e))?,
            "--count" => parsed.count = value.parse().map_err(|e| bad(&e))?,
            "--seconds" => parsed.seconds = value.parse().map_err(|e| bad(&e))?,
            "--note" => parsed.note_bytes = value.parse().map_err(|e| bad(&e))?,
            "--seed" => parsed.seed = value.parse().map_err(|e| bad(&e))?,
            "--pause-ms" => parsed.pause = Duration::from_millis(value.parse().map_err(|e| bad(&e))?),
            _ => return Err(format!("unknown option {option}")),
        }
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let arguments = match parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(64);
        }
    };
    let done =
        if arguments.watch { watch(&arguments) } else { transfer(&arguments).map(|()| ExitCode::SUCCESS) };
    done.unwrap_or_else(|error| {
        eprintln!("{}: {error}", arguments.database.display());
        ExitCode::FAILURE
    })
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Creates tables and accounts unless somebody did; all or nothing.
fn prepare(arguments: &Arguments) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open(&arguments.database)?;
    connection.busy_timeout(Duration::from_secs(20))?;
    connection.execute_batch(&format!("PRAGMA page_size={}; PRAGMA cache_size=20", arguments.page_size))?;
    connection.query_row(&format!("PRAGMA journal_mode={}", arguments.journal), [], |_| Ok(()))?;
    connection.execute_batch(&format!("PRAGMA synchronous={}", arguments.synchronous))?;
    let founding = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    founding.execute_batch(
        "CREATE TABLE IF NOT EXISTS account(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
         CREATE TABLE IF NOT EXISTS ledger(client TEXT, seq INTEGER, source INTEGER, target INTEGER,
             amount INTEGER, note BLOB, PRIMARY KEY(client, seq));",
    )?;
    let existing: i64 = founding.query_row("SELECT count(*) FROM account", [], |row| row.get(0))?;
    if existing == 0 {
        for id in 0..arguments.accounts {
            founding.execute("INSERT INTO account VALUES(?1, ?2)", params![id, START_BALANCE])?;
        }
    }
    founding.commit()?;
    Ok(connection)
}

fn transfer(arguments: &Arguments) -> rusqlite::Result<()> {
    let mut connection = prepare(arguments)?;
    let accounts: i64 = connection.query_row("SELECT count(*) FROM account", [], |row| row.get(0))?;
    let sql = "SELECT coalesce(max(seq), 0) FROM ledger WHERE client = ?1";
    let first: i64 = connection.query_row(sql, [&arguments.id], |row| row.get(0))?;
    say("ready");
    let mut random = arguments.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let start = Instant::now();
    let mut sequence = first;
    for round in 1..=arguments.count {
        if start.elapsed().as_secs_f64() >= arguments.seconds {
            break;
        }
        let (source, target) = (draw(&mut random, accounts), draw(&mut random, accounts));
        let amount = draw(&mut random, 50) + 1;
        // Now and then a large note that spills the cache, and a transaction that is taken back.
        let note = if round % 10 == 0 { arguments.note_bytes * 200 } else { arguments.note_bytes };
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction
            .execute("UPDATE account SET balance = balance - ?2 WHERE id = ?1", params![source, amount])?;
        let sql = "INSERT INTO ledger VALUES(?1, ?2, ?3, ?4, ?5, randomblob(?6))";
        transaction.execute(sql, params![arguments.id, sequence + 1, source, target, amount, note])?;
        transaction
            .execute("UPDATE account SET balance = balance + ?2 WHERE id = ?1", params![target, amount])?;
        if round % 7 == 0 {
            transaction.rollback()?;
        } else {
            transaction.commit()?;
            sequence += 1;
            say(&format!("commit {} {sequence}", arguments.id));
        }
        if !arguments.pause.is_zero() {
            std::thread::sleep(arguments.pause);
        }
    }
    Ok(())
}

/// A number in `0..below` (xorshift: reproducible and enough for this).
fn draw(state: &mut u64, below: i64) -> i64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    i64::try_from((*state >> 16) % below.unsigned_abs()).expect("below an i64")
}

/// Reads in one transaction: sum of all accounts, number of accounts, number of transactions.
fn look(connection: &Connection) -> rusqlite::Result<(i64, i64, i64)> {
    let sql = "SELECT coalesce(sum(balance), 0), count(*), (SELECT count(*) FROM ledger) FROM account";
    connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
}

fn open_when_there(path: &Path) -> rusqlite::Result<Connection> {
    // Not read-only: a reader that meets the journal of a dead writer must be able to roll it back.
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(Duration::from_secs(20))?;
    look(&connection)?;
    Ok(connection)
}

fn watch(arguments: &Arguments) -> rusqlite::Result<ExitCode> {
    let start = Instant::now();
    let over = || start.elapsed().as_secs_f64() >= arguments.seconds;
    let connection = loop {
        match open_when_there(&arguments.database) {
            Ok(connection) => break connection,
            Err(error) if over() => return Err(error),
            // Not replicated yet: no file, or no tables.
            Err(rusqlite::Error::SqliteFailure(error, _))
                if matches!(
                    error.code,
                    ErrorCode::CannotOpen | ErrorCode::Unknown | ErrorCode::NotADatabase
                ) =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error),
        }
    };
    say("ready");
    let mut last = -1;
    while !over() {
        let (sum, accounts, transactions) = look(&connection)?;
        if sum != accounts * START_BALANCE || transactions < last {
            say(&format!("broken: {accounts} accounts hold {sum}, {transactions} transactions after {last}"));
            return Ok(ExitCode::from(2));
        }
        if transactions != last {
            last = transactions;
            say(&format!("seen {last}"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(ExitCode::SUCCESS)
}
