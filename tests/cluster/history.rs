//! What clients did and were told, and what a database shows: the two things the checker compares.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

/// Accounts of a database, numbered from 0.
pub const ACCOUNTS: i64 = 8;
/// What each account holds at first.
pub const START_BALANCE: i64 = 1000;

/// What a client set out to do.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Action {
    Append,
    Transfer { source: i64, target: i64, amount: i64 },
    Read,
}

/// What a client was told.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// The transaction was acknowledged.
    Ok,
    /// The answer to a read.
    Saw(Seen),
    /// An error before COMMIT, or one that leaves the transaction open: nothing may have happened.
    Failed(String),
    /// An error of COMMIT, or no answer: it happened or it did not.
    Unknown(String),
    /// SQLite found the database damaged.
    Corrupt(String),
}

/// One operation of one client.
#[derive(Clone, PartialEq, Debug)]
pub struct Op {
    pub client: String,
    /// From 1, in the client's order.
    pub seq: u64,
    pub action: Action,
    pub outcome: Outcome,
}

/// The first rows of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Prefix {
    pub rows: usize,
    /// Of all of them in order.
    pub digest: u64,
}

/// What one read transaction showed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Seen {
    pub log: Prefix,
    pub transfers: Prefix,
    pub balances: Vec<i64>,
    /// What the same transfers make of the first balances.
    pub owed: Vec<i64>,
}

/// A row of `log` or `transfer`.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Row {
    pub client: String,
    pub seq: u64,
    /// Of the table's other columns.
    pub content: String,
    /// Source, target and amount of a transfer.
    pub moved: Option<(i64, i64, i64)>,
}

/// Everything in a database, rows in the order of their ids.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct State {
    pub log: Vec<Row>,
    pub transfers: Vec<Row>,
    pub balances: Vec<i64>,
}

/// A client's record of its operations: a file that outlives it.
pub struct Record(File);

/// One line of the file.
#[derive(Serialize, Deserialize)]
enum Line {
    Invoke { seq: u64, at_us: u128, action: Action },
    End { seq: u64, at_us: u128, outcome: Outcome },
}

/// Names an operation inside a row: found again in a page, even of a database that cannot be opened.
pub fn marker(client: &str, seq: u64) -> String {
    format!("<{client}/{seq}>")
}

/// The text an operation writes: its marker and, so that rows differ in size, some padding.
pub fn content(client: &str, seq: u64) -> String {
    let padding = match seq % 16 {
        0 => 3000,
        other => usize::try_from(other * 23).expect("small"),
    };
    format!("{}{}", marker(client, seq), "~".repeat(padding))
}

impl Record {
    /// A new record.
    pub fn create(path: &Path) -> Self {
        Self(File::options().create(true).append(true).open(path).unwrap())
    }

    /// Says that an operation begins; before it does.
    pub fn invoke(&mut self, seq: u64, action: &Action) {
        self.write(&Line::Invoke { seq, at_us: now_us(), action: action.clone() });
    }

    /// Says how it ended.
    pub fn end(&mut self, seq: u64, outcome: Outcome) {
        self.write(&Line::End { seq, at_us: now_us(), outcome });
    }

    fn write(&mut self, line: &Line) {
        let mut text = serde_json::to_vec(line).unwrap();
        text.push(b'\n');
        self.0.write_all(&text).unwrap();
    }

    /// What the record of a client says, whether the client lives or not.
    pub fn read(path: &Path, client: &str) -> Vec<Op> {
        let mut ops: Vec<Op> = Vec::new();
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // A kill may cut the last line.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            match serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
                Line::Invoke { seq, action, .. } => ops.push(Op {
                    client: client.to_owned(),
                    seq,
                    action,
                    outcome: Outcome::Unknown("no answer".into()),
                }),
                Line::End { seq, outcome, .. } => {
                    let op = ops.last_mut().filter(|op| op.seq == seq).expect("one at a time");
                    op.outcome = outcome;
                }
            }
        }
        ops
    }
}

fn now_us() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros()
}

impl State {
    /// Makes the tables and accounts of a new database.
    pub fn found(connection: &Connection) -> rusqlite::Result<()> {
        let accounts =
            format!("WITH RECURSIVE n(x) AS (SELECT 0 UNION ALL SELECT x+1 FROM n WHERE x<{ACCOUNTS}-1)");
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE;
             CREATE TABLE log(id INTEGER PRIMARY KEY AUTOINCREMENT, client TEXT, seq INTEGER, value TEXT);
             CREATE TABLE transfer(id INTEGER PRIMARY KEY AUTOINCREMENT, client TEXT, seq INTEGER, value TEXT,
                 source INTEGER, target INTEGER, amount INTEGER);
             CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
             {accounts} INSERT INTO account SELECT x, {START_BALANCE} FROM n;
             COMMIT"
        ))
    }

    /// What an operation writes, inside its transaction.
    pub fn write(connection: &Connection, client: &str, seq: u64, action: &Action) -> rusqlite::Result<()> {
        let (number, value) = (i64::try_from(seq).expect("small"), content(client, seq));
        let Action::Transfer { source, target, amount } = action else {
            let sql = "INSERT INTO log(client, seq, value) VALUES(?1, ?2, ?3)";
            return connection.prepare_cached(sql)?.execute(params![client, number, value]).map(drop);
        };
        let mut update =
            connection.prepare_cached("UPDATE account SET balance = balance + ?2 WHERE id = ?1")?;
        update.execute(params![source, -amount])?;
        let sql =
            "INSERT INTO transfer(client, seq, value, source, target, amount) VALUES(?1, ?2, ?3, ?4, ?5, ?6)";
        connection.prepare_cached(sql)?.execute(params![client, number, value, source, target, amount])?;
        update.execute(params![target, amount]).map(drop)
    }

    /// Reads everything in one read transaction.
    pub fn read(connection: &mut Connection) -> rusqlite::Result<Self> {
        let transaction = connection.transaction()?;
        let row = |row: &rusqlite::Row<'_>| {
            Ok(Row {
                client: row.get(0)?,
                seq: row.get::<_, i64>(1)?.unsigned_abs(),
                content: row.get(2)?,
                moved: row
                    .get::<_, Option<i64>>(3)?
                    .map(|source| Ok::<_, rusqlite::Error>((source, row.get(4)?, row.get(5)?)))
                    .transpose()?,
            })
        };
        let rows =
            |sql: &str| transaction.prepare_cached(sql)?.query_map([], row)?.collect::<Result<Vec<_>, _>>();
        let log = rows("SELECT client, seq, value, NULL, NULL, NULL FROM log ORDER BY id")?;
        let transfers = rows("SELECT client, seq, value, source, target, amount FROM transfer ORDER BY id")?;
        let balances = transaction
            .prepare_cached("SELECT balance FROM account ORDER BY id")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        Ok(Self { log, transfers, balances })
    }

    /// What a read transaction that shows this says.
    pub fn seen(&self) -> Seen {
        let last =
            |rows: &[Row]| Prefix { rows: rows.len(), digest: *digests(rows).last().expect("of none") };
        Seen {
            log: last(&self.log),
            transfers: last(&self.transfers),
            balances: self.balances.clone(),
            owed: self.owed(),
        }
    }

    /// What the transfers make of the first balances.
    pub fn owed(&self) -> Vec<i64> {
        let mut owed = vec![START_BALANCE; usize::try_from(ACCOUNTS).expect("few")];
        for (source, target, amount) in self.transfers.iter().filter_map(|row| row.moved) {
            for (account, change) in [(source, -amount), (target, amount)] {
                if let Some(balance) = usize::try_from(account).ok().and_then(|account| owed.get_mut(account))
                {
                    *balance += change;
                }
            }
        }
        owed
    }
}

/// The digest of each prefix, from none of the rows to all.
pub fn digests(rows: &[Row]) -> Vec<u64> {
    // The same keys in each process of one build.
    let mut hasher = DefaultHasher::new();
    let mut digests = vec![hasher.finish()];
    for row in rows {
        row.hash(&mut hasher);
        digests.push(hasher.finish());
    }
    digests
}
