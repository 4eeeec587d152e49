//! The random statements. Nothing in them depends on anything but the seed.

use rand::Rng;
use rand::rngs::StdRng;

/// Tables of the statements below, and the bank of `examples/transfer.rs`, whose readers check the sum.
pub const SCHEMA: &str = "
    BEGIN IMMEDIATE;
    CREATE TABLE t0(id INTEGER PRIMARY KEY, a INTEGER, b TEXT);
    CREATE TABLE t1(id INTEGER PRIMARY KEY, a INTEGER, b TEXT);
    CREATE TABLE t2(a INTEGER PRIMARY KEY, b TEXT) WITHOUT ROWID;
    CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
    CREATE TABLE ledger(client TEXT, seq INTEGER, PRIMARY KEY(client, seq));
    INSERT INTO account WITH RECURSIVE n(x) AS (SELECT 0 UNION ALL SELECT x+1 FROM n WHERE x<19) SELECT x, 1000 FROM n;
    COMMIT";

/// One statement; `step` makes it differ from all others of the round.
pub fn draw(random: &mut StdRng, step: u64) -> String {
    let table = ["t0", "t1"][random.random_range(0..2)];
    let (low, length) = (random.random_range(0..300), random.random_range(0..3000));
    match random.random_range(0..100) {
        0..6 => "BEGIN".into(),
        6..10 => "BEGIN IMMEDIATE".into(),
        10..12 => "BEGIN EXCLUSIVE".into(),
        12..24 => "COMMIT".into(),
        24..28 => "ROLLBACK".into(),
        28..31 => "SAVEPOINT s".into(),
        31..33 => "ROLLBACK TO s".into(),
        33..35 => "RELEASE s".into(),
        35..50 => format!("INSERT INTO {table}(a, b) VALUES({step}, printf('%.*c', {length}, 'x') || {step})"),
        50..54 => format!(
            "INSERT INTO {table}(a, b) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x<{})
             SELECT x * {step}, printf('%.*c', x * 7, 'y') FROM n",
            low / 2 + 1
        ),
        54..58 => format!("INSERT OR REPLACE INTO t2 VALUES({low}, printf('%.*c', {length}, 'z') || {step})"),
        58..64 => format!("UPDATE {table} SET a = a + {step}, b = substr(b, 3) || 'u' WHERE id % 7 = {}", low % 7),
        64..68 => format!("DELETE FROM {table} WHERE id BETWEEN {low} AND {}", low + length / 40),
        68..69 => format!("DELETE FROM {table}"),
        69..77 => {
            let (from, to) = (low % 20, (low / 20 + low + 1) % 20);
            format!("UPDATE account SET balance = balance + (id = {to}) * {length} - (id = {from}) * {length} WHERE id IN ({from}, {to})")
        }
        77..79 => format!("INSERT INTO ledger VALUES('model', {step})"),
        79..86 => format!("SELECT count(*), sum(a), sum(length(b)), min(b), max(b) FROM {table}"),
        86..88 => "SELECT sum(balance), group_concat(balance) FROM account".into(),
        88..90 => format!("SELECT b FROM t2 WHERE a >= {low} ORDER BY a LIMIT 3"),
        90..91 => format!("CREATE INDEX IF NOT EXISTS i_{table} ON {table}(a, substr(b, 1, 20))"),
        91..92 => format!("DROP INDEX IF EXISTS i_{table}"),
        92..93 => "CREATE TABLE IF NOT EXISTS extra(v); ".into(),
        93..94 => "DROP TABLE IF EXISTS extra".into(),
        94..95 => format!("CREATE TABLE extra AS SELECT * FROM {table}"),
        95..96 => "VACUUM".into(),
        96..98 => "PRAGMA wal_checkpoint(PASSIVE)".into(),
        98..99 => "PRAGMA wal_checkpoint(TRUNCATE)".into(),
        _ => format!("PRAGMA user_version={step}"),
    }
}
